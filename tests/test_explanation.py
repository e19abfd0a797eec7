"""What an explanation hands out: files, a figure, a page, and the page's coarser cells."""

import hashlib
import json
import re
import warnings

import jax
import numpy as np
import pytest
from PIL import Image

import sane_jax
from sane_jax.maps import reasons
from sane_jax.ops import ranking
from tests import encoders

SIZE = encoders.SIZE


def explain(photos, **settings):
  model = sane_jax.from_jax(encoders.nonlinear, encoders.nonlinear_params(), image_size=SIZE)
  explainer = sane_jax.Explainer(model, **settings)
  return explainer.explain(explainer.photo(photos[0], "a.jpg"), explainer.photo(photos[1], "b.jpg"))


@pytest.mark.parametrize(
  "settings",
  [
    {"design": "hadamard", "num_masks": 64, "grid": (4, 4)},
    {"design": "rise", "num_masks": 40},
    {"design": "lime", "num_masks": 40},
    {"design": "random"},
    {"design": "learned_mask", "num_steps": 3},
  ],
  ids=lambda s: s["design"],
)
def test_save_writes_all_that_was_measured(tmp_path, photos, settings):
  e = explain(photos, **settings)
  folder = e.save(tmp_path / "deep" / "down")
  assert sorted(p.name for p in folder.iterdir()) == [
    "explanation.json",
    "figure.png",
    "index.html",
    "maps.npz",
  ]
  record = json.loads((folder / "explanation.json").read_text())
  assert record["score"] == pytest.approx(e.score)
  assert record["encoder_passes"] == e.encoder_passes
  assert record["settings"]["design"] == settings["design"]
  with np.load(folder / "maps.npz", allow_pickle=False) as maps:
    np.testing.assert_array_equal(maps["saliency_map"], e.saliency_map)
    np.testing.assert_array_equal(maps["reference_saliency_map"], e.reference_saliency_map)
    if settings["design"] in ("hadamard", "rise", "lime"):
      np.testing.assert_array_equal(maps["correspondence"], e.correspondence)
    assert maps["query"].dtype == np.uint8
  assert (folder / "figure.png").read_bytes()[:4] == b"\x89PNG"
  assert "a.jpg" in (folder / "index.html").read_text()


@pytest.mark.parametrize(
  "options",
  [
    {"key": 3},
    {"key": 2**31 + 5},
    {"key": 2**40 + 5},
    {"key": jax.random.fold_in(jax.random.key(3), 5)},
    {"key": jax.random.split(jax.random.key(3))[1], "mode": "both"},
    {"key": jax.random.key(1, impl="rbg"), "design": "rise", "num_masks": 20},
    {"key": 3, "fill": (0.1, 0.25, 0.7), "tolerance": 0.5},
    {"key": 3, "fill": "image"},
    {"key": 3, "design": "sliding_window", "grid": (4, 4)},
    {"key": 3, "design": "random"},
    {"key": jax.random.key(2**32 - 1), "design": "learned_mask", "num_steps": 2},
  ],
  ids=[
    "small seed",
    "seed over 2^31",
    "seed over 2^32",
    "folded",
    "split",
    "rbg",
    "colour",
    "image",
    "sliding_window",
    "random",
    "learned_mask",
  ],
)
def test_the_snippet_makes_the_same_map(options, photos, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name, photo in zip(("a.png", "b.png"), photos, strict=False):
    Image.fromarray(np.round(photo * 255).astype(np.uint8)).save(name)
  names = {}
  picture = options.get("fill") == "image"
  if picture:
    options = {**options, "fill": photos[2]}
  names["sane_jax"] = sane_jax
  names["model"] = sane_jax.from_jax(
    encoders.nonlinear, encoders.nonlinear_params(), image_size=SIZE
  )
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a tolerance that is not reached is no news here
    e = sane_jax.Explainer(names["model"], **options).explain("a.png", "b.png")
  *lines, last = e.snippet().split("\n")
  exec("\n".join(lines), names)
  again = eval(last, names)
  np.testing.assert_array_equal(again.saliency_map, e.saliency_map)
  assert again.settings == e.settings
  if picture:
    assert "another one can't make this map" in e.snippet()
    assert hashlib.sha256(photos[2].tobytes()).hexdigest() in e.snippet()


def test_notebooks_and_figures(photos):
  e = explain(photos, design="hadamard", num_masks=64, grid=(4, 4))
  assert e._repr_png_()[:4] == b"\x89PNG"
  figure = e.plot()
  assert len(figure.axes) >= 3
  assert "0x" not in repr(e)[:200]


def test_the_snippet_gives_the_same_answer(photos):
  """The Python on the page, run as it stands, explains the pair again."""
  e = explain(photos, design="lime", num_masks=40, grid=(4, 4), kernel_width=0.3, key=5)
  code = e.snippet()
  model = sane_jax.from_jax(encoders.nonlinear, encoders.nonlinear_params(), image_size=SIZE)
  code = code.replace("'a.jpg'", "photos[0]").replace("'b.jpg'", "photos[1]")
  first, second = code.splitlines()
  scope = {"sane_jax": sane_jax, "model": model, "photos": photos}
  exec(first, scope)
  again = eval(second, scope)
  np.testing.assert_array_equal(again.saliency_map, e.saliency_map)


def test_page_cells_average_the_grids(photos):
  e = explain(photos, design="rise", num_masks=40)
  view = e.view()
  assert view.correspondence.shape == (196, 196)
  table = e.correspondence.reshape(28, 28, 28, 28)
  want = table[2:4, 4:6, 10:12, 0:2].mean()  # page cells (1, 2) and (5, 0)
  assert view.correspondence[1 * 14 + 2, 5 * 14 + 0] == pytest.approx(want, abs=1e-5)
  assert view.query_cells[3, 5] == 1 * 14 + 2
  assert view.query_cells.max() == 195


def test_flat_and_sampled_errors_reach_the_page(photos):
  e = explain(photos, design="hadamard", num_masks=32, grid=(4, 4))  # one replicate: NaN
  html = sane_jax.report.render_page([e.view()], title="t")
  assert not re.search(r"\bNaN\b", re.sub(r"<script.*?</script>", "", html, flags=re.S))


def test_concepts_without_patterns_make_no_map_of_regions(photos):
  """Normals of classifiers alone would show regions as against what they show."""
  e = explain(photos, num_masks=64, grid=(4, 4))
  axes = e.effects.matrix.shape[1]
  predict = lambda _: (np.array([0.6, 0.4], np.float32), np.ones((4, 4, 2), np.float32))  # noqa: E731
  vectors = np.eye(2, axes, dtype=np.float32)
  old = reasons.make_ranker(
    ("a", "b"), predict, (np.full(2, 0.5), vectors), (1.0, 0.0, 0.0, 0.0), ranking.RAW
  )
  e.ranker = old
  with pytest.raises(ValueError, match=r"--config\.job=fit_concepts in another"):
    _ = e.attribute_regions
  e = explain(photos, num_masks=64, grid=(4, 4))
  e.ranker = reasons.make_ranker(
    ("a", "b"), predict, (np.full(2, 0.5), vectors), (1.0, 0.0, 0.0, 0.0), ranking.RAW,
    patterns=vectors[::-1],
  )  # fmt: skip
  np.testing.assert_allclose(e.attribute_regions, e.effects.matrix[:, [1, 0]], rtol=1e-6)
