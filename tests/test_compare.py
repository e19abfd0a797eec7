"""Two models at once: closed forms, planted evidence, and error bars held against many keys."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats

import sane_jax
from sane_jax.datasets import images as images_lib
from sane_jax.maps import comparison
from sane_jax.ops import effects
from tests import encoders

SIZE = encoders.SIZE
DESIGN = sane_jax.Hadamard(num_masks=256, grid=(4, 4), smoothing=0.0)


@functools.cache  # traced once
def nonlinear(seed=0, name="", **fitting):
  return sane_jax.from_jax(
    encoders.nonlinear, encoders.nonlinear_params(seed), image_size=SIZE, name=name or "small",
    **fitting,
  )  # fmt: skip


def looks_at(*cells, grid=4, name="", **fitting):
  """Sees the mean colour of some cells of a grid and nothing else."""

  def embed(_, images):
    size = images.shape[1] // grid
    seen = [
      images[:, r * size : (r + 1) * size, c * size : (c + 1) * size].mean(axis=(1, 2))
      for r, c in cells
    ]
    ones = 0.4 * jnp.ones((images.shape[0], 1))
    return jnp.concatenate([*seen, ones], axis=1)

  return sane_jax.from_jax(embed, None, image_size=fitting.pop("size", SIZE), name=name, **fitting)


# --- known answers --------------------------------------------------------------------------------


@pytest.mark.parametrize("design", [DESIGN, sane_jax.Rise(num_masks=100, grid=(4, 4))])
def test_a_model_against_itself_with_one_key_differs_nowhere(photos, design):
  found = sane_jax.compare(nonlinear(), nonlinear(), photos[0], photos[1], design=design)
  assert not found.difference.any()
  assert not found.standard_error.any()
  assert not found.significant.any()
  assert (found.p_values == 1).all()
  assert found.rank_correlation == pytest.approx(1)
  assert found.paired
  assert found.names == ("small (A)", "small (B)")


def test_planted_models_differ_where_they_look_and_nowhere_else(rng):
  query = np.float32(0.2 * rng.uniform(size=(SIZE, SIZE, 3)))
  query[7:14, 0:7, 0] = query[14:21, 21:28, 1] = 0.9
  a, b = looks_at((1, 0), name="left"), looks_at((2, 3), name="right")
  found = sane_jax.compare(a, b, query, query, design=DESIGN, fill="mean")
  assert [tuple(cell) for cell in np.argwhere(found.significant)] == [(1, 0), (2, 3)]
  assert found.difference[1, 0] > 3
  assert found.difference[2, 3] < -3
  # One cell of 16 has it all: its root mean square is a quarter of it.
  np.testing.assert_allclose(found.maps[0, 1, 0], 4, rtol=1e-3)
  assert found.rank_correlation < 0.5


def test_the_planted_cells_are_named_beside_noise(rng):
  """A third of both models' evidence is common, and both hear the masks of everything else."""
  base = encoders.nonlinear_params(0)

  def embed_of(cell):
    def embed(params, images):
      size = SIZE // 4
      r, c = cell
      seen = images[:, r * size : (r + 1) * size, c * size : (c + 1) * size].mean(axis=(1, 2))
      return jnp.concatenate([0.2 * encoders.nonlinear(params, images), 6 * seen], axis=1)

    return embed

  query = np.float32(rng.uniform(size=(SIZE, SIZE, 3)))
  query[7:14, 0:7] = query[14:21, 21:28] = (0.95, 0.05, 0.9)
  a, b = (
    sane_jax.from_jax(embed_of(cell), base, image_size=SIZE, name=str(cell))
    for cell in ((1, 0), (2, 3))
  )
  found = sane_jax.compare(a, b, query, query, design=DESIGN, fill="black")
  cells = {tuple(cell) for cell in np.argwhere(found.significant).tolist()}
  assert {(1, 0), (2, 3)} <= cells
  assert found.difference[1, 0] > 2 > -2 > found.difference[2, 3]


@pytest.mark.parametrize("mode", ["fixed", "both"])
def test_maps_are_those_of_the_explainer_by_their_scale(photos, mode):
  options = {"design": DESIGN, "fill": "grey", "mode": mode}
  found = sane_jax.compare(nonlinear(0), nonlinear(1), photos[0], photos[1], **options)
  for k in (0, 1):
    e = sane_jax.Explainer(nonlinear(k), **options).explain(photos[0], photos[1])
    np.testing.assert_allclose(found.maps[k].ravel() * found.scales[k], e.saliency.cells, rtol=1e-6)
    assert found.explanations[k].score == e.score
  np.testing.assert_allclose(found.difference, found.maps[0] - found.maps[1], atol=1e-6)
  want = stats.spearmanr(found.maps[0].ravel(), found.maps[1].ravel()).statistic
  assert found.rank_correlation == pytest.approx(want)
  assert 0 <= found.most_correlation <= 1


def test_the_unit_of_a_score_is_of_no_account():
  one = comparison.by_own_scale(np.arange(4.0), [np.arange(12.0).reshape(3, 4)])
  other = comparison.by_own_scale(1e-3 * np.arange(4.0), [1e-3 * np.arange(12.0).reshape(3, 4)])
  np.testing.assert_allclose(one.values, other.values)
  np.testing.assert_allclose(one.errors, other.errors)
  assert other.scale == pytest.approx(1e-3 * one.scale)


# --- error bars against brute force ---------------------------------------------------------------


@functools.cache
def many(design_name, paired, mode, keys):
  """Scaled differences [k c] and their standard errors, over many keys."""
  design = {
    "hadamard": dataclasses.replace(DESIGN, num_reference_masks=8),
    "rise": sane_jax.Rise(num_masks=200, grid=(4, 4), num_reference_masks=8),
  }[design_name]
  query, reference = np.random.default_rng(0).uniform(size=(2, SIZE, SIZE, 3)).astype(np.float32)
  one, other = nonlinear(0), nonlinear(1 if paired else 0)
  differences, errors, named = [], [], []
  for key in range(keys):
    a = sane_jax.Explainer(one, design=design, key=key, mode=mode)
    b = sane_jax.Explainer(other, design=design, key=key if paired else 10_000 + key, mode=mode)
    found = sane_jax.compare(a, b, query, reference)
    assert found.paired == paired
    differences.append(found.difference.ravel())
    errors.append(found.standard_error.ravel())
    named.append(found.significant.any())
  return np.array(differences), np.array(errors), np.array(named)


# In mode 'both' the reference's masks are drawn too, and few.
DRAWS = pytest.mark.parametrize(
  ("design", "mode", "keys"),
  [("hadamard", "fixed", 60), ("rise", "fixed", 60), ("hadamard", "both", 30)],
)


@DRAWS
def test_two_identical_models_with_two_keys_differ_by_noise_alone(design, mode, keys):
  differences, errors, named = many(design, False, mode, keys)
  z = differences / errors
  assert abs(z.mean()) < 0.1
  assert 0.85 < z.std() < 1.15  # N(0, 1)
  assert 0.02 < (np.abs(z) > 1.96).mean() < 0.09
  assert named.mean() <= 0.1  # 5 % of comparisons may name any cell


@DRAWS
def test_the_paired_error_is_the_spread_over_keys(design, mode, keys):
  differences, errors, _ = many(design, True, mode, keys)
  spread = differences.std(axis=0, ddof=1)
  ratio = np.sqrt((errors**2).mean(axis=0)) / spread
  assert 0.8 < np.median(ratio) < 1.25
  assert ((ratio > 0.6) & (ratio < 1.6)).all()


def test_each_group_of_the_reference_s_masks_is_left_out(photos):
  """Against the map of the masked references that remain; groups have a pair of each fill."""
  design = dataclasses.replace(DESIGN, num_reference_masks=14)
  explainer = sane_jax.Explainer(nonlinear(), design=design, mode="both", fill="mean+blur")
  measured = explainer.effects(photos[0])
  of_query, of_reference = comparison.leave_out(measured, explainer.explain(measured, photos[1]))
  directions = explainer.masked_embeddings(photos[1])
  assert directions.shape[0] == 14
  assert of_query.shape == (8, 16)
  assert of_reference.shape == (3, 16)
  for group in range(3):
    rest = np.delete(directions[:12], range(4 * group, 4 * group + 4), axis=0)
    want = np.asarray(measured.matrix) @ rest.mean(axis=0)
    np.testing.assert_allclose(of_reference[group], want, atol=1e-6)
  fixed = sane_jax.Explainer(nonlinear(), design=design, fill="mean+blur")
  assert len(comparison.leave_out(measured, fixed.explain(measured, photos[1]))) == 1


# --- crops and sizes ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(28, 28), (40, 60), (60, 40), (31, 97)])
@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("size", [(28, 28), (20, 32)])
def test_a_frame_is_where_the_model_s_pixels_lie(shape, fit, size):
  """A photo of two gradients says of each pixel of the input where it is from."""
  h, w = shape
  y, x = np.mgrid[:h, :w].astype(np.float32)
  photo = np.stack([(y + 0.5) / h, (x + 0.5) / w, 0 * x], axis=-1)
  fitted = images_lib.fit_image(photo, size, fit=fit, crop_fraction=0.8)
  frame = images_lib.seen_frame(shape, size, fit=fit, crop_fraction=0.8)
  for axis, side in enumerate(shape):
    at = frame[axis] + (np.arange(size[axis]) + 0.5) * (frame[axis + 2] - frame[axis]) / size[axis]
    middle = fitted[:, size[1] // 2, 0] if axis == 0 else fitted[size[0] // 2, :, 1]
    inside = (at > 0.1 * side) & (at < 0.9 * side)
    np.testing.assert_allclose(middle[inside] * side, at[inside], atol=0.6)


def test_models_of_two_crops_are_compared_where_both_look(rng):
  """Both look at the same place of the photo, which in their inputs is another one."""
  photo = np.float32(0.3 * rng.uniform(size=(56, 56, 3)))
  photo[14:28, 28:42, 0] = 1  # of the whole's 4 x 4 cells: (1, 2)
  whole = looks_at((1, 2), name="whole", fit="stretch")
  middle = looks_at((0, 1), grid=2, name="middle", size=14, crop_fraction=0.5)  # (14..42): 2 x 2
  design = sane_jax.Hadamard(num_masks=64, grid=(4, 4), smoothing=0.0)
  small = sane_jax.Hadamard(num_masks=64, grid=(2, 2), smoothing=0.0)
  a = sane_jax.Explainer(whole, design=design, fill="mean")
  b = sane_jax.Explainer(middle, design=small, fill="mean")
  found = sane_jax.compare(a, b, photo, photo)
  assert found.frame == pytest.approx((14, 14, 42, 42))
  assert found.grid == (2, 2)
  for values in found.maps:
    np.testing.assert_allclose(values, [[0, 2], [0, 0]], atol=0.05)
  assert not found.significant.any()
  assert any("different parts" in w for w in found.warnings)
  assert np.isfinite(found.pixel_maps[0]).all()
  seen = np.isfinite(found.pixel_maps[1])
  assert seen.mean() == pytest.approx(0.25, abs=0.01)
  assert np.isfinite(found.pixel_difference).sum() == seen.sum()
  side = found.picture.shape[0]
  top = np.unravel_index(np.nanargmax(found.pixel_maps[1]), seen.shape)
  assert side / 4 <= top[0] <= side / 2 <= top[1] <= 3 * side / 4


def test_resampling_keeps_means():
  """Means over common cells, of a map that is constant in its own, by counting pixels."""
  explainer = sane_jax.Explainer(nonlinear(), design=sane_jax.Hadamard(grid=(4, 4), num_masks=64))
  one = explainer.effects(np.zeros((SIZE, SIZE, 3), np.float32) + 0.5)
  frame = (0.0, 0.0, 28.0, 28.0)
  matrix = comparison.cell_means(one, frame, (7.0, 0.0, 21.0, 28.0), (2, 3))
  np.testing.assert_allclose(matrix.sum(axis=1), 1)
  values = np.arange(16.0)
  pixels = values.reshape(4, 4).repeat(7, 0).repeat(7 * 3, 1)  # three times as wide: 84
  want = pixels[7:21].reshape(2, 7, 3, 28).mean(axis=(1, 3))
  np.testing.assert_allclose((matrix @ values).reshape(2, 3), want)


def test_superpixels_and_another_design(photos):
  a = sane_jax.Explainer(nonlinear(), design=sane_jax.Lime(num_masks=200))
  b = sane_jax.Explainer(nonlinear(), design=DESIGN)
  found = sane_jax.compare(a, b, photos[0], photos[1])
  assert found.grid == (4, 4)
  assert not found.paired
  assert np.isfinite(found.difference).all()
  assert any("different fills" in w for w in found.warnings)


def test_designs_that_draw_nothing_are_exact(photos):
  design = sane_jax.SlidingWindow(grid=(4, 4))
  found = sane_jax.compare(nonlinear(0), nonlinear(1), photos[0], photos[1], design=design)
  assert not found.standard_error.any()
  assert found.significant.all()
  assert any("every difference is exact" in w for w in found.warnings)


def test_the_errors_degrees_of_freedom_are_those_of_its_prior(rng):
  left_out = rng.normal(size=(8, 200, 1))
  dof = effects.moderated(jnp.asarray(left_out), np.ones(200, bool))[1]
  assert dof[0] > 50  # one variance for all: the cells together know it well
  mixed = left_out * np.exp(rng.normal(size=(1, 200, 1)))
  assert 7 < effects.moderated(jnp.asarray(mixed), np.ones(200, bool))[1][0] < 15
  assert effects.moderated(jnp.asarray(left_out[:1]), np.ones(200, bool))[1][0] == 0


# --- what is given and refused --------------------------------------------------------------------


def test_two_texts_one_of_each_model(photos, tmp_path):
  text = tuple(sane_jax.Embedding(np.arange(6.0) + k, "<script>a red shoe") for k in (0, 1))
  found = sane_jax.compare(nonlinear(0), nonlinear(1), photos[0], text, design=DESIGN)
  assert found.matches == ()
  page = found.to_html(tmp_path / "page.html").read_text()
  assert "&lt;script&gt;a red shoe" in page
  assert "<script" not in page


def test_what_is_refused(photos):
  score = sane_jax.from_score(lambda q, r: q.mean((1, 2, 3)), image_size=SIZE)
  vector = np.arange(6.0)
  for arguments, options, told in (
    ((score, nonlinear()), {}, "give embeddings and a design of masks"),
    ((nonlinear(), nonlinear()), {"design": "learned_mask"}, "a design of masks"),
    ((sane_jax.Explainer(nonlinear(), mode="both"), nonlinear()), {}, "the same mode"),
    ((sane_jax.Explainer(nonlinear()), nonlinear()), {"key": 1}, "key are for models; a is an"),
  ):
    with pytest.raises(ValueError, match=told):
      sane_jax.compare(*arguments, photos[0], photos[1], **options)
  pair = nonlinear(), nonlinear()
  with pytest.raises(ValueError, match="give two, one of each"):
    sane_jax.compare(*pair, photos[0], sane_jax.Embedding(vector, "text"))
  with pytest.raises(ValueError, match="the query's photo"):
    sane_jax.compare(*pair, sane_jax.Embedding(vector, "text"), photos[0])
  with pytest.raises(TypeError, match=r"made by sane_jax\.load_model"):
    sane_jax.compare("efficientnet", nonlinear(), photos[0], photos[1])


def test_noise_is_said(rng):
  """A model that hardly depends on the image: its map is the draw of masks."""
  photo = np.float32(rng.uniform(size=(SIZE, SIZE, 3)))
  wild = sane_jax.from_jax(
    lambda _, x: jnp.stack([jnp.sin(1e4 * x.sum((1, 2, 3))), 5 * jnp.ones(len(x))], axis=1),
    None, image_size=SIZE,
  )  # fmt: skip
  found = sane_jax.compare(wild, nonlinear(), photo, photo[::-1], design=DESIGN)
  assert any("of the map's mean square is the draw of masks" in w for w in found.warnings)
  assert found.reliabilities[0] < 0.5
  assert not found.significant.any()


# --- the page and the job -------------------------------------------------------------------------


def test_the_page_stands_alone(photos, tmp_path):
  found = sane_jax.compare(
    nonlinear(0, "<b>one"), nonlinear(1, "two"), photos[0], photos[1], design=DESIGN
  )
  path = found.to_html(tmp_path / "page.html")
  page = path.read_text()
  assert "http" not in page.replace("http-equiv", "")
  assert "&lt;b&gt;one" in page
  assert page.count('data-row="0"') == 4
  assert "At most, were no noise shared" in page  # one key: the same masks
  assert page.count(" differs") >= found.significant.sum()
  assert len(found.matches) <= 6
  for match in found.matches:
    assert all(0 <= share <= 1 + 1e-6 for share in (*match.query, *match.reference))


@pytest.fixture
def config(tmp_path, monkeypatch, rng):
  import runpy
  from pathlib import Path

  monkeypatch.chdir(tmp_path)
  for n in range(3):
    coarse = Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8))
    coarse.resize((40, 32), Image.Resampling.BILINEAR).save(f"{n}.png")
  made = runpy.run_path(str(Path(__file__).parents[1] / "configs/photos.py"))["get_config"]()
  made.update(
    {"model": "tests.encoders:small_model", "other_model": "tests.encoders:other_model",
     "image_size": SIZE, "num_masks": 64, "grid": (4, 4), "job": "compare_models"}
  )  # fmt: skip
  return made


def test_the_job_compares_pairs_and_goes_on(config, tmp_path, capsys, monkeypatch):
  import json

  from sane_jax.jobs import compare_models

  (tmp_path / "pairs.txt").write_text("0.png 1.png\n1.png 2.png\n")
  config.pairs_file, config.mode = "pairs.txt", "both"
  compare_models.run(config)
  out = tmp_path / "runs/photos/compare_models"
  found = json.loads((out / "comparisons.json").read_text())
  assert found["models"] == ["small", "other"]
  assert [c["query"] for c in found["comparisons"]] == ["0.png", "1.png"]
  assert "2 pairs compared" in capsys.readouterr().out
  page = (out / "index.html").read_text()
  assert page.count('data-role="comparison"') == 2
  assert "--config.job=compare_models" in page
  assert "--config.mode=both" in page
  before = page

  def never(*_, **__):
    raise AssertionError("it was finished")

  monkeypatch.setattr(compare_models.comparison, "compare", never)
  compare_models.run(config)
  assert (out / "index.html").read_text() == before


def test_the_job_lists_what_it_can_t_compare(config, tmp_path):
  import json

  from sane_jax.jobs import compare_models

  (tmp_path / "3.png").write_bytes(b"no image")
  (tmp_path / "pairs.txt").write_text("0.png 1.png\n1.png 3.png\n")
  config.pairs_file = "pairs.txt"
  compare_models.run(config)
  out = tmp_path / "runs/photos/compare_models"
  found = json.loads((out / "comparisons.json").read_text())
  assert len(found["comparisons"]) == 1
  assert "3.png" in str(found["failures"])
  for changes, told in (
    ({"other_model": ""}, "--config.other_model=MODEL"),
    ({"pairs_file": "", "query": "0.png", "reference": "1.png", "contrast": "2.png"}, "contrast"),
  ):
    wrong = config.copy_and_resolve_references()
    wrong.update(changes)
    with pytest.raises(ValueError, match=told):
      compare_models.run(wrong)
