"""Models as people have them: in the wrong state, of any precision and output; to be carried."""

import copy
import functools
import gc
import pathlib
import pickle
import threading
import weakref

import encoders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import sane_jax
from sane_jax.maps import engine as engine_lib
from sane_jax.models import outputs as outputs_lib
from sane_jax.ops import programs

SIZE = encoders.SIZE
DESIGN = sane_jax.Hadamard(num_masks=64, grid=(4, 4))


def pooled(images):
  """[b h w 3] -> [b 48] in float64: means of 4 x 4 regions."""
  images = np.asarray(images, np.float64)
  return images.reshape(len(images), 4, SIZE // 4, 4, SIZE // 4, 3).mean((2, 4)).reshape(-1, 48)


def module_level(images):
  return np.tanh(pooled(images) - 0.5)


def pooled_jax(params, images):
  b = images.shape[0]
  regions = images.reshape(b, 4, SIZE // 4, 4, SIZE // 4, 3).mean((2, 4)).reshape(b, 48)
  return jnp.tanh(regions @ params)


def unit(rows):
  return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def embedded(model, images):
  return engine_lib.embed_images(engine_lib.make_engine(model), images)


# --- torch ----------------------------------------------------------------------------------------


def torch_net(torch, **given):
  class Net(torch.nn.Module):
    def __init__(self):
      super().__init__()
      torch.manual_seed(0)
      self.conv = torch.nn.Conv2d(3, 8, 4, 4)
      self.norm = torch.nn.BatchNorm2d(8)
      self.norm.running_mean += 0.1
      self.drop = torch.nn.Dropout(0.5)
      self.table = None
      self.fail = False

    def forward(self, x):
      if self.fail:
        raise RuntimeError("sizes of tensors must match")
      x = self.drop(self.norm(self.conv(x)))
      if self.table is None:  # as interpolated position tables are kept
        self.table = torch.linspace(0, 1, x.shape[-1], dtype=x.dtype)
      v = (x * self.table).mean((2, 3))
      return given["wrap"](v, x) if given else v

    def encode(self, x):
      return self.forward(x)

  return Net()


def expected_of(torch, net, images):
  """The module's own answer in evaluation mode, float64."""
  double = copy.deepcopy(net).double().eval()
  with torch.no_grad():
    return unit(double(torch.tensor(images.transpose(0, 3, 1, 2), dtype=torch.float64)).numpy())


@pytest.mark.torch
def test_a_torch_module_is_evaluated_and_left_as_it_was(photos):
  torch = pytest.importorskip("torch")
  net = torch_net(torch)
  net.train()
  net.norm.eval()  # frozen, as people do
  model = sane_jax.from_torch(net, image_size=SIZE)
  want = expected_of(torch, net, photos)
  modes = {name: m.training for name, m in net.named_modules()}
  before = {name: t.clone() for name, t in net.state_dict().items()}
  np.testing.assert_allclose(embedded(model, photos), want, atol=1e-5)
  e = sane_jax.Explainer(model, design=DESIGN).explain(photos[0], photos[1])
  assert e.score == pytest.approx(want[0] @ want[1], abs=1e-5)
  assert not e.warnings
  assert {name: m.training for name, m in net.named_modules()} == modes
  assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
  net.fail = True
  with pytest.raises(sane_jax.ModelError, match=r"sizes of tensors.*Is image_size=\(28, 28\)"):
    embedded(model, photos)
  assert {name: m.training for name, m in net.named_modules()} == modes
  net.fail = False
  net(torch.rand(2, 3, SIZE, SIZE)).sum().backward()  # what it kept in the pass can be trained on
  assert net.conv.weight.grad is not None
  with torch.enable_grad():  # outputs that carry gradients
    grad = sane_jax.from_numpy(
      lambda x: net.eval()(torch.tensor(x.transpose(0, 3, 1, 2))), image_size=SIZE
    )
    np.testing.assert_allclose(embedded(grad, photos), want, atol=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize(
  "kind",
  ["bfloat16", "float16", "float64", "method", "lambda", "partial", "script", "frozen", "exported"],
)
def test_torch_modules_of_any_kind(kind, photos):
  torch = pytest.importorskip("torch")
  net = torch_net(torch)
  want = expected_of(torch, net, (photos - 0.5) / 0.25)
  atol = {"bfloat16": 2e-2, "float16": 2e-3}.get(kind, 1e-5)
  example = torch.rand(5, 3, SIZE, SIZE)
  net.eval()
  if kind in ("script", "frozen"):
    net(example)  # makes its table
    given = torch.jit.trace(net, example)
    given = torch.jit.freeze(given) if kind == "frozen" else given
  elif kind == "exported":
    batch = torch.export.Dim("batch")
    given = torch.export.export(net, (example,), dynamic_shapes=({0: batch},))
  else:
    whole = net if "float" not in kind else net.to(getattr(torch, kind))
    given = {
      "method": whole.encode, "lambda": lambda x: whole(x), "partial": functools.partial(whole),
    }.get(kind, whole)  # fmt: skip
    whole.train()  # explained in evaluation mode all the same
  model = sane_jax.from_torch(given, image_size=SIZE, mean=0.5, std=torch.tensor([0.25] * 3))
  np.testing.assert_allclose(embedded(model, photos), want, atol=atol)
  e = sane_jax.Explainer(model, design=DESIGN).explain(photos[0], photos[1])
  assert e.score == pytest.approx(want[0] @ want[1], abs=atol)
  assert not e.warnings


def test_statistics_of_any_form():
  statistics = sane_jax.models.model._statistics
  for mean in ([0.1, 0.2, 0.3], np.array([0.1, 0.2, 0.3]), jnp.array([[[0.1]], [[0.2]], [[0.3]]])):
    shift, scale = statistics(mean, None)
    np.testing.assert_allclose(shift, [0.1, 0.2, 0.3], atol=1e-7)
    np.testing.assert_array_equal(scale, [1, 1, 1])
  np.testing.assert_allclose(statistics((0.5,), 0.25), [[0.5] * 3, [0.25] * 3])
  assert statistics(None, None) is None
  with pytest.raises(
    sane_jax.ModelError, match=r"0\.\.255.*mean=\(0.485, 0.456, 0.406\), std=\(0.229, 0.224, 0.225"
  ):
    statistics((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
  with pytest.raises(
    sane_jax.ModelError, match=r"mean=\(0.4, 0.4, 0.4\), std=\(0.003922, 0.003922"
  ):
    statistics(102, None)  # as of networks that subtract a mean of 0..255 and divide by nothing
  with pytest.raises(sane_jax.ModelError, match="mean is three finite numbers"):
    statistics((0.5, 0.5), None)
  with pytest.raises(sane_jax.ModelError, match="std divides"):
    statistics(None, 0)


# --- outputs --------------------------------------------------------------------------------------


class Output(dict):
  """As transformers' ModelOutput."""


def several(v, maps):
  return {
    "list": [v],
    "tuple": (v, None, maps),
    "dict": {"embedding": v},
    "output": Output(last_hidden_state=maps, pooler_output=v, attentions=None),
    "pooled": v[:, :, None, None],
  }


@pytest.mark.parametrize("kind", ["list", "tuple", "dict", "output", "pooled"])
def test_embeddings_are_found_among_outputs(kind, photos):
  weights = np.random.default_rng(0).normal(size=(48, 6)).astype(np.float32)

  def embed(params, images):
    return several(pooled_jax(params, images), images)[kind]

  plain = sane_jax.from_jax(pooled_jax, weights, image_size=SIZE)
  want = embedded(plain, photos)
  np.testing.assert_array_equal(
    embedded(sane_jax.from_jax(embed, weights, image_size=SIZE), photos), want
  )
  host = sane_jax.from_numpy(lambda x: embed(weights, jnp.asarray(x)), image_size=SIZE)
  np.testing.assert_allclose(embedded(host, photos), want, atol=1e-6)


def test_which_of_several_outputs_is_asked_for(photos):
  def two(x):
    return {"image_embeds": module_level(x), "text_embeds": pooled(x), "maps": x}

  model = functools.partial(sane_jax.from_numpy, two, image_size=SIZE)
  with pytest.raises(
    sane_jax.ModelError,
    match=r"two gave dict of 'image_embeds' \(1, 48\).*output='image_embeds' or output='text_emb",
  ):
    embedded(model(), photos)
  for output, want in (("text_embeds", pooled), ("image_embeds", module_level), (0, module_level)):
    np.testing.assert_allclose(
      embedded(model(output=output), photos), unit(want(photos)), atol=1e-6
    )
  with pytest.raises(sane_jax.ModelError, match="no output 'pooler_output' among them"):
    embedded(model(output="pooler_output"), photos)
  maps = sane_jax.from_numpy(lambda x: {"maps": x}, image_size=SIZE)
  with pytest.raises(sane_jax.ModelError, match=r"'maps' \(1, 28, 28, 3\).*Pool or flatten"):
    embedded(maps, photos)
  tokens = sane_jax.from_numpy(lambda x: np.ones((7, len(x), 5)), image_size=SIZE)
  with pytest.raises(sane_jax.ModelError, match=r"\[tokens, batch, d\]"):
    embedded(tokens, photos)
  with pytest.raises(sane_jax.ModelError, match=r"output=0 or output=1"):
    sane_jax.from_jax(lambda _, x: (x.mean((1, 2)), x.max((1, 2))), None, image_size=SIZE)


# --- hints ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("error", "hint"),
  [
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), r"Is image_size=\(28, 28\)"),
    (RuntimeError("Input type (float) and bias type (c10::Half) should be the same"), "precision"),
    (RuntimeError("expected m1 and m2 to have the same dtype"), "precision"),
    (RuntimeError("Expected all tensors to be on the same device"), "one device"),
    (AttributeError("'dict' object has no attribute 'shape'"), None),
    (KeyError("size"), None),
    (ConnectionError("the service is away"), None),
    (ZeroDivisionError("division by zero"), "one colour"),
  ],
)
def test_the_hint_follows_the_cause(error, hint, photos):
  def broken(images):
    raise error

  images = np.full((2, SIZE, SIZE, 3), 0.5) if hint == "one colour" else photos
  with pytest.raises(sane_jax.ModelError, match=hint or "raised") as caught:
    embedded(sane_jax.from_numpy(broken, image_size=SIZE), images.astype(np.float32))
  assert caught.value.__cause__ is error
  assert str(error) in str(caught.value)
  if hint is None or "image_size" not in hint:
    assert "image_size" not in str(caught.value)


@pytest.mark.parametrize(
  "error",
  [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 1 GiB"),
   RuntimeError("Failed to allocate memory for requested buffer of size 9"),
   type("OutOfMemoryError", (RuntimeError,), {})("no room")],
)  # fmt: skip
def test_a_host_model_that_runs_out_of_memory_gets_smaller_batches(error, photos):
  sizes = []

  def small(images):
    sizes.append(len(images))
    if len(images) > 8:
      raise error
    return module_level(images)

  def score(images, reference):
    return small(images) @ module_level(reference[None])[0]

  for make, fn in ((sane_jax.from_numpy, small), (sane_jax.from_score, score)):
    explainer = sane_jax.Explainer(make(fn, image_size=SIZE), design=DESIGN)
    with pytest.warns(UserWarning, match=r"16 images at a time.*chunk_size=8"):
      found = explainer.explain(photos[0], photos[1])
    sizes.clear()
    free = module_level if fn is small else lambda x, r: module_level(x) @ module_level(r[None])[0]
    want = sane_jax.Explainer(make(free, image_size=SIZE), design=DESIGN, chunk_size=8)
    want = want.explain(photos[0], photos[1])
    np.testing.assert_allclose(found.saliency_map, want.saliency_map, atol=1e-6)
    assert found.encoder_passes == want.encoder_passes

  def none(images):
    raise error

  model = sane_jax.from_numpy(none, image_size=SIZE)
  with pytest.raises(sane_jax.ModelError, match=r"not even one image fits.*chunk_size"):
    sane_jax.Explainer(model).explain(photos[0], photos[1])


def test_what_divides_by_a_picture_s_own_deviation_is_told_of_flat_pictures(photos):
  def embed(x):
    with np.errstate(all="ignore"):
      return module_level((x - x.mean((1, 2, 3), keepdims=True)) / x.std((1, 2, 3), keepdims=True))

  def score(x, reference):
    return embed(x) @ embed(reference[None])[0]

  for model in (
    sane_jax.from_numpy(embed, image_size=SIZE), sane_jax.from_score(score, image_size=SIZE),
  ):  # fmt: skip
    explainer = sane_jax.Explainer(model, design="kernel_shap", num_masks=41, fill="black")
    with pytest.raises(sane_jax.ModelError, match="for an image of one colour either"):
      explainer.explain(photos[0], photos[1])


# --- random and batch-dependent models ------------------------------------------------------------


def test_random_and_batch_dependent_models_are_said_to_be(photos):
  rng = np.random.default_rng(0)

  def noisy(x):
    return module_level(x) + 0.1 * rng.normal(size=(len(x), 48))

  def normalised(x):
    v = pooled(x)
    return (v - v.mean(axis=0)) / (v.std(axis=0) + 0.1) + 0.1

  def normalised_jax(w, x):
    v = pooled_jax(w, x)
    return v - 0.5 * v.mean(axis=0)

  def noisy_score(x, reference):
    return pooled(x) @ pooled(reference[None])[0] + rng.normal(size=len(x))

  weights = np.random.default_rng(0).normal(size=(48, 6)).astype(np.float32)
  for model, word in (
    (sane_jax.from_numpy(noisy, image_size=SIZE), "random"),
    (sane_jax.from_numpy(normalised, image_size=SIZE), "batch-dependent"),
    (sane_jax.from_jax(normalised_jax, weights, image_size=SIZE), "batch-dependent"),
    (sane_jax.from_score(noisy_score, image_size=SIZE), "random"),
    (sane_jax.from_numpy(module_level, image_size=SIZE), None),
    (sane_jax.from_jax(pooled_jax, weights, image_size=SIZE), None),
  ):
    for _ in range(2):  # said of each explanation, though tried once
      explainer = sane_jax.Explainer(model, design=DESIGN)
      e = explainer.explain(photos[0], photos[1])
      said = [w for w in e.warnings if "say nothing" in w]
      assert len(said) == (word is not None)
      if word is not None:
        assert f"of a {word} model" in said[0]
        assert said[0] in e.view().warnings  # and on the page
  weights = np.random.default_rng(0).normal(size=(48, 6)).astype(np.float32)
  learned = sane_jax.Explainer(
    sane_jax.from_jax(normalised_jax, weights, image_size=SIZE), design="learned_mask", num_steps=2
  )
  with pytest.warns(UserWarning, match="batch-dependent"):
    learned.explain(photos[0], photos[1])


def test_a_model_of_single_images_is_not_tried_on_two(photos):
  def one(x):
    assert len(x) == 1
    return module_level(x)

  explainer = sane_jax.Explainer(
    sane_jax.from_numpy(one, image_size=SIZE), design=DESIGN, chunk_size=1
  )
  assert not explainer.explain(photos[0], photos[1]).warnings


# --- carried --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["numpy", "jax", "score", "learned"])
def test_what_is_pickled_or_copied_gives_the_same(kind, photos):
  weights = np.random.default_rng(0).normal(size=(48, 6)).astype(np.float32)
  options = {"design": DESIGN, "fill": photos[3], "key": 5, "mode": "both"}
  if kind == "learned":
    options = {"design": "learned_mask", "num_steps": 3}
  model = {
    "numpy": lambda: sane_jax.from_numpy(module_level, image_size=SIZE),
    "score": lambda: sane_jax.from_score(module_score, image_size=SIZE),
  }.get(kind, lambda: sane_jax.from_jax(pooled_jax, weights, image_size=SIZE))()
  explainer = sane_jax.Explainer(model, **options)
  e = explainer.explain(photos[0], photos[1])
  carry = lambda thing: pickle.loads(pickle.dumps(thing))  # noqa: E731
  for again in (carry(e), copy.deepcopy(e), carry(explainer).explain(photos[0], photos[1])):
    np.testing.assert_array_equal(again.saliency_map, e.saliency_map)
    np.testing.assert_array_equal(again.reference_saliency_map, e.reference_saliency_map)
    assert again.snippet() == e.snippet()
  if kind in ("numpy", "jax"):
    measured = carry(explainer.effects(photos[0]))
    np.testing.assert_array_equal(
      carry(explainer).explain(measured, photos[1]).saliency_map, e.saliency_map
    )


def module_score(images, reference):
  return module_level(images) @ module_level(reference[None])[0]


def test_passes_of_two_threads_are_each_its_own(photos):
  arrived = threading.Barrier(2, timeout=60)

  def embed(images):
    if len(images) == 16:  # in the middle of both
      arrived.wait()
    return module_level(images)

  model = sane_jax.from_numpy(embed, image_size=SIZE)
  explainer = sane_jax.Explainer(model, design=DESIGN, chunk_size=16)
  found = {}

  def work(i):
    found[i] = explainer.explain(photos[i], photos[i + 1])

  threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert [found[i].encoder_passes for i in range(2)] == [66, 66]
  assert explainer.encoder_passes in (2 * 66 + 2, 2 * 66 + 4)  # both may have tried the model


def test_compiled_programs_of_former_functions_are_dropped(photos):
  weights = np.random.default_rng(0).normal(size=(48, 6)).astype(np.float32)
  traced, functions = [], []

  def explain(function):
    model = sane_jax.from_jax(function, weights, image_size=SIZE)
    sane_jax.Explainer(model, design=DESIGN).explain(photos[0], photos[1])

  def same(params, images):
    traced.append(images.shape)
    return pooled_jax(params, images)

  explain(same)
  count = len(traced)
  explain(same)
  assert len(traced) == count + 1  # shapes alone, by from_jax: nothing is compiled again
  for _ in range(programs.KEPT + 2):
    each = lambda params, images: pooled_jax(params, images)  # noqa: E731
    functions.append(weakref.ref(each))
    explain(each)
    del each
  gc.collect()
  assert sum(ref() is not None for ref in functions) <= programs.KEPT


# --- fills, keys, names ---------------------------------------------------------------------------


def test_fills_and_images_of_any_kind(photos, tmp_path):
  model = sane_jax.from_numpy(module_level, image_size=SIZE)
  explain = lambda **o: sane_jax.Explainer(model, design=DESIGN, **o).explain(*photos[:2])  # noqa: E731
  eighths = np.round(photos[3] * 8) / 8 * 255 // 1
  picture = eighths.astype(np.uint8)
  Image.fromarray(picture).save(tmp_path / "plate.png")
  want = explain(fill=(picture / np.float32(255)).astype(np.float32)).saliency_map
  for fill in (picture, Image.fromarray(picture), tmp_path / "plate.png", (picture / 255).tolist()):
    np.testing.assert_allclose(explain(fill=fill).saliency_map, want, atol=1e-6)
  colour = explain(fill=(1, 0, 0.5))
  for fill in (np.array([1, 0, 0.5]), jnp.array([1, 0, 0.5], jnp.bfloat16), [1, 0, 0.5]):
    np.testing.assert_array_equal(explain(fill=fill).saliency_map, colour.saliency_map)
  assert colour.settings["fill"] == [1.0, 0.0, 0.5]
  with pytest.raises(ValueError, match="no such picture: give the picture itself"):
    sane_jax.Explainer(model, fill="image with SHA-256 0123")
  half = jnp.asarray(photos[0], jnp.bfloat16)
  np.testing.assert_array_equal(
    sane_jax.Explainer(model).photo(half).pixels, np.asarray(half, np.float32)
  )
  explainer = sane_jax.Explainer(model, design=DESIGN)
  vector = jnp.asarray(module_level(photos[1:2])[0], jnp.bfloat16)
  given = explainer.explain(photos[0], reference_embedding=vector)
  want = explainer.explain(photos[0], reference_embedding=np.asarray(vector, np.float32))
  np.testing.assert_array_equal(given.saliency_map, want.saliency_map)


def test_keys_that_can_t_be_are_named():
  model = sane_jax.from_numpy(module_level, image_size=SIZE)
  words = jax.random.key_data(sane_jax.Explainer(model, key=(3, 4)).key)
  np.testing.assert_array_equal(words, [3, 4])
  assert sane_jax.Explainer(model, key=np.int64(7)).settings["key"] == [0, 7]
  assert sane_jax.Explainer(model, key=np.array(7)).settings["key"] == [0, 7]
  for key in (jax.random.split(jax.random.key(0)), 0.5, "seed", (1, 2, 3)):
    with pytest.raises(ValueError, match="key is a seed"):
      sane_jax.Explainer(model, key=key)


def test_errors_of_many_name_the_photo(photos, tmp_path):
  def embed(x):
    return np.where((x[:, :1, 0, 0] < 0.01), np.nan, module_level(x))

  dark = tmp_path / "dark.png"
  Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(dark)
  explainer = sane_jax.Explainer(sane_jax.from_numpy(embed, image_size=SIZE), design=DESIGN)
  bright = photos * 0.9 + 0.05
  with pytest.raises(sane_jax.ModelError, match=r"whole images \(dark.png\)"):
    explainer.embed([bright[0], dark])
  with pytest.raises(sane_jax.ModelError, match=r"whole images \(number 2\)"):
    explainer.embed([bright[0], np.zeros((SIZE, SIZE, 3), np.uint8)])
  with pytest.raises(sane_jax.ImageError, match=r"pair 2 of 2: .*gone.png"):
    explainer.explain_pairs([(bright[0], bright[1]), (bright[0], pathlib.Path("gone.png"))])


def test_a_tuple_of_vectors_is_one_array():
  rows = tuple(np.arange(6.0).reshape(3, 2))
  np.testing.assert_array_equal(outputs_lib.pick(rows, 3, "m"), rows)


# --- JAX as a program has it ----------------------------------------------------------------------


def test_jax_as_the_program_has_it_changes_no_map(photos):
  """64-bit types, strict promotion, refused ranks: the same masks; the model in its own types."""
  seen = []
  params = np.random.default_rng(0).normal(size=(48, 6))

  def embed(p, x):  # as a program that is careful of types writes it
    b = x.shape[0]
    seen.append((jnp.zeros(()).dtype, jax.config.jax_numpy_dtype_promotion))
    regions = x.reshape(b, 4, SIZE // 4, 4, SIZE // 4, 3).mean((2, 4)).reshape(b, 48)
    return jnp.tanh(regions.astype(p.dtype) @ p)

  def explain(kind):
    if kind == "host":
      model = sane_jax.from_numpy(
        lambda x: np.asarray(embed(params, jnp.asarray(x))), image_size=SIZE
      )
    else:
      model = sane_jax.from_jax(embed, params, image_size=SIZE)
    e = sane_jax.Explainer(model, design=DESIGN, mode="both").explain(photos[0], photos[1])
    return e.saliency_map, e.reference_saliency_map, e.correspondence

  def strictly(work):
    with (
      jax.enable_x64(True), jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"),
    ):  # fmt: skip
      return work()

  for kind in ("jax", "host"):
    want = explain(kind)
    seen.clear()
    for a, b in zip(strictly(lambda kind=kind: explain(kind)), want, strict=True):
      assert a.dtype == b.dtype == np.float32
      np.testing.assert_allclose(a, b, atol=2e-5)  # the model's own 64 bits round less
    assert set(seen) == {(np.dtype(np.float64), "strict")}
