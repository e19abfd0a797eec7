"""Model files, initial parameters, checkpoints of torch: nothing lost, nothing mistaken."""

import importlib.util
import json
import pathlib
import struct
import time

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import safetensors.numpy

import sane_jax
from sane_jax.jobs import convert_weights
from sane_jax.models import embedding, resnet, weights

TRUNK = {"stage_sizes": [1, 1], "block": "basic", "width": 8, "stem": "small"}
TYPES = ["bags", "shoes", "tops"]
SPACES = [[3, 0, 1], [0, 4, 2], [1, 2, 5]]
DESCRIPTIONS = {
  "resnet": {"kind": "resnet", **TRUNK, "num_classes": 3, "image_size": 16},
  "similarity": {
    "kind": "similarity", **TRUNK, "dtype": "float32", "embedding_size": 6, "image_size": 16,
    "type_names": TYPES, "conditions": SPACES, "text_size": 4,
  },
  "one space": {
    "kind": "similarity", **TRUNK, "embedding_size": 6, "image_size": 16, "type_names": ["animal"],
    "conditions": [[0]],
  },
  "attribute": {"kind": "attribute", **TRUNK, "attribute_names": ["furry", "big"]},
  "on features": {"kind": "attribute", "feature_size": 5, "attribute_names": ["furry", "big"]},
}  # fmt: skip


def made(name, key=0):
  model = weights.make_model(DESCRIPTIONS[name])
  return model, weights.init_variables(model, key)


def write(path, data):
  path.write_bytes(data)
  return path


def flat(variables):
  return weights._flatten(variables)


def assert_equal(one, other):
  one, other = flat(one), flat(other)
  assert list(sorted(one)) == sorted(other)
  for name in one:
    np.testing.assert_array_equal(one[name], other[name], err_msg=name)


# Model files.


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_model_file_holds_all_of_a_model(name, tmp_path):
  _, variables = made(name)
  data = weights.to_bytes(variables, DESCRIPTIONS[name])
  assert data == weights.to_bytes(jax.tree.map(jnp.asarray, variables), DESCRIPTIONS[name])
  again, description = weights.read_model_file(write(tmp_path / "m.safetensors", data))
  assert description == DESCRIPTIONS[name]
  assert_equal(again, variables)
  assert weights.make_model(description) == weights.make_model(DESCRIPTIONS[name])


def test_settings_of_jobs_are_descriptions(tmp_path):
  settings = ml_collections.ConfigDict(DESCRIPTIONS["similarity"])
  settings.stage_sizes = (1, 1)
  _, variables = made("similarity")
  description = {k: settings[k] for k in settings}
  description |= {"conditions": np.array(SPACES, np.int32), "width": np.int64(8)}
  data = weights.to_bytes(variables, description)
  assert data == weights.to_bytes(variables, DESCRIPTIONS["similarity"])


def with_header(description):
  _, variables = made("similarity")
  return safetensors.numpy.save(
    flat(variables), metadata={"sane_jax": json.dumps(description)} if description else None
  )


@pytest.mark.parametrize(
  ("change", "match"),
  [
    ({"version": 2}, "version 2; this sane_jax reads version 1"),
    ({"kind": "ranking"}, r"of kind 'resnet' or 'similarity' or 'attribute' is needed; given"),
    ({"width": None}, "lacks width"),
    ({"embedding_size": None}, "lacks embedding_size"),
    ({"embedding_size": 7}, r"params/dense/bias as \(6,\), not \(7,\)"),
    ({"stage_sizes": [1, 2]}, "without a tensor .*params/trunk/layer2_1/conv1/kernel"),
    ({"stage_sizes": [1]}, "unused tensors .*params/trunk/layer2_0/conv1/kernel"),
    ({"type_names": ["bags"]}, "type_names has 1"),
    ({"dtype": "float64"}, "choose float32 or bfloat16"),
    ({"block": "wide"}, "choose one of basic, bottleneck"),
    ({"stage_sizes": "many"}, "can't be read as a model"),
  ],
)
def test_descriptions_of_another_model_are_refused(change, match, tmp_path):
  description = {"version": 1, **DESCRIPTIONS["similarity"], **change}
  description = {k: v for k, v in description.items() if v is not None}
  path = write(tmp_path / "m.safetensors", with_header(description))
  with pytest.raises(ValueError, match=rf"m\.safetensors.*{match}"):
    weights.read_model_file(path)


def test_files_that_are_no_model(tmp_path):
  path = write(tmp_path / "m.safetensors", with_header(None))
  with pytest.raises(ValueError, match=r"convert it first: .*convert_weights"):
    weights.read_model_file(path)
  whole = with_header({"version": 1, **DESCRIPTIONS["similarity"]})
  for length in (0, 7, 100, len(whole) - 1):
    with pytest.raises(ValueError, match=r"m\.safetensors is damaged or no safetensors file"):
      weights.read_model_file(write(path, whole[:length]))
  with pytest.raises(ValueError, match="damaged"):
    weights.read_model_file(write(path, struct.pack("<Q", 2**62) + b"{}"))
  with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
    weights.read_model_file(tmp_path / "none.safetensors")


def test_variables_of_another_model_are_not_written():
  _, variables = made("similarity")
  with pytest.raises(ValueError, match=r"unused tensors .*type_masks"):
    weights.to_bytes(variables, DESCRIPTIONS["one space"])


# Initial parameters.


@pytest.mark.parametrize(
  "model",
  [
    resnet.ResNet((1, 1), "bottleneck", 16, num_classes=200),
    embedding.SimilarityModel(resnet.ResNet((1, 1), width=16), 32, 40, text_size=50),
    weights.make_attribute_model({**DESCRIPTIONS["attribute"], "attribute_names": ["a"] * 50}),
  ],
  ids=["resnet", "similarity", "attribute"],
)
def test_initial_parameters_are_distributed_as_those_of_flax(model):
  theirs = flat(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3))))
  ours = flat(weights.init_variables(model, 0))
  assert sorted(ours) == sorted(theirs)
  for name, value in theirs.items():
    value, mine = np.asarray(value), ours[name]
    assert mine.shape == value.shape
    assert mine.dtype == value.dtype == np.float32
    spread = value.std()
    if spread == 0:
      np.testing.assert_array_equal(mine, value)
      continue
    error = spread / np.sqrt(value.size)  # of a mean; two of them, and of the spreads
    assert abs(mine.mean() - value.mean()) < 7 * error, name
    assert abs(mine.std() - spread) < 7 * error, name
    # A uniform and a normal of one spread differ in their largest values.
    if value.size > 500:
      np.testing.assert_allclose(abs(mine).max() / spread, abs(value).max() / spread, rtol=0.35)


def test_initial_parameters_follow_the_key():
  _, variables = made("similarity")
  assert_equal(variables, made("similarity")[1])
  model = weights.make_model(DESCRIPTIONS["similarity"])
  new, old = jax.random.key(3), jax.random.PRNGKey(3)
  assert_equal(weights.init_variables(model, new), weights.init_variables(model, old))
  other = weights.init_variables(model, 1)
  kernel = "params/trunk/conv1/kernel"
  assert not np.allclose(flat(other)[kernel], flat(variables)[kernel])
  assert_equal(weights.init_variables(model, 1, 32), other)
  # A head more leaves the rest as it was, and no two arrays share their numbers.
  plain = weights.init_variables(weights.make_model(DESCRIPTIONS["one space"]), 0)
  np.testing.assert_array_equal(flat(plain)[kernel], flat(variables)[kernel])
  blocks = variables["params"]["trunk"]["layer1_0"]
  assert not np.allclose(blocks["conv1"]["kernel"], blocks["conv2"]["kernel"])


def test_initial_parameters_take_no_compiling():
  start = time.perf_counter()
  variables = weights.init_variables(resnet.ResNet50(num_classes=1000), 0)
  assert time.perf_counter() - start < 15  # 2 s where nothing else runs, 15 s by flax
  assert sum(a.size for a in jax.tree.leaves(variables["params"])) == 25_557_032  # torchvision's


# Trunks from other models.


def test_a_trunk_from_a_deeper_network(tmp_path):
  deep = {**DESCRIPTIONS["resnet"], "stage_sizes": [1, 1, 1]}
  source = weights.init_variables(weights.make_model(deep), 7)
  path = write(tmp_path / "deep.safetensors", weights.to_bytes(source, deep))
  for name in ("similarity", "attribute"):
    _, variables = made(name)
    filled, unneeded = weights.graft_trunk(variables, path)
    for target, value in flat(filled).items():
      collection, _, rest = target.partition("/")
      trunk = rest.startswith("trunk/")
      expected = flat(source)[f"{collection}/{rest[6:]}"] if trunk else flat(variables)[target]
      np.testing.assert_array_equal(value, expected)
    assert {n.split("/")[1] for n in unneeded} == {"layer3_0", "fc"}
    assert len(unneeded) + sum("/trunk/" in n for n in flat(filled)) == len(flat(source))


def test_a_trunk_from_a_trained_model(tmp_path):
  _, source = made("similarity", key=7)
  path = write(tmp_path / "m.safetensors", weights.to_bytes(source, DESCRIPTIONS["similarity"]))
  _, variables = made("attribute")
  filled, unneeded = weights.graft_trunk(variables, path)
  assert_equal(filled["params"]["trunk"], source["params"]["trunk"])
  assert_equal(filled["batch_stats"], source["batch_stats"])
  assert {n.split("/")[1] for n in unneeded} == {"dense", "text_dense", "type_masks"}


@pytest.mark.parametrize(
  ("change", "match"),
  [
    ({"stage_sizes": [2, 1]}, "unused tensors .*layer1_1"),  # a deeper stage is another trunk
    ({"stage_sizes": [1]}, "without a tensor .*layer2_0"),
    ({"block": "bottleneck"}, "unused tensors .*layer1_0/conv3"),
    ({"width": 4}, r"conv1/kernel as \(3, 3, 3, 4\), not \(3, 3, 3, 8\)"),
    ({"stem": "imagenet"}, r"conv1/kernel as \(7, 7, 3, 8\)"),
  ],
)
def test_other_trunks_are_refused(change, match, tmp_path):
  description = {**DESCRIPTIONS["resnet"], **change}
  source = weights.init_variables(weights.make_model(description), 0)
  path = write(tmp_path / "m.safetensors", weights.to_bytes(source, description))
  with pytest.raises(ValueError, match=rf"weights for this trunk.*{match}"):
    weights.graft_trunk(made("similarity")[1], path)
  with pytest.raises(ValueError, match="no trunk"):
    weights.graft_trunk(made("on features")[1], path)


# Trained and converted models as models to explain.


@pytest.fixture
def similarity_file(tmp_path):
  _, variables = made("similarity")
  data = weights.to_bytes(variables, DESCRIPTIONS["similarity"])
  return str(write(tmp_path / "typed.safetensors", data))


@pytest.fixture
def images(rng):
  return rng.uniform(size=(3, 16, 16, 3)).astype(np.float32)


@pytest.mark.parametrize("condition", [2, "2", "shoes,tops", "tops, shoes", ("tops", "shoes")])
def test_a_typed_model_in_one_of_its_spaces(similarity_file, images, condition):
  model = sane_jax.load_model(similarity_file, condition=condition)
  assert model.image_size == (16, 16)
  assert (model.fit, model.crop_fraction) == ("crop", 1.0)
  out = np.asarray(model.embed(model.params, images))
  net, variables = made("similarity")
  raw = np.asarray(net.apply(variables, images))
  masked = raw * np.maximum(variables["params"]["type_masks"][2], 0)
  expected = masked / np.linalg.norm(masked, axis=1, keepdims=True)
  np.testing.assert_allclose(out, expected, atol=1e-5)


def test_spaces_and_files_of_one_architecture_share_a_program(similarity_file):
  first = sane_jax.load_model(similarity_file, condition=0)
  second = sane_jax.load_model(similarity_file, condition="tops,tops", image_size=24)
  assert first.embed is second.embed
  assert second.image_size == (24, 24)
  assert first.name == "typed in space 0"
  assert second.name == "typed in space tops,tops"


@pytest.mark.parametrize(
  ("condition", "match"),
  [
    (None, "one of 6 spaces: give condition=INDEX, 0 to 5, or two types.*of bags, shoes, tops"),
    (6, "no space 6: give condition=INDEX, 0 to 5"),
    (-1, "no space -1"),
    ("tops,hats", r"no space \['tops', 'hats'\]"),
    ("tops", r"no space \['tops'\]"),
    (("tops", "shoes", "bags"), "no space"),
    (1.5, r"no space 1\.5"),
  ],
)
def test_spaces_that_are_none(similarity_file, condition, match):
  with pytest.raises(sane_jax.ModelError, match=match):
    sane_jax.load_model(similarity_file, condition=condition)


def test_models_of_one_space(tmp_path, images):
  net, variables = made("one space")
  data = weights.to_bytes(variables, DESCRIPTIONS["one space"])
  path = str(write(tmp_path / "plain.safetensors", data))
  model = sane_jax.load_model(path, fit="pad")
  assert model.fit == "pad"
  raw = np.asarray(net.apply(variables, images))
  expected = raw / np.linalg.norm(raw, axis=1, keepdims=True)
  np.testing.assert_allclose(model.embed(model.params, images), expected, atol=1e-5)
  with pytest.raises(sane_jax.ModelError, match="one space"):
    sane_jax.load_model(path, condition=3)
  with pytest.raises(sane_jax.ModelError, match="efficientnet_lite0 has one space"):
    sane_jax.load_model("efficientnet_lite0", condition=3)


def test_a_resnet_is_its_pooled_features(tmp_path, images):
  net, variables = made("resnet")
  data = weights.to_bytes(variables, DESCRIPTIONS["resnet"])
  model = sane_jax.load_model(str(write(tmp_path / "r.safetensors", data)), image_size=32)
  assert model.crop_fraction == 0.5
  out = model.embed(model.params, images)
  np.testing.assert_allclose(out, np.asarray(net.apply(variables, images)).mean((1, 2)), atol=1e-5)


def test_files_that_are_no_similarity_model(tmp_path):
  _, variables = made("attribute")
  path = tmp_path / "a.safetensors"
  write(path, weights.to_bytes(variables, DESCRIPTIONS["attribute"]))
  with pytest.raises(sane_jax.ModelError, match="kind 'attribute', which compares no images"):
    sane_jax.load_model(str(path))
  with pytest.raises(sane_jax.ModelError, match="damaged"):
    sane_jax.load_model(str(write(path, b"nothing")))
  with pytest.raises(sane_jax.ModelError, match="no model file"):
    sane_jax.load_model(str(tmp_path / "none.safetensors"))


# Files of torch, by NumPy alone: names as torchvision has them.


def torch_state(sizes=(1, 1), width=4, outputs=3, seed=0):
  """The state_dict of a ResNet of basic blocks; every number its own."""
  rng = np.random.default_rng(seed)

  def norm(name, n):
    parts = {"weight": n, "bias": n, "running_mean": n, "running_var": n}
    return {f"{name}.{k}": rng.uniform(size=v) for k, v in parts.items()} | {
      f"{name}.num_batches_tracked": np.array(5)
    }

  state = {"conv1.weight": rng.normal(size=(width, 3, 7, 7)), **norm("bn1", width)}
  before = width
  for i, count in enumerate(sizes):
    after = width * 2**i
    for j in range(count):
      block = f"layer{i + 1}.{j}"
      state[f"{block}.conv1.weight"] = rng.normal(size=(after, before, 3, 3))
      state |= norm(f"{block}.bn1", after)
      state[f"{block}.conv2.weight"] = rng.normal(size=(after, after, 3, 3))
      state |= norm(f"{block}.bn2", after)
      if before != after:
        state[f"{block}.downsample.0.weight"] = rng.normal(size=(after, before, 1, 1))
        state |= norm(f"{block}.downsample.1", after)
      before = after
  if outputs:
    state |= {"fc.weight": rng.normal(size=(outputs, before)), "fc.bias": rng.normal(size=outputs)}
  return {k: np.asarray(v, np.float32 if v.ndim else np.int64) for k, v in state.items()}


def prefixed(prefix, state):
  return {prefix + k: v for k, v in state.items()}


def save(path, state):
  return write(path, safetensors.numpy.save(state))


@pytest.mark.parametrize(
  "prefix", ["", "module.", "module.pre.", "backbone.", "encoder.", "a.b.c.d."]
)
def test_any_prefix(prefix, tmp_path):
  state = torch_state()
  out = weights.convert(save(tmp_path / "m.safetensors", prefixed(prefix, state)))
  assert out.description == {
    "kind": "resnet", "stage_sizes": [1, 1], "block": "basic", "width": 4, "stem": "imagenet",
    "num_classes": 3, "image_size": 224, "dtype": "float32",
  }  # fmt: skip
  params = out.variables["params"]
  np.testing.assert_array_equal(params["fc"]["kernel"], state["fc.weight"].T)
  ours, theirs = params["layer2_0"], state["layer2.0.conv1.weight"]
  assert ours["conv1"]["kernel"][0, 2, 3, 5] == theirs[5, 3, 0, 2]
  theirs = state["layer2.0.downsample.0.weight"]
  assert ours["downsample_conv"]["kernel"][3, 5] == theirs[5, 3, 0, 0]
  statistics = out.variables["batch_stats"]["layer2_0"]["downsample_bn"]
  np.testing.assert_array_equal(statistics["var"], state["layer2.0.downsample.1.running_var"])
  np.testing.assert_array_equal(statistics["mean"], state["layer2.0.downsample.1.running_mean"])
  counters = {k for k in prefixed(prefix, state) if k.endswith("num_batches_tracked")}
  assert set(out.unneeded) == counters
  assert {*out.used, *out.unneeded} == set(prefixed(prefix, state))
  assert len(out.used) == len(jax.tree.leaves(out.variables))


@pytest.mark.parametrize(
  ("change", "match"),
  [
    ({"bn1.bias": None}, r"without a tensor \['params/bn1/bias \(bn1\.bias\)'\]"),
    ({"fc.bias": None}, r"without a tensor \['params/fc/bias \(fc\.bias\)'\]"),
    ({"layer2.0.se.weight": np.ones(3)}, r"unused tensors \['layer2\.0\.se\.weight'\]"),
    ({"layer3.0.extra.bias": np.ones(3)}, r"unused tensors \['layer3\.0\.extra\.bias'\]"),
    ({"bn1.bias": np.ones(5)}, r"bn1\.bias as \(5,\), not \(4,\)"),
    ({"layer1.0.conv1.weight": np.ones((4, 2, 3, 3))}, r"as \(3, 3, 2, 4\)"),  # grouped
    ({"bn1.bias": np.full(4, np.nan)}, r"bn1\.bias has values that are NaN"),
    ({"conv1.weight": None}, "no ResNet is in it"),
    ({"conv1.0.weight": np.ones(1), "conv1.weight": None}, "no ResNet is in it"),  # a deep stem
    ({"metric_branch.weight": np.ones((1, 3))}, "learned metric"),
    (prefixed("teacher.", torch_state()), r"several networks, under \['', 'teacher\.'\]"),
  ],
)
def test_every_tensor_is_accounted_for(change, match, tmp_path):
  state = {k: v for k, v in (torch_state() | change).items() if v is not None}
  state = {k: np.asarray(v, np.float32) for k, v in state.items()}
  with pytest.raises(ValueError, match=rf"m\.safetensors can't be converted: .*{match}"):
    weights.convert(save(tmp_path / "m.safetensors", state))


def test_all_that_is_wrong_is_listed_at_once(tmp_path):
  state = torch_state() | {"extra.a": np.ones(1), "extra.b": np.ones(1)}
  del state["bn1.bias"], state["layer1.0.bn2.weight"]
  with pytest.raises(ValueError, match="converted") as error:
    weights.convert(save(tmp_path / "m.safetensors", state))
  for name in ("extra.a", "extra.b", "bn1.bias", "layer1.0.bn2.weight"):
    assert name in str(error.value)


def test_the_kind_that_is_asked_for(tmp_path):
  path = save(tmp_path / "m.safetensors", torch_state())
  assert weights.convert(path, "resnet").description["kind"] == "resnet"
  with pytest.raises(ValueError, match="holds a model of kind 'resnet', not 'attribute'"):
    weights.convert(path, "attribute")
  with pytest.raises(ValueError, match="is one of auto, resnet, similarity, attribute"):
    weights.convert(path, "best")
  out = weights.convert(path, "similarity")  # its last layer is the embedding
  assert out.description["embedding_size"] == 3
  np.testing.assert_array_equal(
    out.variables["params"]["dense"]["kernel"], torch_state()["fc.weight"].T
  )


def job(source, target, kind="auto"):
  return ml_collections.ConfigDict(
    {"convert": {"source": str(source), "target": str(target), "kind": kind}}
  )


def test_the_job(tmp_path, capsys):
  source = save(tmp_path / "source.safetensors", prefixed("module.", torch_state()))
  target = tmp_path / "new" / "model.safetensors"
  convert_weights.run(job(source, target))
  out = capsys.readouterr().out
  assert "a resnet model, basic blocks (1, 1), width 4; 32 tensors used" in out
  assert "6 (module.bn1.num_batches_tracked, " in out
  variables, _ = weights.read_model_file(target)
  assert_equal(variables, weights.convert(source).variables)
  first = target.read_bytes()
  convert_weights.run(job(source, target))
  assert target.read_bytes() == first
  assert [p.name for p in target.parent.iterdir()] == [target.name]
  filled, _ = weights.graft_trunk(
    weights.init_variables(embedding.SimilarityModel(resnet.ResNet((1, 1), width=4)), 0),
    source,  # without converting it first
  )
  np.testing.assert_array_equal(
    filled["params"]["trunk"]["bn1"]["scale"], variables["params"]["bn1"]["scale"]
  )


@pytest.mark.parametrize(
  ("source", "target", "match"),
  [
    ("", "m.safetensors", "give the checkpoint with --config.convert.source"),
    ("s.safetensors", "", "the file to write with --config.convert.target"),
    ("s.safetensors", "m.pth", "ends in .safetensors"),
    ("s.safetensors", "s.safetensors", "is the source itself"),
    ("ours.safetensors", "m.safetensors", "a model file of sane_jax already"),
    ("none.pth", "m.safetensors", "none.pth"),
    ("torn.pth", "m.safetensors", "torn.pth .*cannot be read"),
  ],
)
def test_jobs_that_cannot_be_done(source, target, match, tmp_path):
  save(tmp_path / "s.safetensors", torch_state())
  _, variables = made("resnet")
  write(tmp_path / "ours.safetensors", weights.to_bytes(variables, DESCRIPTIONS["resnet"]))
  write(tmp_path / "torn.pth", b"PK\x03\x04")
  files = set(tmp_path.iterdir())
  full = [str(tmp_path / name) if name else "" for name in (source, target)]
  with pytest.raises((ValueError, OSError), match=match):
    convert_weights.run(job(*full))
  assert set(tmp_path.iterdir()) == files


# Files written by torch: the models that the paper's authors released, in structure.


@pytest.fixture
def torch():
  return pytest.importorskip("torch")


@pytest.fixture(params=["zip", "legacy"])
def saved(request, torch, tmp_path):
  def save_checkpoint(tree):
    path = tmp_path / "model_best.pth.tar"
    torch.save(tree, path, _use_new_zipfile_serialization=request.param == "zip")
    return path

  return save_checkpoint


def checkpoint_of(torch, net):
  """As their training scripts write it, an optimizer included."""
  optimizer = torch.optim.Adam(net.parameters())
  sum(p.sum() for p in net.parameters()).backward()
  optimizer.step()
  return {
    "epoch": 7,
    "state_dict": net.state_dict(),
    "best_prec1": np.float64(1.43),
    "best_fitb": np.float32(0.57),
    "optimizer": optimizer.state_dict(),
  }


@pytest.mark.torch
@pytest.mark.parametrize("spaces", [66, 0])
def test_the_released_similarity_models(torch, saved, spaces, rng, tmp_path):
  from tests.models import torch_resnet

  net = torch_resnet.Triplet(spaces=spaces)
  checkpoint = checkpoint_of(torch, net)
  torch_resnet.randomize(net)
  source = saved(checkpoint)
  out = weights.convert(source)
  assert out.description["kind"] == "similarity"
  assert out.description["num_conditions"] == max(spaces, 1)
  assert {k.split(".")[0] for k in out.unneeded if not k.endswith("tracked")} == {
    "text_branch", "epoch", "best_prec1", "best_fitb", "optimizer",
  }  # fmt: skip
  assert {*out.used, *out.unneeded} >= set(net.state_dict())
  target = tmp_path / "released.safetensors"
  convert_weights.run(job(source, target))
  images = rng.uniform(size=(2, 112, 112, 3)).astype(np.float32)
  condition = 17 if spaces else None
  with torch.inference_mode():
    index = torch.tensor([17, 17]) if spaces else None
    expected = net.embeddingnet(torch.from_numpy(images), index).numpy()
  model = sane_jax.load_model(str(target), condition=condition)
  assert model.image_size == (112, 112)
  ours = np.asarray(jax.jit(model.embed)(model.params, images))
  np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)
  assert abs(expected[0] - expected[1]).max() > 1e-3  # 1e-5 tells images apart


@pytest.mark.torch
def test_the_released_attribute_model(torch, saved, rng):
  from tests.models import torch_resnet

  net = torch_resnet.randomize(torch_resnet.Attributes())
  out = weights.convert(saved({"state_dict": net.state_dict(), "best_prec1": np.float64(0.5)}))
  assert out.description["attribute_names"] == [f"attribute {i}" for i in range(5)]
  images = rng.uniform(size=(2, 48, 48, 3)).astype(np.float32)
  with torch.inference_mode():
    expected = net(torch.from_numpy(images)).permute(0, 2, 3, 1).numpy()
  model = weights.make_attribute_model(out.description)
  ours = jax.jit(model.apply)(out.variables, images)
  np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)


@pytest.mark.torch
def test_a_learned_metric_is_refused(torch, saved):
  from tests.models import torch_resnet

  net = torch_resnet.Triplet(spaces=3, learned_metric=True)
  with pytest.raises(ValueError, match="learned metric"):
    weights.convert(saved({"state_dict": net.state_dict()}))


@pytest.mark.torch
def test_checkpoints_of_other_shapes(torch, saved):
  from tests.models import torch_resnet

  state = torch_resnet.ResNet((1,), width=4, outputs=2).state_dict()
  assert weights.convert(saved(state)).description["stage_sizes"] == [1]
  assert weights.convert(saved({"model": state, "args": {"lr": 0.1}})).unneeded["args"]
  with pytest.raises(ValueError, match=r"tensors under \['queue'\] beside 'model'"):
    weights.convert(saved({"model": state, "queue": torch.ones(3)}))
  with pytest.raises(ValueError, match=r"entries \['weights'\], none of which is a state_dict"):
    weights.convert(saved({"weights": [1, 2]}))
  with pytest.raises(ValueError, match="holds a list"):
    weights.convert(saved([torch.ones(3)]))


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_safetensors_written_by_torch(torch, tmp_path, dtype):
  from safetensors import torch as writer

  from tests.models import torch_resnet

  net = torch_resnet.ResNet((1,), basic=False, width=4, outputs=2)
  state = {k: v.to(getattr(torch, dtype)) for k, v in net.state_dict().items()}
  writer.save_file(state, tmp_path / "m.safetensors", metadata={"format": "pt"})
  out = weights.convert(tmp_path / "m.safetensors")
  assert out.description["block"] == "bottleneck"
  expected = state["layer1.0.conv2.weight"].float().numpy().transpose(2, 3, 1, 0)
  np.testing.assert_array_equal(out.variables["params"]["layer1_0"]["conv2"]["kernel"], expected)


def imgsim_checkpoint():
  spec = importlib.util.find_spec("imgsim")  # finds the folder without importing the package
  if spec is None or not spec.submodule_search_locations:
    pytest.skip("the package imgsim, with a trained ResNet-50, is not installed")
  return pathlib.Path(spec.submodule_search_locations[0]) / "model.pth"


@pytest.mark.torch
def test_a_trained_resnet50(torch):
  from skimage import data

  from tests.models import torch_resnet

  path = imgsim_checkpoint()
  out = weights.convert(path)
  assert out.description["stage_sizes"] == [3, 4, 6, 3]
  assert out.description["num_classes"] == 768
  net = torch_resnet.ResNet((3, 4, 6, 3), basic=False, outputs=768).eval()
  state = torch.load(path, map_location="cpu", weights_only=True)
  net.load_state_dict({k.removeprefix("module.pre."): v for k, v in state.items()})
  images = np.stack([data.astronaut()[:128, 150:278], data.coffee()[100:228, 200:328]])
  images = images.astype(np.float32) / 255
  with torch.inference_mode():
    maps = [m.permute(0, 2, 3, 1).numpy() for m in net.stages(torch.from_numpy(images))]
    logits = net(torch.from_numpy(images)).numpy()
  ours = weights.make_resnet(out.description)
  stages = jax.jit(lambda v, x: ours.apply(v, x, method="stages"))(out.variables, images)
  for one, other in zip(stages, maps, strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)
    assert np.abs(other).max() > 0.5
  pooled = np.asarray(stages[-1]).mean((1, 2))
  layer = out.variables["params"]["fc"]
  np.testing.assert_allclose(pooled @ layer["kernel"] + layer["bias"], logits, rtol=0, atol=1e-4)
