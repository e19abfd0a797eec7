"""Models from elsewhere give the embeddings that they give on their own."""

import pickle

import numpy as np
import pytest

import sane_jax
from sane_jax.maps import engine

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def unit(rows):
  return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def images(rng):
  return rng.uniform(size=(5, 32, 32, 3)).astype(np.float32)


def torch_net():
  torch = pytest.importorskip("torch")
  torch.manual_seed(0)
  return torch.nn.Sequential(
    torch.nn.Conv2d(3, 8, 3, stride=2, padding=1),
    torch.nn.BatchNorm2d(8),
    torch.nn.ReLU(),
    torch.nn.Dropout(0.5),  # must be off
    torch.nn.AdaptiveAvgPool2d(2),
    torch.nn.Flatten(),
  )


@pytest.mark.torch
def test_from_torch(images):
  torch = pytest.importorskip("torch")
  net = torch_net()
  model = sane_jax.from_torch(net.train(), image_size=32, mean=MEAN, std=STD)
  got = engine.embed_images(engine.make_engine(model, chunk=2), images)
  with torch.no_grad():
    want = net.eval()(torch.from_numpy(((images - MEAN) / STD).transpose(0, 3, 1, 2)).float())
  np.testing.assert_allclose(got, unit(want.numpy()), atol=1e-5)
  plain = sane_jax.from_torch(net, image_size=32)
  got = engine.embed_images(engine.make_engine(plain), images)
  with torch.no_grad():
    want = net(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
  np.testing.assert_allclose(got, unit(want.numpy()), atol=1e-5)
  e = sane_jax.Explainer(model, design="hadamard", num_masks=64, grid=(4, 4)).explain(*images[:2])
  assert e.encoder_passes == 66
  assert np.abs(e.saliency_map).max() > 1e-4


@pytest.mark.torch
def test_from_torch_refusals(images):
  torch = pytest.importorskip("torch")
  model = sane_jax.from_torch(torch.nn.Conv2d(3, 4, 3), image_size=32)
  with pytest.raises(sane_jax.ModelError, match=r"\(1, d\).*Pool or flatten"):
    sane_jax.Explainer(model).explain(*images[:2])


def onnx_file(path, batch, channels_first, size=32):
  onnx = pytest.importorskip("onnx")
  pytest.importorskip("onnxruntime")
  helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
  shape = [batch, 3, size, size] if channels_first else [batch, size, size, 3]
  weights = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
  axes = [2, 3] if channels_first else [1, 2]
  nodes = [
    helper.make_node("Sin", ["image"], ["wave"]),
    helper.make_node("ReduceMean", ["wave", "axes"], ["mean"], keepdims=0),
    helper.make_node("MatMul", ["mean", "weights"], ["embedding"]),
    helper.make_node("Identity", ["mean"], ["colour"]),
  ]
  graph = helper.make_graph(
    nodes,
    "g",
    [helper.make_tensor_value_info("image", float32, shape)],
    [
      helper.make_tensor_value_info("embedding", float32, [batch, 5]),
      helper.make_tensor_value_info("colour", float32, [batch, 3]),
    ],
    [
      onnx.numpy_helper.from_array(weights, "weights"),
      onnx.numpy_helper.from_array(np.asarray(axes, np.int64), "axes"),
    ],
  )
  model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
  onnx.save(model, path)
  return weights


@pytest.mark.onnx
@pytest.mark.parametrize("channels_first", [True, False])
@pytest.mark.parametrize("batch", ["b", 1])
def test_from_onnx(tmp_path, images, channels_first, batch):
  weights = onnx_file(tmp_path / "net.onnx", batch, channels_first)
  model = sane_jax.from_onnx(tmp_path / "net.onnx", mean=MEAN, std=STD)
  assert model.image_size == (32, 32)
  assert model.name == "net"
  got = engine.embed_images(engine.make_engine(model, chunk=2), images)
  mean = np.sin((images - MEAN) / STD).mean(axis=(1, 2))
  np.testing.assert_allclose(got, unit(mean @ weights), atol=1e-5)
  other = sane_jax.from_onnx(tmp_path / "net.onnx", mean=MEAN, std=STD, output="colour")
  got = engine.embed_images(engine.make_engine(other, chunk=2), images)
  np.testing.assert_allclose(got, unit(mean), atol=1e-5)
  e = sane_jax.Explainer(model, design="hadamard", num_masks=64, grid=(4, 4)).explain(*images[:2])
  assert e.encoder_passes == 66


def layout_file(path, shape, kind, outputs=("embedding",), channels_first=True):
  """Sines of the channels' means; an image of other channels does not go through."""
  onnx = pytest.importorskip("onnx")
  pytest.importorskip("onnxruntime")
  helper, types = onnx.helper, onnx.TensorProto
  weights = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
  axes = [2, 3] if channels_first else [1, 2]
  nodes = [
    helper.make_node("Cast", ["image"], ["float"], to=types.FLOAT),
    helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
    helper.make_node("MatMul", ["mean", "weights"], ["wide"]),
    helper.make_node("Cast", ["wide"], ["embedding"], to=kind if kind != types.UINT8 else 1),
    helper.make_node("Unsqueeze", ["mean", "last"], ["maps"]),
    helper.make_node("Identity", ["wide"], ["other"]),
  ]
  sides = {"embedding": (kind if kind != types.UINT8 else 1, ["b", 5]),
           "maps": (1, ["b", 3, 1]), "other": (1, ["b", 5])}  # fmt: skip
  graph = helper.make_graph(
    nodes, "g", [helper.make_tensor_value_info("image", kind, shape)],
    [helper.make_tensor_value_info(name, *sides[name]) for name in outputs],
    [
      onnx.numpy_helper.from_array(weights, "weights"),
      onnx.numpy_helper.from_array(np.asarray(axes, np.int64), "axes"),
      onnx.numpy_helper.from_array(np.asarray([2], np.int64), "last"),
    ],
  )  # fmt: skip
  model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
  onnx.save(model, path)
  return weights


@pytest.mark.onnx
@pytest.mark.parametrize(
  ("shape", "kind", "first"),
  [
    (["batch_size", "num_channels", "height", "width"], "FLOAT", True),
    (["batch_size", "height", "width", "num_channels"], "FLOAT16", False),
    (["N", "C", "H", "W"], "DOUBLE", True),
    (["a", "b", "c_", "d"], "FLOAT", True),  # nothing tells but that another layout fails
    (["a", "b", "c_", "d"], "FLOAT16", False),
    (["b", 3, 32, 32], "FLOAT16", True),
    (["b", 32, 32, 3], "UINT8", False),
  ],
)
def test_from_onnx_of_any_axes_and_type(tmp_path, images, shape, kind, first):
  onnx = pytest.importorskip("onnx")
  weights = layout_file(
    tmp_path / "net.onnx", shape, getattr(onnx.TensorProto, kind), channels_first=first
  )
  pixels = np.round(images * 255) / 255
  model = sane_jax.from_onnx(tmp_path / "net.onnx", image_size=32)
  got = engine.embed_images(engine.make_engine(model, chunk=2), pixels.astype(np.float32))
  want = unit(pixels.mean(axis=(1, 2)) @ weights)
  np.testing.assert_allclose(got, want, atol=2e-3 if kind == "FLOAT16" else 1e-5)
  again = pickle.loads(pickle.dumps(model))
  again = engine.embed_images(engine.make_engine(again, chunk=2), pixels.astype(np.float32))
  np.testing.assert_array_equal(again, got)


@pytest.mark.onnx
def test_from_onnx_takes_the_output_that_is_one(tmp_path, images):
  onnx = pytest.importorskip("onnx")
  path, kind = tmp_path / "net.onnx", onnx.TensorProto.FLOAT
  weights = layout_file(path, ["b", 3, 32, 32], kind, ("maps", "embedding"))
  got = engine.embed_images(engine.make_engine(sane_jax.from_onnx(path)), images)
  np.testing.assert_allclose(got, unit(images.mean(axis=(1, 2)) @ weights), atol=1e-5)
  layout_file(path, ["b", 3, 32, 32], kind, ("maps", "embedding", "other"))
  with pytest.raises(sane_jax.ModelError, match="output= one of embedding, other"):
    sane_jax.from_onnx(path)
  with pytest.raises(
    sane_jax.ModelError, match=r"images of \(32, 32\), not of image_size=\(24, 24"
  ):
    sane_jax.from_onnx(path, image_size=24, output="other")
  layout_file(path, ["b", 32, 32, 3], onnx.TensorProto.UINT8, channels_first=False)
  with pytest.raises(sane_jax.ModelError, match="normalises by itself: leave mean and std out"):
    sane_jax.from_onnx(path, mean=0.5, std=0.5)
  layout_file(path, ["b", 3, 32, 32], onnx.TensorProto.INT32)
  with pytest.raises(sane_jax.ModelError, match=r"tensor\(int32\); images are given as"):
    sane_jax.from_onnx(path)


@pytest.mark.onnx
def test_from_onnx_refusals(tmp_path, images):
  pytest.importorskip("onnxruntime")
  with pytest.raises(sane_jax.ModelError, match="no ONNX file"):
    sane_jax.from_onnx(tmp_path / "none.onnx")
  (tmp_path / "bad.onnx").write_bytes(b"not a model")
  with pytest.raises(sane_jax.ModelError, match="can't load"):
    sane_jax.from_onnx(tmp_path / "bad.onnx")
  onnx_file(tmp_path / "net.onnx", "b", True, size="side")
  with pytest.raises(sane_jax.ModelError, match="image_size=\\(height, width\\)"):
    sane_jax.from_onnx(tmp_path / "net.onnx")
  assert sane_jax.from_onnx(tmp_path / "net.onnx", image_size=24).image_size == (24, 24)
  with pytest.raises(sane_jax.ModelError, match="no output 'x'; it has embedding, colour"):
    sane_jax.from_onnx(tmp_path / "net.onnx", image_size=24, output="x")
  onnx_file(tmp_path / "four.onnx", 4, True)
  model = sane_jax.from_onnx(tmp_path / "four.onnx")
  with pytest.raises(sane_jax.ModelError, match="batches of 4"):
    sane_jax.Explainer(model).explain(*images[:2])


def test_own_model_by_name(tmp_path, monkeypatch, images):
  (tmp_path / "mine.py").write_text(
    "import sane_jax\n"
    "def make(image_size=16):\n"
    "  return sane_jax.from_jax(lambda p, x: x.mean((1, 2)), None, image_size=image_size)\n"
    "def wrong(image_size=16):\n"
    "  return 3\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  assert sane_jax.load_model("mine:make", image_size=24).image_size == (24, 24)
  with pytest.raises(sane_jax.ModelError, match=r"mine:wrong.*sane_jax\.Model"):
    sane_jax.load_model("mine:wrong")
  with pytest.raises(sane_jax.ModelError, match="nowhere:make"):
    sane_jax.load_model("nowhere:make")
  with pytest.raises(sane_jax.ModelError, match="mine:absent"):
    sane_jax.load_model("mine:absent")


def test_models_are_fitted_as_they_ask(rng):
  photo = rng.uniform(size=(40, 60, 3)).astype(np.float32)
  make = lambda x: x.mean(axis=(1, 2))  # noqa: E731
  for fit in ("crop", "stretch", "pad"):
    model = sane_jax.from_numpy(make, image_size=(20, 20), fit=fit)
    pixels = sane_jax.Explainer(model).photo(photo).pixels
    assert pixels.shape == (20, 20, 3)
    assert (pixels[0] == 1).all() == (fit == "pad")
