"""ResNet: torchvision's numerics stage by stage, batch normalisation in training, precision."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sane_jax.models import resnet, weights


def images_of(size, count=3, seed=0):
  """Smooth images [count size size 3] in [0, 1]."""
  coarse = np.random.default_rng(seed).uniform(size=(count, 7, 7, 3))
  images = jax.image.resize(jnp.asarray(coarse), (count, size, size, 3), "linear")
  return np.array(images, np.float32)


# A 3x3 convolution or a pool of this size and stride, on an odd and on an even side, both padded.
NETS = {
  "resnet18": ({"stage_sizes": (2, 2, 2, 2)}, 64),
  "trunk of the paper": ({"stage_sizes": (2, 2, 2)}, 112),
  "odd side": ({"stage_sizes": (2, 1, 1), "width": 16}, 75),
  "bottleneck": ({"stage_sizes": (2, 1, 2, 1), "block": "bottleneck", "width": 16}, 96),
}


@pytest.mark.torch
@pytest.mark.parametrize("name", NETS)
def test_stages_of_the_torch_network(name):
  torch = pytest.importorskip("torch")
  from tests.models import torch_resnet

  options, size = NETS[name]
  theirs = torch_resnet.randomize(
    torch_resnet.ResNet(
      options["stage_sizes"],
      basic=options.get("block", "basic") == "basic",
      width=options.get("width", 64),
      outputs=10,
    )
  )
  state = {k: v.numpy() for k, v in theirs.state_dict().items()}
  converted = weights._convert_state(state, {}, "auto")
  net = weights.make_resnet(converted.description)
  assert net == resnet.ResNet(**options, num_classes=10)
  images = images_of(size)
  with torch.inference_mode():
    maps = [m.permute(0, 2, 3, 1).numpy() for m in theirs.stages(torch.from_numpy(images))]
    logits = theirs(torch.from_numpy(images)).numpy()
  ours = jax.jit(lambda v, x: net.apply(v, x, method="stages"))(converted.variables, images)
  for one, other in zip(ours, maps, strict=True):
    assert one.shape == other.shape
    assert np.abs(other).max() > 1  # so that 1e-4 is a small number here
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)
  mine = jax.jit(lambda v, x: net.apply(v, x, method="logits"))(converted.variables, images)
  np.testing.assert_allclose(mine, logits, rtol=0, atol=1e-4)


@pytest.mark.torch
def test_a_training_step_of_batch_normalisation_as_in_torch():
  torch = pytest.importorskip("torch")
  from tests.models import torch_resnet

  theirs = torch_resnet.randomize(torch_resnet.ResNet((1, 1), width=8, outputs=0)).train()
  state = {k: v.numpy().copy() for k, v in theirs.state_dict().items()}
  converted = weights._convert_state(state, {}, "auto")
  net = weights.make_resnet(converted.description)
  images = images_of(32, count=4)
  maps = theirs.stages(torch.from_numpy(images))[-1].permute(0, 2, 3, 1).detach().numpy()
  ours, moved = net.apply(converted.variables, images, True, mutable=["batch_stats"])
  np.testing.assert_allclose(ours, maps, atol=1e-4)
  after = {k: v.numpy() for k, v in theirs.state_dict().items()}
  expected = weights._convert_state(after, {}, "auto").variables["batch_stats"]
  n = 4 * 8 * 8  # of layer1; torch's running variance is that of a sample, n / (n - 1) times ours
  for name in ("mean", "var"):
    before = converted.variables["batch_stats"]["layer1_0"]["bn1"][name]
    got = moved["batch_stats"]["layer1_0"]["bn1"][name]
    step = (expected["layer1_0"]["bn1"][name] - 0.9 * before) / 0.1
    step = step * (n - 1) / n if name == "var" else step
    np.testing.assert_allclose((got - 0.9 * before) / 0.1, step, rtol=1e-3, atol=1e-4)


SMALL = resnet.ResNet((1, 1, 1), width=8, stem="small")


def test_sizes_of_the_small_stem():
  variables = weights.init_variables(SMALL, 0)
  maps = SMALL.apply(variables, images_of(64), method="stages")
  assert [m.shape[1:] for m in maps] == [(32, 32, 8), (16, 16, 16), (8, 8, 32)]
  assert SMALL.feature_size == 32
  assert resnet.ResNet50().feature_size == 2048
  assert resnet.ResNet18().stage_sizes == (2, 2, 2, 2)


def test_bfloat16_computes_in_it_and_keeps_float32():
  net = SMALL.clone(dtype=jnp.bfloat16)
  variables = weights.init_variables(net, 0)
  images = images_of(32)
  out, moved = net.apply(variables, images, True, mutable=["batch_stats"])
  assert out.dtype == jnp.bfloat16
  kept = {a.dtype for a in jax.tree.leaves((variables, moved))}
  assert kept == {np.dtype(np.float32)}
  whole = SMALL.apply(variables, images, True, mutable=["batch_stats"])[0]
  error = np.linalg.norm(out.astype(np.float32) - whole) / np.linalg.norm(whole)
  assert 1e-4 < error < 3e-2
  assert net.apply(variables, images, method="pooled").dtype == jnp.float32


def test_it_learns_to_tell_stripes():
  # Horizontal against vertical stripes of random phase and colour, from scratch.
  rng = np.random.default_rng(0)
  net = resnet.ResNet((1, 1), width=8, stem="small", num_classes=2)
  variables = weights.init_variables(net, 0)

  def draw(count):
    wave = np.sin(np.arange(16) + rng.uniform(0, 6, (count, 1)))[:, :, None, None]
    wave = np.broadcast_to(wave, (count, 16, 16, 1)) * rng.uniform(0.5, 1, (count, 1, 1, 3))
    labels = rng.integers(2, size=count)
    turned = np.where(labels[:, None, None, None] == 1, wave.swapaxes(1, 2), wave)
    return (turned / 2 + 0.5).astype(np.float32), labels

  optimizer = optax.adam(3e-3)

  @jax.jit
  def step(params, stats, state, images, labels):
    def loss(params):
      variables = {"params": params, "batch_stats": stats}
      maps, moved = net.apply(variables, images, True, mutable=["batch_stats"])
      logits = net.apply(variables, maps, method=lambda n, m: n.fc(m.mean((1, 2))))
      value = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
      return value, moved["batch_stats"]

    (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), stats, state, value

  params, stats = variables["params"], variables["batch_stats"]
  state = optimizer.init(params)
  for _ in range(60):
    params, stats, state, _ = step(params, stats, state, *draw(32))
  images, labels = draw(64)
  logits = net.apply({"params": params, "batch_stats": stats}, images, method="logits")
  assert (np.argmax(logits, 1) == labels).mean() > 0.95  # with the running statistics


def test_statistics_are_of_the_whole_batch_on_every_device():
  from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

  devices = jax.devices()
  assert len(devices) == 2
  variables = weights.init_variables(SMALL, 0)
  images = images_of(16, count=4)
  images[2:] *= 0.2  # so that the halves differ
  mesh = Mesh(np.asarray(devices), ("batch",), axis_types=(AxisType.Auto,))
  run = jax.jit(lambda v, x: SMALL.apply(v, x, True, mutable=["batch_stats"]))
  alone = run(variables, images)
  shared = run(variables, jax.device_put(images, NamedSharding(mesh, PartitionSpec("batch"))))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), alone, shared)


@pytest.mark.parametrize(
  ("options", "match"),
  [
    ({"stage_sizes": ()}, "one or more stages"),
    ({"stage_sizes": (2, 0)}, "one or more stages"),
    ({"stage_sizes": (2,), "width": 0}, "one or more stages"),
    ({"stage_sizes": (2,), "block": "wide"}, "choose one of basic, bottleneck"),
    ({"stage_sizes": (2,), "stem": "cifar"}, "choose one of imagenet, small"),
  ],
)
def test_architectures_that_are_none(options, match):
  with pytest.raises(ValueError, match=match):
    resnet.ResNet(**options)


@pytest.mark.parametrize(
  "images", [np.zeros((1, 8, 8, 3), np.uint8), np.zeros((8, 8, 3)), np.zeros((1, 3, 8, 8))]
)
def test_other_inputs_are_refused(images):
  with pytest.raises(ValueError, match=r"expected floats \[b h w 3\]"):
    jax.eval_shape(SMALL.init, jax.random.key(0), images)
