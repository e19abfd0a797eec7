"""Every job gives on N processes of M devices what it gives on one of one.

Here the training of the embedding on 2 of 2. SANE_JAX_MATRIX=1 takes all jobs, on 1, 2 and 4 of
each; SANE_JAX_MATRIX_OUT=FILE keeps the largest differences.
"""

import json
import os
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import many

from sane_jax.maps import index_arrays
from sane_jax.maps.index import ExplanationIndex
from sane_jax.training import loop

CASES = [(2, 2)]
JOBS, TRAINED = ("train_similarity",), ("similarity",)
if MATRIX := bool(os.environ.get("SANE_JAX_MATRIX")):
  CASES = [(n, m) for n in (1, 2, 4) for m in (1, 2, 4) if (n, m) != (1, 1)]
  JOBS = (
    *JOBS, "build_index", "train_attributes", "fit_concepts", "tune_ranking", "evaluate",
    "explain_matches",
  )  # fmt: skip
  TRAINED = (*TRAINED, "attributes")
MODEL = """
import sys
sys.path.insert(0, {tests!r})
import encoders, sane_jax

def make(image_size):
  return sane_jax.from_jax(
    encoders.nonlinear, encoders.nonlinear_params(), image_size=image_size, name="small"
  )
"""
PHOTOS = (
  "model=small_model:make", "image_size=28", "num_masks=32", "grid=(4,4)", "photos=photos",
  "neighbors=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def home(whole, tmp_path_factory):
  """Photos that all runs read; and the runs of one process."""
  folder = tmp_path_factory.mktemp("many")
  rng = np.random.default_rng(0)
  (folder / "photos").mkdir()
  for n in range(9):
    coarse = Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8))
    coarse.resize((40, 32), Image.Resampling.BILINEAR).save(folder / f"photos/{n:02d}.png")
  (folder / "photos/05.png").write_bytes(b"no picture")
  (folder / "small_model.py").write_text(MODEL.format(tests=str(many.ROOT / "tests")))
  for name in ("1x1", "models"):
    (folder / name).symlink_to(whole / "runs/synthetic")
  if MATRIX:
    photos_of(folder, 1, 1)
  return folder


def all_of(home, processes, devices):
  """All jobs, the others on the models that one process trained; then those of photos."""
  data, models = home / "1x1", home / "models"
  fields = (
    *many.SMALL, f"workdir={processes}x{devices}", f"data.folder={data / 'drawn'}",
    f"data.prepared={data / 'prepared'}", f"attributes.truth={data / 'drawn/truth'}",
    f"index.model={models / 'similarity/model.safetensors'}",
    f"ranking.attributes={models / 'attributes'}", f"jobs={JOBS}",
  )  # fmt: skip
  return [
    many.run(home, fields, processes=processes, devices=devices),
    *(photos_of(home, processes, devices) if MATRIX else ()),
  ]


def photos_of(home, processes, devices):
  return [
    many.run(
      home, (*PHOTOS, f"workdir={processes}x{devices} photos", f"job={job}"), config="photos",
      path=[str(home)], processes=processes, devices=devices,
    )
    for job in ("explain", "build_index")
  ]  # fmt: skip


def arrays_of(folder):
  """Every number of a folder of .npz files, by the pair (or the file) and its name."""
  found = {}
  for path in sorted(folder.glob("*.npz")):
    with np.load(path) as file:
      key = path.name
      if "_text" in file.files:  # a view, whose file is named by all that it was made from
        text = json.loads(file["_text"].tobytes())
        key = (text["query_name"], text["reference_name"])
      found |= {(key, n): file[n] for n in file.files if file[n].dtype.kind == "f"}
  return found


def compare_answers(home, name, apart):
  """What came out of the jobs after the training."""
  for split in ("index", "index_valid", "index_test"):
    one, other = (index_arrays.read_index(home / f / split) for f in ("1x1", name))
    assert not index_arrays.missing_shards(other, "effects")
    for part in ("embeddings", "effects"):
      a, b = (np.asarray(i.arrays[part].read().result(), np.float64) for i in (one, other))
      # float16 keeps 11 bits: values that are rounded apart differ by its last one.
      last = np.abs(a) * 2.0**-10 if part == "effects" else 0.0
      apart[f"{part} of the index"] = max(
        apart.get(f"{part} of the index", 0.0), float((np.abs(a - b) - last).max())
      )
  for what, folder, suffix, scale in (
    ("maps of explain_matches", "explain/pairs", "", 1.0),
    ("curves and maps of evaluate, / 100", "evaluation/parts", "", 100.0),
    ("maps of explain", "explain/pairs", " photos", 1.0),
  ):
    one, other = (arrays_of(home / f"{f}{suffix}" / folder) for f in ("1x1", name))
    assert one.keys() == other.keys()
    assert one
    apart[what] = max(
      np.nanmax(np.abs(one[k].astype(np.float64) - other[k]), initial=0.0) / scale for k in one
    )
  one, other = (json.loads((home / f / "ranking/finished.json").read_text()) for f in ("1x1", name))
  for ablation in one["phi"]:
    assert one["phi"][ablation] == pytest.approx(other["phi"][ablation], abs=1e-6)
  for path in ("evaluation/tables.md", "concepts/concepts.md"):
    assert (home / "1x1" / path).read_text() == (home / name / path).read_text(), path
  one, other = (
    json.loads((home / f"{f} photos/explain/explanations.json").read_text()) for f in ("1x1", name)
  )
  assert [e["id"] for e in one["explanations"]] == [e["id"] for e in other["explanations"]]
  assert one["failures"] == other["failures"]
  assert len(one["failures"]) == 1
  one, other = (ExplanationIndex(home / f"{f} photos/index") for f in ("1x1", name))
  assert one.ids == other.ids
  assert one.left_out == other.left_out
  apart["maps of the photos' index"] = float(
    np.abs(one.maps(0, [1, 2, 3]) - other.maps(0, [1, 2, 3])).max()
  )


@pytest.mark.parametrize(("processes", "devices"), CASES)
def test_the_answers_are_those_of_one_process_and_device(home, processes, devices):
  printed = all_of(home, processes, devices)
  for out in printed:
    for other in out[1:]:  # only the first process tells what came out
      assert "Open " not in other
      assert "build_index: " not in other
  name, apart = f"{processes}x{devices}", {}
  for part in TRAINED:
    one, other = (loop.read_metrics(home / f / part) for f in ("1x1", name))
    assert [r["step"] for r in one] == [r["step"] for r in other]
    lines = [both for both in zip(one, other, strict=True) if "train/loss" in both[0]]
    apart[f"losses of {part}"] = max(abs(a["train/loss"] - b["train/loss"]) for a, b in lines)
    apart[f"losses of {part}, relative"] = max(
      abs(1 - b["train/loss"] / a["train/loss"]) for a, b in lines
    )
    apart[f"parts of the losses of {part}"] = max(
      abs(a[k] - b[k]) for a, b in lines for k in a if k.startswith("train/")
    )
  if MATRIX:
    compare_answers(home, name, apart)
  if out := os.environ.get("SANE_JAX_MATRIX_OUT"):
    with open(out, "a") as file:
      file.write(json.dumps({"run": name, **apart}) + "\n")
  # A ReLU whose input is 0 but for rounding may open here and not there; from then on the parts of
  # a loss, before they are weighted, may differ by more than it does. docs/reliability.md has it.
  beyond = {w: v for w, v in apart.items() if v > (1e-4 if "losses" in w else 1e-5)}
  if name == "1x4" and set(beyond) == {"parts of the losses of attributes"}:
    pytest.xfail(f"{beyond}: a ReLU at 0")
  assert not beyond
