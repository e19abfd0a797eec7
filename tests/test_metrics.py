"""Insertion and deletion against curves worked out by hand."""

import numpy as np
import pytest

import sane_jax
from sane_jax.ops import insertion_deletion as curves_lib
from tests import encoders

SIZE = encoders.SIZE


@pytest.fixture
def explainer():
  model = sane_jax.from_jax(encoders.nonlinear, encoders.nonlinear_params(), image_size=SIZE)
  return sane_jax.Explainer(model, design="hadamard", num_masks=64, grid=(4, 4))


def curves_by_hand(query, saliency, target, background):
  """Every threshold's image made by sorting pixels, embedded in float64."""
  order = sorted(range(SIZE * SIZE), key=lambda p: (-saliency.ravel()[p], p))
  shown, hidden = [], []
  for t in range(101):
    top = order[: int(np.ceil(t / 100 * SIZE * SIZE - 1e-9))]
    for start, end, out in ((background, query, shown), (query, background, hidden)):
      image = start.reshape(-1, 3).copy()
      image[top] = end.reshape(-1, 3)[top]
      out.append(image.reshape(query.shape))
  params = encoders.nonlinear_params()
  return [encoders.nonlinear_unit_float64(params, images) @ target for images in (shown, hidden)]


@pytest.mark.parametrize("background", ["mean", "white", (0.2, 0.4, 0.6)])
def test_curves_equal_brute_force(explainer, photos, background):
  es = explainer.explain_many(photos[0], photos[1:4])
  got = sane_jax.insertion_deletion(explainer, es, background=background)
  assert got.insertion.shape == got.deletion.shape == (3, 101)
  value = {"mean": photos[0].mean(axis=(0, 1)), "white": 1.0}.get(str(background), background)
  back = np.broadcast_to(np.asarray(value, np.float64), photos[0].shape)
  for row, e in enumerate(es):
    target = encoders.nonlinear_unit_float64(encoders.nonlinear_params(), photos[row + 1][None])[0]
    want = curves_by_hand(photos[0].astype(np.float64), e.saliency_map, target, back)
    np.testing.assert_allclose(got.insertion[row], want[0], atol=2e-6)
    np.testing.assert_allclose(got.deletion[row], want[1], atol=2e-6)
  # The ends are the whole image and the background, one curve the other's way round.
  np.testing.assert_allclose(got.insertion[:, -1], got.deletion[:, 0], atol=1e-6)
  np.testing.assert_allclose(got.insertion[:, 0], got.deletion[:, -1], atol=1e-6)
  np.testing.assert_allclose(got.insertion[:, -1], [e.score for e in es], atol=1e-6)


def test_a_map_of_cells_may_be_judged_drawn_smoothly(explainer, photos):
  """Bilinear between the middles of cells; a map that is smooth anyway is judged as it is."""
  es = explainer.explain_many(photos[0], photos[1:3])
  smooth = sane_jax.insertion_deletion(explainer, es, background="white", drawing="smooth")
  middles = (np.arange(4) + 0.5) * SIZE / 4 - 0.5
  for row, e in enumerate(es):
    cells = e.saliency.cells.reshape(4, 4)
    by_rows = np.array([np.interp(np.arange(SIZE), middles, column) for column in cells.T])
    drawn = np.array([np.interp(np.arange(SIZE), middles, line) for line in by_rows.T])
    target = encoders.nonlinear_unit_float64(encoders.nonlinear_params(), photos[row + 1][None])[0]
    want = curves_by_hand(photos[0].astype(np.float64), drawn, target, np.ones_like(photos[0]))
    np.testing.assert_allclose(smooth.deletion[row], want[1], atol=1e-3)  # but for ties
  rise = sane_jax.Explainer(explainer.model, design="rise", num_masks=20).explain(*photos[:2])
  for one, other in zip(
    *(sane_jax.insertion_deletion(explainer, [rise], drawing=d) for d in ("cells", "smooth")),
    strict=True,
  ):
    np.testing.assert_array_equal(one, other)
  with pytest.raises(ValueError, match="drawing is 'smooth' or 'cells'; given 'soft'"):
    sane_jax.insertion_deletion(explainer, es, drawing="soft")


def test_reference_and_both(explainer, photos):
  e = explainer.explain(photos[0], photos[1])
  back = np.full_like(photos[0], 1.0)
  by_query = sane_jax.insertion_deletion(explainer, [e], background="white")
  reference = sane_jax.insertion_deletion(explainer, [e], background="white", perturb="reference")
  params = encoders.nonlinear_params()
  target = encoders.nonlinear_unit_float64(params, photos[:1])[0]
  want = curves_by_hand(photos[1].astype(np.float64), e.reference_saliency_map, target, back)
  np.testing.assert_allclose(reference.deletion[0], want[1], atol=2e-6)
  both = sane_jax.insertion_deletion(explainer, [e], background="white", perturb="both")
  assert both.insertion[0, 0] == pytest.approx(1, abs=1e-6)  # white against white
  assert both.insertion[0, -1] == pytest.approx(by_query.insertion[0, -1], abs=1e-6)


def test_score_only_models_have_the_same_curves(explainer, photos):
  params = encoders.nonlinear_params()

  def score(queries, reference):
    u = encoders.nonlinear_unit_float64(params, queries)
    return u @ encoders.nonlinear_unit_float64(params, reference[None])[0]

  model = sane_jax.from_score(score, image_size=SIZE)
  other = sane_jax.Explainer(model, design=explainer.design)
  for perturb in ("query", "reference", "both"):
    a, b = (
      sane_jax.insertion_deletion(x, [x.explain(photos[0], photos[1])], perturb=perturb)
      for x in (explainer, other)
    )
    # A tie broken by rounding may swap two pixels of equal saliency.
    np.testing.assert_allclose(a.insertion, b.insertion, atol=2e-3)
    np.testing.assert_allclose(a.deletion, b.deletion, atol=2e-3)


def test_pairs_do_not_disturb_one_another(explainer, photos):
  es = explainer.explain_many(photos[0], photos[1:4])
  together = sane_jax.insertion_deletion(explainer, es)
  alone = sane_jax.insertion_deletion(explainer, es[1:2])
  np.testing.assert_allclose(together.deletion[1], alone.deletion[0], atol=1e-6)


def test_a_true_map_beats_its_negative_and_noise(rng):
  query = rng.uniform(size=(SIZE, SIZE, 3)).astype(np.float32) * 0.2
  query[14:21, 7:14] = [0.9, 0.1, 0.1]
  reference = np.zeros((SIZE, SIZE, 3), np.float32)
  reference[14:21, 7:14] = [0.9, 0.1, 0.1]
  model = sane_jax.from_jax(
    lambda _, x: encoders.one_region(((14, 21), (7, 14)), x), None, image_size=SIZE
  )
  explainer = sane_jax.Explainer(model, design="hadamard", num_masks=64, grid=(4, 4))
  e = explainer.explain(query, reference)
  good = curves_lib.areas(sane_jax.insertion_deletion(explainer, [e]))
  e.saliency = e.saliency._replace(values=-e.saliency_map)
  bad = curves_lib.areas(sane_jax.insertion_deletion(explainer, [e]))
  assert good["insertion"][0] > 90
  assert good["deletion"][0] < 10
  assert bad["insertion"][0] < 15
  assert bad["deletion"][0] > 85


def test_areas_and_normalisation_by_hand():
  step = np.linspace(0, 1, 101)
  curves = curves_lib.Curves(
    np.stack([2 + 3 * step, np.full(101, 0.7)]), np.stack([5 - step, np.where(step > 0, 0.0, 1.0)])
  )
  got = curves_lib.areas(curves)
  np.testing.assert_allclose(got["insertion"], [50, 50])  # a line, and a flat curve
  np.testing.assert_allclose(got["deletion"], [50, 0.5])


def test_pixel_ranks():
  np.testing.assert_array_equal(
    curves_lib.pixel_ranks(np.array([[0.1, 0.5], [0.5, -1.0]])), [[2, 0], [1, 3]]
  )


def test_refusals(explainer, photos):
  e = explainer.explain(photos[0], photos[1])
  with pytest.raises(ValueError, match="'query', 'reference' or 'both'"):
    sane_jax.insertion_deletion(explainer, [e], perturb="left")
  with pytest.raises(ValueError, match="at least one"):
    sane_jax.insertion_deletion(explainer, [])
  with pytest.raises(ValueError, match="no fill 'pink'"):
    sane_jax.insertion_deletion(explainer, [e], background="pink")
