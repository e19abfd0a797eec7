"""Manifests of explanation indexes that are damaged, and notes of ours in JSON."""

import contextlib
import json
import pathlib

import jax
import numpy as np
from fuzz import mutate, texts

import sane_jax
from sane_jax.runs import folder as run_folder

_IDS = ("a", "b", "c")
_NOTE = {"best": {"step": 3, "loss": 0.5}, "history": [1, 2]}


def _index(folder: pathlib.Path) -> pathlib.Path:
  place = folder / "index"
  if not place.exists():
    model = sane_jax.from_jax(lambda p, x: x.mean((1, 2)) + p, np.float32(0.1), image_size=8)
    explainer = sane_jax.Explainer(model, num_masks=32, grid=(2, 2))
    images = np.random.default_rng(0).uniform(size=(len(_IDS), 8, 8, 3))
    sane_jax.ExplanationIndex.build(place, explainer, dict(zip(_IDS, images, strict=True)))
    (folder / "valid.json").write_bytes((place / "index.json").read_bytes())
  return place


def prepare(rng: np.random.Generator, folder: pathlib.Path) -> pathlib.Path:
  place = _index(folder)
  valid = (folder / "valid.json").read_bytes()
  if rng.random() < 0.5:
    document = json.loads(valid)
    for _ in range(rng.integers(1, 3)):
      document = texts.changed(rng, document)
    data = json.dumps(document).encode("utf-8", "replace")
  else:
    data = mutate.damage(rng, valid, [valid])
  (place / "index.json").write_bytes(data)
  note = json.dumps(_NOTE).encode()
  (folder / "note.json").write_bytes(mutate.damage(rng, note, [note]))
  return folder


def valid(folder: pathlib.Path) -> list[pathlib.Path]:
  _index(folder)
  (folder / "note.json").write_text(json.dumps(_NOTE))
  return [folder]


def read(folder: pathlib.Path) -> None:
  with contextlib.suppress(ValueError, OSError):
    run_folder.read_json(folder / "note.json")
  index = sane_jax.ExplanationIndex(folder / "index")
  if len(index) > 1:
    with contextlib.suppress(KeyError):  # an id that is not there is a KeyError, with a sentence
      jax.block_until_ready(index.maps(0, [1]))
