"""Drawn outfits as files: in Polyvore Outfits' format, and beside it the truth that no set has."""

import concurrent.futures
import functools
import io
import itertools
import json
import multiprocessing
import os
import pathlib
import pickle
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sane_jax.datasets.outfits_drawn import composition, garments, wardrobe
from sane_jax.datasets.outfits_drawn.composition import Outfit
from sane_jax.datasets.outfits_drawn.wardrobe import Item
from sane_jax.ops import streams
from sane_jax.runs import files

VERSION = 2  # of the drawing: raise it when the same seed draws something else
SPLITS = ("train", "valid", "test")
TYPES = (
  "all-body", "bottoms", "tops", "outerwear", "bags", "shoes", "accessories", "scarves", "hats",
  "sunglasses", "jewellery",
)  # fmt: skip
SHARED = 0.15  # share of a split's places that may be filled from the training items, nondisjoint
CHUNK = 32  # items a task
_QUALITY = 88  # of the JPEGs: some 10 KB each


class Release(NamedTuple):
  """Everything but the pictures."""

  items: list[Item]
  outfits: dict[str, list[Outfit]]  # by split


def attribute_names() -> list[str]:
  """The 205 attribute names of SANE's annotations of Polyvore Outfits, in their order."""
  return pathlib.Path(__file__).with_name("attribute_list.txt").read_text().split()


def item_id(index: int) -> str:
  """As in the real set, a string of digits."""
  return str(210_000_000 + index)


def set_id(split: str, index: int) -> str:
  """Likewise, of an outfit."""
  return str(220_000_000 + 1_000_000 * SPLITS.index(split) + index)


def compose(num_outfits: Sequence[int], seed: int) -> Release:
  """Items and outfits of the three splits: a function of the arguments."""
  items: list[Item] = []
  outfits: dict[str, list[Outfit]] = {}
  train: list[int] = []
  for number, (split, count) in enumerate(zip(SPLITS, num_outfits, strict=True)):
    rng = streams.rng(seed, number)
    own: list[int] = train if split == "train" else []
    pools = [own]
    if split != "train":  # some of the training items are worn again, as in the real set
      pools.append(rng.permutation(train)[: int(SHARED * len(train))].tolist())
    outfits[split] = composition.compose(rng, count, items, pools)
  return Release(items, outfits)


def check_numbers(num_outfits: Sequence[int], seed: int, missing: float) -> None:
  """Raises ValueError for arguments of `draw_outfits` that are out of range."""
  counts = [int(n) for n in num_outfits]
  if len(counts) != 3 or min(counts) < 4 or seed < 0 or not 0 <= missing < 1:
    raise ValueError(
      f"num_outfits is three numbers of 4 or more (train, valid, test), seed 0 or more, missing in"
      f" [0, 1); given {tuple(num_outfits)}, {seed}, {missing}"
    )


def draw_outfits(
  folder: str | os.PathLike[str],
  *,
  num_outfits: Sequence[int],
  seed: int = 0,
  missing: float = 0.3,
  processes: int | None = None,
  on_progress: Callable[[int, int], None] | None = None,
) -> bool:
  """Writes FOLDER/polyvore_outfits, in Polyvore Outfits' format, and FOLDER/truth.

  What is written is a function of num_outfits, seed and missing, however many processes draw.
  Interrupted, the next call draws what is missing.

  Args:
    folder: where to write.
    num_outfits: of the splits train, valid and test.
    seed: 0 or more.
    missing: rate at which an attribute that is drawn is not annotated; half as many items have no
      annotation at all.
    processes: that draw; one a core by default.
    on_progress: called with items done and items in all.

  Returns:
    Whether anything had to be written.

  Raises:
    ValueError: the folder holds outfits of other settings, or an argument is out of range.
  """
  check_numbers(num_outfits, seed, missing)
  counts = [int(n) for n in num_outfits]
  root, truth = files.at(folder) / "polyvore_outfits", files.at(folder) / "truth"
  settings = {"num_outfits": counts, "seed": seed, "missing": missing, "version": VERSION}
  for name in ("settings.json", "begun.json"):
    if (truth / name).exists():
      theirs = json.loads((truth / name).read_text())
      if theirs != settings:
        differing = [k for k in settings if theirs.get(k) != settings[k]]
        raise ValueError(
          f"{folder} holds outfits of other settings:"
          f" {', '.join(f'{k} {theirs.get(k)} there, {settings[k]} here' for k in differing)}. Give"
          " another --config.outfits.folder, or remove that one"
        )
      if name == "settings.json":
        return False
  for path in (root / "images", truth / "masks"):
    files.make_folder(path)
  _write(truth / "begun.json", _json(settings))
  release = compose(counts, seed)
  _draw_all(root, truth, release.items, processes, on_progress)
  _write_tables(root, truth, release, seed, missing)
  _write(truth / "settings.json", _json(settings))  # last: the set is whole
  return True


# --- pictures -------------------------------------------------------------------------------------


def _draw_all(root, truth, items, processes, on_progress) -> None:
  tasks = [
    (root, truth, first, items[first : first + CHUNK]) for first in range(0, len(items), CHUNK)
  ]
  done = 0
  # Spawned: a fork of a process in which JAX runs threads may hang.
  context = multiprocessing.get_context("spawn")
  workers = min(processes or _cores(), len(tasks))
  if workers == 1:
    results = map(_draw_some, tasks)
  else:
    pool = concurrent.futures.ProcessPoolExecutor(
      workers, mp_context=context, initializer=_end_with_parent
    )
    results = pool.map(_draw_some, tasks)
  try:
    for count in results:
      done += count
      if on_progress is not None:
        on_progress(done, len(items))
  finally:
    if workers > 1:
      pool.shutdown(cancel_futures=True)  # pyright: ignore[reportPossiblyUnboundVariable]


def _end_with_parent() -> None:
  """Workers of a process that was killed would wait for their next task for ever."""
  parent = multiprocessing.parent_process()
  if parent is None:
    return

  def watch() -> None:
    parent.join()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def _cores() -> int:
  if hasattr(os, "sched_getaffinity"):  # Linux alone says which cores are ours
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _draw_some(task: tuple[pathlib.Path, pathlib.Path, int, list[Item]]) -> int:
  root, truth, first, items = task
  for index, item in enumerate(items, start=first):
    picture = root / "images" / f"{item_id(index)}.jpg"
    masks = truth / "masks" / f"{item_id(index)}.npz"
    if picture.exists() and masks.exists():
      continue
    pixels, regions = garments.draw(item)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_QUALITY)
    _write(masks, _pack(regions))
    _write(picture, buffer.getvalue())
  return len(items)


def _pack(regions: dict[str, np.ndarray]) -> bytes:
  indices = _indices()
  names = [name for name in regions if name in indices]
  buffer = io.BytesIO()
  np.savez_compressed(
    buffer,
    attributes=np.array([indices[name] for name in names], np.int32),
    masks=np.packbits(np.stack([regions[name] for name in names]), axis=-1),
  )
  return buffer.getvalue()


@functools.cache
def _indices() -> dict[str, int]:
  return {name: index for index, name in enumerate(attribute_names())}


def read_truth(folder: str | os.PathLike[str], item: str) -> dict[int, np.ndarray]:
  """Where each attribute of an item is: attribute index -> bool [300 300].

  Args:
    folder: the `truth` folder.
    item: its id.

  Raises:
    ValueError: nothing is known of that item.
  """
  path = files.at(folder) / "masks" / f"{item}.npz"
  try:
    with np.load(io.BytesIO(files.read_bytes(path))) as file:
      masks = np.unpackbits(file["masks"], axis=-1).astype(bool)[..., : wardrobe.SIZE]
      return {int(a): mask for a, mask in zip(file["attributes"], masks, strict=True)}
  except (OSError, ValueError, KeyError) as error:
    raise ValueError(
      f"no pixel masks of item {item} in {folder} ({error}); give the folder `truth` that"
      " draw_outfits wrote beside the photos"
    ) from error


# --- tables ---------------------------------------------------------------------------------------


def _write_tables(root, truth, release: Release, seed: int, missing: float) -> None:
  rng = streams.rng(seed, streams.OUTFIT_TABLES)
  items = release.items
  names = attribute_names()
  _write(root / "attribute_list.txt", ("\n".join(names) + "\n").encode())
  _write(root / "categories.csv", _categories().encode())
  _write(root / "polyvore_item_metadata.json", _json(_metadata(items, rng)))
  annotations = {}
  for index, item in enumerate(items):
    known = [_indices()[n] for n in item.attributes if n in _indices()]
    kept = [a for a in known if rng.uniform() >= missing]
    annotations[item_id(index)] = [] if rng.uniform() < missing / 2 else sorted(kept)
  _write(
    root / "polyvore_attributes.json", _json({"attributes": names, "annotations": annotations})
  )
  everything = {
    (split, i): o for split, outfits in release.outfits.items() for i, o in enumerate(outfits)
  }
  titles = {
    set_id(split, i): {"url_name": f"outfit {i + 1}", "title": _outfit_title(o, items, rng)}
    for (split, i), o in everything.items()
  }
  _write(root / "polyvore_outfit_titles.json", _json(titles))
  rules = {
    set_id(split, i): {"rule": o.rule.kind, "attributes": list(o.rule.attributes)}
    for (split, i), o in everything.items()
  }
  _write(truth / "rules.json", _json(rules))
  full = {
    item_id(i): [_indices()[n] for n in item.attributes if n in _indices()]
    for i, item in enumerate(items)
  }
  _write(truth / "attributes.json", _json(full))
  in_training = {i for o in release.outfits["train"] for i in o.items}
  for setting in ("nondisjoint", "disjoint"):
    folder = root / setting
    _write(folder / "typespaces.p", pickle.dumps(_typespaces(seed), protocol=2))
    for split in SPLITS:
      numbered = list(enumerate(release.outfits[split]))
      if setting == "disjoint" and split != "train":
        numbered = [(n, o) for n, o in numbered if not in_training & set(o.items)]
      _write_split(folder, split, numbered, items, rng)
  for split in ("valid", "test"):
    _write(root / f"polyvore_{split}_pairs.txt", _pairs(release.outfits[split], rng).encode())


def _write_split(folder, split, numbered, items, rng) -> None:
  outfits = [
    {
      "items": [{"item_id": item_id(i), "index": k} for k, i in enumerate(o.items, start=1)],
      "set_id": set_id(split, n),
    }
    for n, o in numbered
  ]
  _write(folder / f"{split}.json", _json(outfits))
  places: dict[str, list[tuple[str, int, int]]] = {}  # of a category: token, outfit, item
  for n, o in numbered:
    for k, i in enumerate(o.items, start=1):
      token = f"{set_id(split, n)}_{k}"
      places.setdefault(composition.category_of(items[i].kind), []).append((token, n, i))

  def other(category: str, outfit: int, besides: set[int]) -> tuple[str, int, int] | None:
    found = [p for p in places[category] if p[1] != outfit and p[2] not in besides]
    return found[rng.integers(len(found))] if found else None

  lines, questions = [], []
  for n, o in numbered:
    tokens = [f"{set_id(split, n)}_{k}" for k in range(1, len(o.items) + 1)]
    lines.append(f"1 {' '.join(tokens)}")
  for n, o in numbered:
    drawn: list[tuple[str, int, int] | None] = []
    for i in o.items:
      drawn.append(other(composition.category_of(items[i].kind), n, set(o.items)))
    tokens = [d[0] for d in drawn if d is not None]
    if len(tokens) >= 2:
      lines.append(f"0 {' '.join(tokens)}")
  for n, o in numbered:
    blank = int(rng.integers(len(o.items)))
    category = composition.category_of(items[o.items[blank]].kind)
    wrong: dict[int, str] = {}
    while len(wrong) < 3:
      found = other(category, n, {*o.items, *wrong})
      if found is None:
        break
      wrong[found[2]] = found[0]
    if len(wrong) == 3:
      tokens = [f"{set_id(split, n)}_{k}" for k in range(1, len(o.items) + 1)]
      right = tokens.pop(blank)
      answers = [*wrong.values(), right]
      questions.append(
        {
          "question": tokens,
          "blank_position": blank + 1,
          "answers": [answers[k] for k in rng.permutation(4)],
        }
      )
  _write(folder / f"compatibility_{split}.txt", ("\n".join(lines) + "\n").encode())
  _write(folder / f"fill_in_blank_{split}.json", _json(questions))


def _pairs(outfits: list[Outfit], rng: np.random.Generator) -> str:
  """As many pairs of one outfit as of two, one of each for every outfit."""
  lines = []
  for o in outfits:
    a, b = rng.choice(o.items, 2, replace=False)
    other = outfits[rng.integers(len(outfits))]
    c = rng.choice(other.items)
    lines.append(f"{item_id(int(a))} {item_id(int(b))} 1")
    if not any(a in worn.items and c in worn.items for worn in outfits):
      lines.append(f"{item_id(int(a))} {item_id(int(c))} 0")
  return "\n".join(lines) + "\n"


def _typespaces(seed: int) -> list[tuple[str, str]]:
  """All pairs of types, each in one order only, and each type with itself."""
  rng = streams.rng(seed, streams.OUTFIT_TYPESPACES)
  pairs = [
    (a, b) if rng.uniform() < 0.5 else (b, a) for a, b in itertools.combinations(TYPES, 2)
  ] + [(t, t) for t in TYPES]
  return [pairs[i] for i in rng.permutation(len(pairs))]


def _fine_categories() -> list[tuple[int, str, str]]:
  kinds = [(kind, category) for category, kinds in wardrobe.KINDS.items() for kind in kinds]
  return [(3 + 2 * i, kind, category) for i, (kind, category) in enumerate(kinds)]


def _categories() -> str:
  rows = [f"{number},{kind},{category} " for number, kind, category in _fine_categories()]
  return "\n".join(["2,undefined,", *rows]) + "\n"


def _metadata(items: list[Item], rng: np.random.Generator) -> dict[str, Any]:
  numbers = {kind: number for number, kind, _ in _fine_categories()}
  out = {}
  for index, item in enumerate(items):
    category = composition.category_of(item.kind)
    title = _title(item, rng)
    bare = rng.uniform() < 0.1  # as some records of the real set
    out[item_id(index)] = {
      "url_name": title.lower(),
      "description": "" if bare else f"{title}.",
      "catgeories": "" if bare else ["Fashion", category.capitalize(), item.kind.capitalize()],
      "title": "" if bare else title,
      "related": "" if bare else [f"{item.attributes[0]} {item.kind}"],
      "category_id": str(numbers[item.kind]),
      "semantic_category": category,
    }
  return out


def _title(item: Item, rng: np.random.Generator) -> str:
  """Some of the attributes in some order, with a word that says nothing."""
  words = [w for w in item.attributes if rng.uniform() < 0.8]
  words = [words[i] for i in rng.permutation(len(words))]
  words.insert(0, str(rng.choice(["The", "New", "Our", "Lovely", "Everyday", "Signature"])))
  return " ".join([*words, item.kind]).capitalize()


def _outfit_title(outfit: Outfit, items: list[Item], rng: np.random.Generator) -> str:
  kinds = [items[i].kind for i in outfit.items[:2]]
  return str(rng.choice(["", f"{kinds[0]} and {kinds[1]}", f"With a {kinds[0]}"]))


# --- files ----------------------------------------------------------------------------------------


def _json(value: Any) -> bytes:
  return (json.dumps(value) + "\n").encode()


def _write(path: pathlib.Path, data: bytes) -> None:
  files.write_bytes(path, data, flush=False)  # thousands of pictures; they can be drawn again
