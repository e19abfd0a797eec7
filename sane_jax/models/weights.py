"""Model files, initial parameters, and parameters from files of torch.

A model file is a safetensors file. Its tensors are the flax variables under flattened names such as
`params/trunk/layer1_0/conv1/kernel`; a description in its header, JSON, tells the architecture:

    kind            'resnet', 'similarity' or 'attribute'
    stage_sizes, block, width, stem, dtype      of the trunk; see `ResNet`
    num_classes     'resnet': outputs of its last layer, 0 for none
    embedding_size, image_size                  'similarity'
    type_names [t], conditions [t t]            'similarity': which space compares two types
    num_conditions  'similarity': how many spaces, where there are no type_names
    text_size       'similarity': hashed words, 0 for none
    attribute_names [a]                         'attribute'
    feature_size    'attribute' without a trunk: channels of the feature maps it is given

Further fields are kept as they are.
"""

import json
import math
import os
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import linen as nn
from flax import traverse_util

from sane_jax.models import embedding as embedding_lib
from sane_jax.models import torch_file
from sane_jax.models.attribute import AttributeModel
from sane_jax.models.embedding import SimilarityModel
from sane_jax.models.resnet import BlockName, ResNet, Stem
from sane_jax.runs import files, settings

Variables = dict[str, Any]  # the collections 'params' and 'batch_stats'
Description = dict[str, Any]

VERSION = 1
_HEADER = "sane_jax"
_CONVERT = "python -m sane_jax.main --config=configs/polyvore.py --config.job=convert_weights"
_TRUNK_FIELDS = ("stage_sizes", "block", "width", "stem")


# --- architectures --------------------------------------------------------------------------------


def make_resnet(description: Mapping[str, Any]) -> ResNet:
  """The network that a description tells of, or its trunk.

  Raises:
    ValueError: a field is missing or has no meaning.
  """
  fields = _take(description, *_TRUNK_FIELDS)
  fields["stage_sizes"] = tuple(map(int, fields["stage_sizes"]))
  classes = description.get("num_classes", 0) if description.get("kind") == "resnet" else 0
  return ResNet(**fields, num_classes=classes, dtype=_dtype(description))


def make_similarity_model(description: Mapping[str, Any]) -> SimilarityModel:
  """The same for kind 'similarity'."""
  _check_kind(description, "similarity")
  (size,) = _take(description, "embedding_size").values()
  table = np.asarray(description.get("conditions", ()), int)
  spaces = int(table.max()) + 1 if table.size else int(description.get("num_conditions", 1))
  names = len(description.get("type_names", ()))
  if table.size and table.shape != (names, names):
    raise ValueError(f"conditions has shape {table.shape}; type_names has {names} types")
  return SimilarityModel(
    make_resnet(description), size, spaces, text_size=description.get("text_size", 0)
  )


def make_attribute_model(description: Mapping[str, Any]) -> AttributeModel:
  """The same for kind 'attribute'; with a `feature_size`, without a trunk."""
  _check_kind(description, "attribute")
  (names,) = _take(description, "attribute_names").values()
  size = description.get("feature_size", 0)
  trunk = None if size else make_resnet(description)
  return AttributeModel(trunk, len(names), size, dtype=_dtype(description))


_MAKERS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
  "resnet": make_resnet,
  "similarity": make_similarity_model,
  "attribute": make_attribute_model,
}

CONVERSIONS = ("auto", *_MAKERS)  # what a source may be


def make_model(description: Mapping[str, Any]) -> ResNet | SimilarityModel | AttributeModel:
  """The model of whatever kind."""
  _check_kind(description, *_MAKERS)
  return _MAKERS[description["kind"]](description)


def _check_kind(description: Mapping[str, Any], *kinds: str) -> None:
  if (kind := description.get("kind")) not in kinds:
    raise ValueError(f"a model of kind {' or '.join(map(repr, kinds))} is needed; given {kind!r}")


def _take(description: Mapping[str, Any], *names: str) -> dict[str, Any]:
  if missing := [name for name in names if name not in description]:
    raise ValueError(
      f"the description of the model lacks {', '.join(missing)}; it has {', '.join(description)}"
    )
  return {name: description[name] for name in names}


def _dtype(description: Mapping[str, Any]) -> Any:
  name = description.get("dtype", "float32")
  if name not in ("float32", "bfloat16"):
    raise ValueError(f"dtype is {name!r}; choose float32 or bfloat16")
  return jnp.dtype(name)


# --- initial parameters ---------------------------------------------------------------------------


def _abstract(model: nn.Module, inputs: int | tuple[int, ...] | None = None) -> dict[str, Any]:
  """{flattened name: shape and type} of the variables; nothing is computed."""
  if inputs is None:
    channels = model.feature_size if isinstance(model, AttributeModel) else 0
    inputs = (1, 4, 4, channels) if channels else 32
  shape = (1, inputs, inputs, 3) if isinstance(inputs, int) else inputs
  images = jax.ShapeDtypeStruct(shape, jnp.float32)
  return _flatten(jax.eval_shape(model.init, jax.random.key(0), images))


def _flatten(variables: Mapping[str, Any]) -> dict[str, Any]:
  return traverse_util.flatten_dict(dict(variables), sep="/")


def _unflatten(flat: Mapping[str, Any]) -> Variables:
  return traverse_util.unflatten_dict(dict(flat), sep="/")


def init_variables(
  model: nn.Module, key: Any, inputs: int | tuple[int, ...] | None = None
) -> Variables:
  """What `model.init` gives, in distribution, without its half minute of compiling.

  Convolutions of the trunk N(0, 2 / fan_out), other kernels and their biases
  U(±1 / √fan_in), normalisations 1 and 0, type masks N(0.9, 0.7²). Each array has a stream of
  its own from the key and its name, so a layer more leaves the others as they were.

  Args:
    model: a `ResNet`, `SimilarityModel` or `AttributeModel`.
    key: an integer or a key of `jax.random`.
    inputs: side of the images in pixels, or the shape of the inputs; the shapes of the variables do
      not depend on it.

  Returns:
    The collections 'params' and 'batch_stats', float32 numpy arrays.
  """
  flat = _abstract(model, inputs)
  return _unflatten({name: _draw(name, flat, _seed(key)) for name in flat})


def _seed(key: Any) -> list[int]:
  if isinstance(key, int | np.integer):
    return [int(key) % 2**64]
  if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    key = jax.random.key_data(key)
  return np.asarray(key).ravel().tolist()


def _draw(name: str, flat: Mapping[str, Any], seed: list[int]) -> np.ndarray:
  shape, (*_, layer, leaf) = flat[name].shape, ("", *name.split("/"))
  rng = np.random.default_rng([zlib.crc32(name.encode()), *seed])
  kernel = name.removesuffix(leaf) + "kernel"
  if leaf in ("scale", "var"):
    return np.ones(shape, np.float32)
  if leaf == "mean" or (leaf == "bias" and kernel not in flat):
    return np.zeros(shape, np.float32)
  if leaf == "type_masks":
    drawn = rng.standard_normal(shape, np.float32) * np.float32(embedding_lib.MASK_STD)
    return drawn + np.float32(embedding_lib.MASK_MEAN)
  if leaf not in ("kernel", "bias"):
    raise ValueError(f"no rule draws {name} {shape}; there is one for ResNet and the heads on it")
  if layer.startswith(("conv", "downsample_conv")):
    fan_out = math.prod(shape) // shape[-2]
    return rng.standard_normal(shape, np.float32) * np.float32(math.sqrt(2 / fan_out))
  bound = np.float32(1 / math.sqrt(math.prod(flat[kernel].shape[:-1])))
  return (2 * rng.random(shape, np.float32) - 1) * bound


# --- model files ----------------------------------------------------------------------------------


def to_bytes(variables: Mapping[str, Any], description: Mapping[str, Any]) -> bytes:
  """A model file. Equal variables and descriptions give equal bytes.

  Raises:
    ValueError: the variables are not those of the model described, or the description is no JSON.
  """
  flat = {k: np.ascontiguousarray(v) for k, v in _flatten(variables).items()}
  _check_variables(flat, description)
  header = json.dumps({"version": VERSION, **description}, default=_plain, sort_keys=True)
  return safetensors.numpy.save(flat, metadata={_HEADER: header})


def _plain(value: Any) -> Any:
  """NumPy's numbers and arrays, and settings' tuples, as JSON has them."""
  return value.tolist() if isinstance(value, np.ndarray | np.generic) else list(value)


def read_model_file(path: str | os.PathLike[str]) -> tuple[Variables, Description]:
  """The variables, numpy arrays, and the description that `to_bytes` was given.

  Raises:
    ValueError: damaged, no model file, of a later version, or its tensors are not those of the
      model that it describes; says what to do.
    OSError: it can't be opened.
  """
  flat, metadata = _read_safetensors(path)
  if _HEADER not in metadata:
    raise ValueError(
      f"{os.fspath(path)} holds tensors and no description of their model; convert it first:"
      f" {_CONVERT} --config.convert.source={os.fspath(path)} --config.convert.target=FILE"
    )
  try:
    description = json.loads(metadata[_HEADER])
    version = description.pop("version")
    if version != VERSION:
      raise ValueError(f"it is of version {version}; this sane_jax reads version {VERSION}")
    _check_variables(flat, description)
  except Exception as error:  # whatever a senseless description makes flax and JAX raise
    raise ValueError(
      f"{os.fspath(path)} can't be read as a model: {str(error)[:2000]}. Convert or train it again"
      " with this version of sane_jax"
    ) from error
  return _unflatten(flat), description


def _check_variables(flat: Mapping[str, Any], description: Mapping[str, Any]) -> None:
  model = make_model(description)
  # A network that is described takes its time to trace, however large; each block has tensors.
  trunk = model if isinstance(model, ResNet) else model.trunk
  if trunk is not None and sum(trunk.stage_sizes) > len(flat):
    raise ValueError(f"it describes {sum(trunk.stage_sizes)} blocks and has {len(flat)} tensors")
  wanted = _abstract(model)
  _check_accounts(
    unused=[name for name in flat if name not in wanted],
    unfilled=[name for name in wanted if name not in flat],
    misshapen=[
      f"{name} as {flat[name].shape}, not {array.shape}"
      for name, array in wanted.items()
      if name in flat and flat[name].shape != array.shape
    ],
    what=f"the variables of the {description['kind']} model described",
  )


def _check_accounts(*, unused: list, unfilled: list, misshapen: list, what: str) -> None:
  if unused or unfilled or misshapen:
    raise ValueError(
      f"these are not {what}: unused tensors {unused}, parameters without a tensor {unfilled},"
      f" other shapes {misshapen}"
    )


def _read_safetensors(
  path: str | os.PathLike[str],
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  local = files.local_copy(path)
  files.check_regular(local)
  with local.open("rb"):
    pass  # an OSError that names the file; safetensors' own do not
  try:
    with safetensors.safe_open(os.fspath(local), framework="numpy") as file:
      return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
  except Exception as error:  # of types that numpy does not have, each its own
    raise ValueError(
      f"{os.fspath(path)} is damaged or no safetensors file ({error}); copy or download it again"
    ) from error


# --- a trunk from another model -------------------------------------------------------------------


def graft_trunk(
  variables: Mapping[str, Any], path: str | os.PathLike[str]
) -> tuple[Variables, tuple[str, ...]]:
  """The variables with their trunk from a file: a model file, or one that `convert` reads.

  Args:
    variables: of a `SimilarityModel` or an `AttributeModel` with a trunk.
    path: a ResNet, or another model with a trunk. It may have more stages, and layers after them.

  Returns:
    New variables, and the names in the file that were not needed: later stages, last layers.

  Raises:
    ValueError: the file's trunk is another one; lists all that differs.
  """
  if _is_safetensors(path) and _HEADER in _read_safetensors(path)[1]:
    found, description = read_model_file(path)
  else:
    found, description, *_ = convert(path)
  source, target = _flatten(found), _flatten(variables)
  prefix = "" if description["kind"] == "resnet" else "trunk/"
  names = {  # of the target: of the source
    name: name.replace("/trunk/", f"/{prefix}", 1) for name in target if "/trunk/" in name
  }
  if not names:
    raise ValueError("these variables have no trunk that could be filled from a file")
  depth = max(int(m[1]) for m in map(re.compile(r"/layer(\d+)_").search, names) if m)
  used = set(names.values())
  unneeded = [name for name in source if name not in used]

  def may_be_left(name: str) -> bool:
    module = name.split("/", 1)[1].removeprefix(prefix)
    stage = re.match(r"layer(\d+)_", module)
    return int(stage[1]) > depth if stage else not module.startswith(("conv1/", "bn1/"))

  _check_accounts(
    unused=[name for name in unneeded if not may_be_left(name)],
    unfilled=[name for name, other in names.items() if other not in source],
    misshapen=[
      f"{other} as {source[other].shape}, not {np.shape(target[name])}"
      for name, other in names.items()
      if other in source and source[other].shape != np.shape(target[name])
    ],
    what=f"in {os.fspath(path)} weights for this trunk",
  )
  filled = {name: source[names[name]] if name in names else v for name, v in target.items()}
  return _unflatten(filled), tuple(unneeded)


# --- files of torch -------------------------------------------------------------------------------


class Conversion(NamedTuple):
  """What became of a torch checkpoint."""

  variables: Variables
  description: Description
  used: tuple[str, ...]  # tensors, by their names in the file
  unneeded: Mapping[str, str]  # what else the file holds: why it is not needed


# Entries of checkpoints in which the state_dict lies, and those of training beside it.
_STATE_ENTRIES = ("state_dict", "model_state_dict", "model", "network", "net")
_TRAINING_ENTRIES = re.compile(r"optim|sched|scaler|(^|_)(amp|ema)(_|$)")
_UNNEEDED = {
  r"(^|\.)num_batches_tracked$": "a counter that training alone uses",
  r"(^|\.)text_branch\.": "the branch for titles, used in training alone",
}
# Children of a torchvision network in their order, as they are called in an nn.Sequential of them.
_SEQUENTIAL = {"conv1": "0", "bn1": "1", **{f"layer{i}": str(i + 3) for i in range(1, 5)}}


def convert(path: str | os.PathLike[str], kind: str = "auto") -> Conversion:
  """Flax variables from torchvision's and timm's ResNets and the paper's released models.

  Reads .pth, .pth.tar and .safetensors without torch and without running code. The network may lie
  under any prefix, or in an `nn.Sequential`. Known are:

  - 'resnet': `conv1 bn1 layer1.0.conv1 ... fc` as in torchvision and timm; basic or bottleneck
    blocks, any depth and width.
  - 'similarity': the same with `fc_embed`, and `masks.weight` where there are several spaces
    (repositories mvasil/fashion-compatibility and VisionLearningGroup/SANE). A plain ResNet too,
    whose `fc` is then the embedding.
  - 'attribute': a ResNet and `heatmap_net.weight` (the latter repository).

  Args:
    path: the file.
    kind: one of these, or 'auto' to look at the tensors.

  Raises:
    ValueError: a tensor has no place in the network, a place has no tensor, or shapes differ: lists
      all of them. Also for a file that can't be read, or holds no such network or several.
    OSError: it can't be opened.
  """
  settings.check_choice("convert.kind", kind, CONVERSIONS)
  state, unneeded = _read_state(path)
  try:
    return _convert_state(state, unneeded, kind)
  except ValueError as error:
    raise ValueError(f"{os.fspath(path)} can't be converted: {error}") from error


def _convert_state(
  state: Mapping[str, np.ndarray], unneeded: dict[str, str], kind: str
) -> Conversion:
  root, children = _find_network(state)

  def torch_name(module: str) -> str:  # e.g. layer1_0/conv1 -> embeddingnet.layer1.0.conv1
    module = re.sub(r"^(layer\d+)_(\d+)/", r"\1.\2.", module)
    module = module.replace("downsample_conv", "downsample.0").replace(
      "downsample_bn", "downsample.1"
    )
    first, *rest = module.split(".")
    return root + ".".join([children.get(first, first), *rest])

  def outside(
    name: str,
  ) -> str:  # of the tensor that ends so, wherever it lies; '' if there is none
    return next((k for k in state if f".{k}".endswith(f".{name}")), "")

  if outside("metric_branch.weight"):
    raise ValueError("it scores by a learned metric (metric_branch), and not by a cosine")
  embed, masks, maps = (
    torch_name("fc_embed"),
    outside("masks.weight"),
    outside("heatmap_net.weight"),
  )
  found = "attribute" if maps else "similarity" if f"{embed}.weight" in state else "resnet"
  fc = torch_name("fc")
  if kind == "similarity" and found == "resnet" and f"{fc}.weight" in state:
    found, embed = kind, fc
  if kind not in ("auto", found):
    raise ValueError(f"it holds a model of kind {found!r}, not {kind!r}")
  description = {"kind": found, **_trunk_fields(state, torch_name), "dtype": "float32"}
  special: dict[str, str] = {}
  if found == "similarity":
    special = {"dense": embed, "type_masks": masks}
    description |= {
      "embedding_size": _shape(state, f"{embed}.weight")[0], "image_size": 112, "text_size": 0,
      "num_conditions": _shape(state, masks)[0] if masks else 1,
    }  # fmt: skip
  elif found == "attribute":
    special = {"activation": maps.removesuffix(".weight")}
    count = _shape(state, maps)[0]
    description |= {
      "image_size": 112, "attribute_names": [f"attribute {i}" for i in range(count)],
    }  # fmt: skip
  else:
    classes = _shape(state, f"{fc}.weight")[0] if f"{fc}.weight" in state else 0
    description |= {"num_classes": classes, "image_size": 224}

  wanted = _abstract(make_model(description))
  names, filled, misshapen = {}, {}, []
  for target in wanted:
    _, *modules, leaf = target.split("/")
    module = "/".join(modules).removeprefix("trunk/")
    leaf = {"mean": "running_mean", "var": "running_var", "bias": "bias"}.get(leaf, "weight")
    module = special.get(module) or torch_name(module)
    names[target] = special["type_masks"] if target == "params/type_masks" else f"{module}.{leaf}"
  for target, name in names.items():
    if name in state:
      filled[target] = _to_flax(state[name], transpose=target.endswith("/kernel"))
      if filled[target].shape != wanted[target].shape:
        misshapen.append(f"{name} as {filled[target].shape}, not {wanted[target].shape}")
      if not np.isfinite(filled[target]).all():
        raise ValueError(f"{name} has values that are NaN or infinite")
  used = set(names.values())
  for name in state:
    if name not in used:
      why = next((why for pattern, why in _UNNEEDED.items() if re.search(pattern, name)), None)
      unneeded |= {name: why} if why else {}
  _check_accounts(
    unused=[name for name in state if name not in used and name not in unneeded],
    unfilled=[f"{target} ({name})" for target, name in names.items() if name not in state],
    misshapen=misshapen,
    what=f"weights of a {found} model on a ResNet of {description['stage_sizes']} blocks",
  )
  return Conversion(_unflatten(filled), description, tuple(names.values()), unneeded)


def _find_network(state: Mapping[str, Any]) -> tuple[str, Mapping[str, str]]:
  """The prefix of the network's names, and what its children are called under it."""
  found = []
  for children in ({}, _SEQUENTIAL):
    first, last = (children.get(n, n) for n in ("conv1", "layer1"))
    end = f"{last}.0.conv1.weight"
    for name in state:
      root = name.removesuffix(end)
      if f".{name}".endswith(f".{end}") and f"{root}{first}.weight" in state:
        found.append((root, children))
  if len(found) == 1:
    return found[0]
  if not found:
    raise ValueError(
      f"no ResNet is in it: no conv1.weight beside a layer1.0.conv1.weight among its {len(state)}"
      f" tensors, which start with {[*state][:5]}"
    )
  raise ValueError(
    f"it holds several networks, under {[root for root, _ in found]}; save the state_dict of one"
  )


def _trunk_fields(state: Mapping[str, Any], torch_name: Callable[[str], str]) -> dict[str, Any]:
  def blocks(stage: int) -> int:
    count = 0
    while f"{torch_name(f'layer{stage}_{count}/conv1')}.weight" in state:
      count += 1
    return count

  sizes: list[int] = []
  while count := blocks(len(sizes) + 1):
    sizes.append(count)
  basic, bottleneck = get_args(BlockName)
  imagenet, small = get_args(Stem)
  stem = _shape(state, f"{torch_name('conv1')}.weight")
  return {
    "stage_sizes": sizes,
    "block": bottleneck if f"{torch_name('layer1_0/conv3')}.weight" in state else basic,
    "width": stem[0],
    "stem": small if stem[-1] == 3 else imagenet,
  }


def _shape(state: Mapping[str, Any], name: str) -> tuple[int, ...]:
  if name not in state or state[name].ndim < 1:
    raise ValueError(f"it has no tensor {name} that is an array")
  return state[name].shape


def _to_flax(array: np.ndarray, transpose: bool) -> np.ndarray:
  """Kernels OIHW -> HWIO, or IO where H = W = 1, and OI -> IO; a float32 copy."""
  array = np.asarray(array, np.float32)
  if transpose and array.shape[2:] == (1, 1):
    array = array[:, :, 0, 0]
  if transpose:
    array = array.transpose((2, 3, 1, 0) if array.ndim == 4 else None)
  return np.array(array, order="C")


def _is_safetensors(path: str | os.PathLike[str]) -> bool:
  files.check_regular(path)
  with files.at(path).open("rb") as file:
    head = file.read(9)
  return len(head) == 9 and head[8:] == b"{" and head[:2] != b"PK"


def _read_state(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Tensors by name; and what else the file holds, with the reason why it is not needed."""
  name = os.fspath(path)
  if _is_safetensors(path):
    state, metadata = _read_safetensors(path)
    if _HEADER in metadata:
      raise ValueError(f"{name} is a model file of sane_jax already; use it as it is")
    return state, {}
  tree = torch_file.read_torch_file(path)
  if _is_state(tree):
    return tree, {}
  if not isinstance(tree, dict):
    raise ValueError(f"{name} holds a {type(tree).__name__}; a dict of named tensors is expected")
  entry = next((key for key in _STATE_ENTRIES if _is_state(tree.get(key))), None)
  if entry is None:
    raise ValueError(
      f"{name} holds the entries {[*tree]}, none of which is a state_dict; expected one under"
      f" {', '.join(_STATE_ENTRIES)}"
    )
  others = {str(key): value for key, value in tree.items() if key != entry}
  unknown = [
    key
    for key, value in others.items()
    if not _TRAINING_ENTRIES.search(key.lower())
    and any(isinstance(leaf, np.ndarray) and leaf.size > 1 for leaf in jax.tree.leaves(value))
  ]
  if unknown:
    raise ValueError(
      f"{name} holds tensors under {unknown} beside {entry!r}; save the state_dict alone"
    )
  return tree[entry], {key: "an entry of training, beside the weights" for key in others}


def _is_state(node: Any) -> bool:
  return (
    isinstance(node, dict)
    and len(node) > 0
    and all(isinstance(k, str) and isinstance(v, np.ndarray) for k, v in node.items())
  )


def summary(path: str | os.PathLike[str], conversion: Conversion) -> str:
  """What was made of a file, for people."""
  _, description, used, unneeded = conversion
  lines = [
    f"{os.path.basename(path)}: a {description['kind']} model, {description['block']} blocks"
    f" {tuple(description['stage_sizes'])}, width {description['width']}; {len(used)} tensors used"
  ]
  reasons: dict[str, list[str]] = {}
  for name, why in unneeded.items():
    reasons.setdefault(why, []).append(name)
  for why, names in reasons.items():
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    lines.append(f"  not needed, {why}: {len(names)} ({shown})")
  return "\n".join(lines)
