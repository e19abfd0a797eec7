"""The explainer against brute force in float64, closed forms, planted evidence, and counters."""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Ridge

import sane_jax
from sane_jax.maps import engine as engine_lib
from sane_jax.ops import designs, fills, resampling
from sane_jax.ops import effects as effects_lib
from tests import encoders

SIZE = encoders.SIZE
SAMPLING = [
  sane_jax.Rise(num_masks=200),
  sane_jax.SlidingWindow(grid=(7, 7)),
  sane_jax.Lime(num_masks=200, grid=(4, 4)),
  sane_jax.KernelShap(num_masks=201, grid=(4, 4)),
  sane_jax.Hadamard(num_masks=128, grid=(4, 4), smoothing=0.0),
]
by_name = functools.partial(pytest.mark.parametrize, "design", ids=lambda d: type(d).__name__)


@functools.cache  # traced once
def nonlinear_model():
  return sane_jax.from_jax(encoders.nonlinear, encoders.nonlinear_params(), image_size=SIZE)


def masks_of(design, key, start, count, shape=(SIZE, SIZE)):
  cells = designs.grid_cells(shape, design.grid)
  out = jax.vmap(lambda i: designs.mask(design, key, cells, i)[0])(start + jnp.arange(count))
  return np.asarray(out, np.float64)


def scores_by_hand(masks, query, reference):
  """Cosines of every masked query, and of the whole, with the reference: float64 throughout."""
  query = np.asarray(query, np.float64)
  fill = query.mean(axis=(0, 1))
  images = [m[..., None] * query + (1 - m[..., None]) * fill for m in masks]
  params = encoders.nonlinear_params()
  embeddings = encoders.nonlinear_unit_float64(params, [*images, query])
  return embeddings @ encoders.nonlinear_unit_float64(params, [reference])[0]


def map_by_hand(design, masks, scores):
  """Each method from its formula, one pair at a time, with no effect matrix."""
  s, whole = scores[:-1], scores[-1]
  cells = 7 if isinstance(design, sane_jax.SlidingWindow) else 4
  z = masks[:, :: SIZE // cells, :: SIZE // cells].reshape(len(masks), -1)
  if isinstance(design, sane_jax.Rise):
    return (np.einsum("nhw,n->hw", masks, s) / masks.sum(0) - s.mean()).ravel()
  if isinstance(design, sane_jax.SlidingWindow):
    return whole - s
  if isinstance(design, sane_jax.Hadamard):
    return np.array([s[z[:, c] == 1].mean() - s[z[:, c] == 0].mean() for c in range(z.shape[1])])
  if isinstance(design, sane_jax.Lime):
    cosine = z.sum(1) / (np.linalg.norm(z, axis=1) * np.sqrt(z.shape[1]))
    weights = np.sqrt(np.exp(-((1 - cosine) ** 2) / 0.25**2))
    alpha = len(z) / 1000  # the paper's 1 at its number of samples
    return Ridge(alpha=alpha).fit(z, s, sample_weight=weights).coef_
  kkt = np.zeros((17, 17))
  kkt[:16, :16], kkt[:16, 16], kkt[16, :16] = z[1:].T @ z[1:], 1, 1
  return np.linalg.solve(kkt, np.append(z[1:].T @ (s[1:] - s[0]), whole - s[0]))[:16]


def relative(got, want):
  return np.abs(got - want).max() / np.abs(want).max()


# --- identities -----------------------------------------------------------------------------------


@by_name(SAMPLING)
def test_effect_matrix_equals_the_computation_pair_by_pair(design, photos):
  explainer = sane_jax.Explainer(nonlinear_model(), design=design, fill="mean")
  query, references = photos[0], photos[1:4]
  masks = masks_of(design, explainer.key, 0, design.num_masks)
  for e, reference in zip(explainer.explain_many(query, references), references, strict=True):
    scores = scores_by_hand(masks, query, reference)
    want = map_by_hand(design, masks, scores)
    # A window's effect is the difference of two scores: no truer than the last bit of one.
    last_bit = np.finfo(np.float32).eps * isinstance(design, sane_jax.SlidingWindow)
    assert np.abs(e.saliency.cells - want).max() < 1e-5 * np.abs(want).max() + last_bit
    assert e.score == pytest.approx(scores[-1], abs=1e-6)


@by_name(SAMPLING)
def test_both_images_map_is_the_mean_of_explicit_runs(design, photos):
  explainer = sane_jax.Explainer(nonlinear_model(), design=design, mode="both", fill="mean")
  query, reference = photos[:2]
  e = explainer.explain(query, reference)
  masks = masks_of(design, explainer.key, 0, design.num_masks)
  other, start, count = design.reference_masks()
  key = jax.random.fold_in(explainer.key, np.uint32(2**32 - 1))
  reference_masks = masks_of(other, key, start, count)
  fill = reference.astype(np.float64).mean(axis=(0, 1))
  runs = []
  for m in reference_masks:
    shown = m[..., None] * reference + (1 - m[..., None]) * fill
    runs.append(map_by_hand(design, masks, scores_by_hand(masks, query, shown)))
  assert relative(e.saliency.cells, np.mean(runs, axis=0)) < 1e-5
  assert count == (36 if isinstance(design, sane_jax.SlidingWindow) else 30)
  # The query's masks have a key of their own: the reference is not masked by the same ones.
  if not isinstance(design, sane_jax.SlidingWindow):
    assert np.abs(masks[start : start + count] - reference_masks).max() > 0.5


def test_a_chunk_that_does_not_fit_is_halved(photos, monkeypatch):
  """As if the device had room for 9 images."""
  design = sane_jax.Hadamard(num_masks=128, grid=(4, 4))
  expected = sane_jax.Explainer(nonlinear_model(), design=design).explain(photos[0], photos[1])
  stream, sizes = effects_lib.stream, []

  def small(*args, chunk, **options):
    sizes.append(chunk)
    if chunk > 9:
      raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
    return stream(*args, chunk=chunk, **options)

  monkeypatch.setattr(effects_lib, "stream", small)
  explainer = sane_jax.Explainer(nonlinear_model(), design=design, chunk_size=64)
  with pytest.warns(UserWarning, match=r"16 images at a time do not fit.*chunk_size=8"):
    found = explainer.explain(photos[0], photos[1])
  assert sizes[:4] == [64, 32, 16, 8]
  np.testing.assert_allclose(found.saliency_map, expected.saliency_map, atol=1e-6)
  assert found.encoder_passes == expected.encoder_passes
  monkeypatch.setattr(
    effects_lib, "stream", lambda *args, **kw: small(*args, **{**kw, "chunk": 99})
  )
  with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
    sane_jax.Explainer(nonlinear_model(), design=design, chunk_size=1).explain(*photos[:2])


def test_whole_images_that_do_not_fit_are_halved_and_other_errors_are_not(photos, monkeypatch):
  embed, sizes = engine_lib._embed, []

  def small(model, params, images, why="RESOURCE_EXHAUSTED: Out of memory"):
    sizes.append(len(images))
    if len(images) > 2:
      raise jax.errors.JaxRuntimeError(why)
    return embed(model, params, images)

  expected = sane_jax.Explainer(nonlinear_model()).embed(photos)
  monkeypatch.setattr(engine_lib, "_embed", small)
  explainer = sane_jax.Explainer(nonlinear_model(), chunk_size=4)
  with pytest.warns(UserWarning, match="4 images at a time do not fit"):
    found = explainer.embed(photos)
  assert sizes == [4, 2, 2, 1]
  assert explainer.encoder_passes == 5
  np.testing.assert_allclose(found, expected, atol=1e-6)
  monkeypatch.setattr(engine_lib, "_embed", lambda *args: small(*args, why="INTERNAL: a bug"))
  explainer, sizes[:] = sane_jax.Explainer(nonlinear_model(), chunk_size=4), []
  with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
    explainer.embed(photos)
  assert sizes == [4]


def test_progress_is_shown_within_and_can_end_a_pass(photos):
  def stop(done, count):
    raise InterruptedError

  host = sane_jax.from_numpy(lambda x: x.mean((1, 2)), image_size=SIZE)
  shown = []
  explainer = sane_jax.Explainer(host, on_progress=lambda *at: shown.append(at))
  with pytest.raises(InterruptedError), explainer.progress(stop):
    explainer.explain(*photos[:2])
  assert not shown
  explainer.explain(*photos[:2])
  assert shown[-1] == (256, 256)


@pytest.mark.parametrize(("fits", "fastest"), [(1000, 32), (16, 16), (6, 6)])
def test_the_fastest_chunk_is_found_by_trying(fits, fastest, monkeypatch):
  """On a clock of our own: 8 images a second, more with larger chunks until 32, then fewer."""
  clock = [0.0]
  rates = {6: 7, 8: 8, 16: 10, 32: 12, 64: 5, 128: 1000}

  def run(engine, render, update, args, total, count):
    if engine.chunk > fits:
      engine.chunk = fits
    clock[0] += count / rates[engine.chunk]

  monkeypatch.setattr(engine_lib, "run", run)
  monkeypatch.setattr(engine_lib.time, "monotonic", lambda: clock[0])
  assert engine_lib.fastest_chunk(nonlinear_model(), jax.local_devices()) == fastest


def test_the_fastest_chunk_gives_the_same_map(photos):
  quick = sane_jax.Explainer(nonlinear_model(), num_masks=128, chunk_size="fastest")
  plain = sane_jax.Explainer(nonlinear_model(), num_masks=128)
  found = [e.explain(*photos[:2]).saliency_map for e in (quick, plain)]
  np.testing.assert_allclose(*found, atol=1e-6)
  assert quick.encoder_passes == plain.encoder_passes  # trying is not explaining
  with pytest.raises(ValueError, match="'fastest'; given 'quick'"):
    sane_jax.Explainer(nonlinear_model(), chunk_size="quick")
  with pytest.raises(ValueError, match="scores alone"):
    sane_jax.Explainer(
      sane_jax.from_score(lambda q, r: np.zeros(len(q)), image_size=8), chunk_size="fastest"
    )


@by_name(SAMPLING)
def test_chunk_size_and_repetition_do_not_matter(design, photos):
  maps = []
  extremes = (1, design.num_masks) if isinstance(design, sane_jax.Hadamard) else ()
  for chunk in (64, 7, *extremes):
    explainer = sane_jax.Explainer(nonlinear_model(), design=design, chunk_size=chunk)
    maps.append(explainer.explain(*photos[:2]).saliency_map)
  for other in maps[1:]:
    np.testing.assert_allclose(other, maps[0], atol=1e-6)
  again = sane_jax.Explainer(nonlinear_model(), design=design, chunk_size=64)
  np.testing.assert_array_equal(again.explain(*photos[:2]).saliency_map, maps[0])
  different = sane_jax.Explainer(nonlinear_model(), design=design, key=1)
  if not isinstance(design, sane_jax.SlidingWindow):
    assert np.abs(different.explain(*photos[:2]).saliency_map - maps[0]).max() > 1e-5


@by_name([d for d in SAMPLING if not isinstance(d, sane_jax.SlidingWindow)])
def test_with_a_tolerance_it_stops_when_the_error_is_reached(design, photos):
  query, reference = photos[:2]

  def relative(e):
    return np.median(e.saliency.cell_errors) / np.abs(e.saliency.cells).max()

  spent = []
  for tolerance in (0.5, 0.003):
    explainer = sane_jax.Explainer(
      nonlinear_model(), design=design, tolerance=tolerance, num_masks=8 * design.num_masks - 7 * (
        design.num_fixed)
    )  # fmt: skip
    e = explainer.explain(query, reference)
    count = e.settings["num_masks"]
    spent.append(count)
    assert e.encoder_passes == count + 2
    assert relative(e) <= tolerance or e.warnings
    fixed = dataclasses.replace(design, num_masks=count)
    again = sane_jax.Explainer(nonlinear_model(), design=fixed).explain(query, reference)
    np.testing.assert_allclose(e.saliency_map, again.saliency_map, atol=1e-6)
  assert spent[0] <= spent[1]
  assert spent[0] < spent[1] or not isinstance(design, sane_jax.Hadamard)
  # One replicate less would not have done.
  loose = sane_jax.Explainer(nonlinear_model(), design=design, tolerance=1e-9)
  with pytest.warns(UserWarning, match=r"above the tolerance of 1e-09; raise num_masks"):
    e = loose.explain(query, reference)
  assert e.settings["num_masks"] == 8 * (design.num_masks - design.num_fixed) + design.num_fixed


def test_a_tolerance_serves_many_references_and_effects(photos):
  design = sane_jax.Hadamard(num_masks=2048, grid=(4, 4))
  explainer = sane_jax.Explainer(nonlinear_model(), design=design, tolerance=0.2, num_masks=2048)
  found = explainer.explain_many(photos[0], list(photos[1:]))
  counts = {e.settings["num_masks"] for e in found}
  assert len(counts) == 1
  for e in found:
    assert np.median(e.saliency.cell_errors) <= 0.2 * np.abs(e.saliency.cells).max()
  measured = explainer.effects(photos[0])
  e = explainer.explain(measured, photos[1])
  assert e.settings["num_masks"] == measured.settings["num_masks"] < 2048


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"tolerance": 0.0}, "such as 0.1; given 0"),
    ({"tolerance": float("nan")}, "given nan"),
    ({"tolerance": 0.1, "design": "sliding_window"}, "has no standard error to stop by"),
    ({"tolerance": 0.1, "design": "learned_mask"}, "has no standard error to stop by"),
    ({"tolerance": 0.1, "design": "hadamard", "num_masks": 128}, "two replicates or more, of 128"),
  ],
)
def test_a_tolerance_that_can_t_be_is_named(options, words):
  with pytest.raises(ValueError, match=words):
    sane_jax.Explainer(nonlinear_model(), **options)
  with pytest.raises(ValueError, match="nothing but scores"):
    sane_jax.Explainer(score_model(), tolerance=0.1)


def test_half_precision_is_close_and_says_so(photos):
  design = sane_jax.Hadamard(num_masks=128, grid=(4, 4))
  whole, half = (
    sane_jax.Explainer(nonlinear_model(), design=design, dtype=dtype).explain(*photos[:2])
    for dtype in ("float32", "bfloat16")
  )
  assert "bfloat16" in half.settings["model"]
  assert half.saliency.cells.dtype == np.float32
  assert 1e-7 < relative(half.saliency.cells, whole.saliency.cells) < 0.1
  host = sane_jax.from_numpy(lambda x: x.mean((1, 2)), image_size=SIZE)
  with pytest.raises(sane_jax.ModelError, match="at a precision of its own"):
    sane_jax.Explainer(host, dtype="bfloat16")
  for dtype in ("int8", "float12"):
    with pytest.raises(sane_jax.ModelError, match=f"given '{dtype}'"):
      sane_jax.Explainer(nonlinear_model(), dtype=dtype)


@by_name([SAMPLING[0], SAMPLING[4]])
def test_fills_take_turns_a_pair_at_a_time(design, photos):
  query, reference = photos[:2].astype(np.float64)
  explainer = sane_jax.Explainer(nonlinear_model(), design=design, fill="mean+white+black")
  e = explainer.explain(*photos[:2])
  masks = masks_of(design, explainer.key, 0, design.num_masks)
  behind = [query.mean((0, 1)), np.ones(3), np.zeros(3)]
  images = [
    m[..., None] * query + (1 - m[..., None]) * behind[i // 2 % 3] for i, m in enumerate(masks)
  ]
  params = encoders.nonlinear_params()
  unit = encoders.nonlinear_unit_float64(params, [*images, query])
  scores = unit @ encoders.nonlinear_unit_float64(params, [reference])[0]
  by_hand = map_by_hand(design, masks, scores)
  if isinstance(design, sane_jax.Rise):
    rows = resampling.averaging(SIZE, design.grid[0])
    by_hand = (rows @ by_hand.reshape(SIZE, SIZE) @ rows.T).ravel()
    assert relative(e.saliency.cells, by_hand) < 1e-2  # cells' means of ratios, and their ratio
  else:
    assert relative(e.saliency.cells, by_hand) < 1e-5
  assert e.settings["fill"] == "mean+white+black"
  with pytest.raises(ValueError, match="no fill 'green'"):
    sane_jax.Explainer(nonlinear_model(), fill="mean+green")


def test_keys_of_either_kind(photos):
  maps = [
    sane_jax.Explainer(nonlinear_model(), design=SAMPLING[4], key=key).explain(*photos[:2])
    for key in (3, jax.random.key(3), jax.random.PRNGKey(3), np.int64(3))
  ]
  for other in maps[1:]:
    np.testing.assert_array_equal(other.saliency_map, maps[0].saliency_map)
    assert other.settings == maps[0].settings


def test_one_device_and_two_give_the_same_map(photos):
  devices = jax.local_devices()
  assert len(devices) == 2
  maps = [
    sane_jax.Explainer(nonlinear_model(), design=SAMPLING[0], devices=d).explain(*photos[:2])
    for d in (devices, devices[:1], devices[1:])
  ]
  for other in maps[1:]:
    np.testing.assert_allclose(other.saliency_map, maps[0].saliency_map, atol=1e-6)


def test_effects_serve_in_place_of_images(photos):
  explainer = sane_jax.Explainer(nonlinear_model(), design=SAMPLING[4])
  query, reference = explainer.effects(photos[0]), explainer.effects(photos[1])
  before = explainer.encoder_passes
  e = explainer.explain(query, reference)
  table, reference_map = e.correspondence, e.reference_saliency_map
  assert explainer.encoder_passes == before
  assert e.encoder_passes == 2 * 129
  fresh = explainer.explain(photos[0], photos[1])
  np.testing.assert_array_equal(fresh.saliency_map, e.saliency_map)
  np.testing.assert_allclose(fresh.reference_saliency_map, reference_map, atol=1e-7)
  np.testing.assert_allclose(fresh.correspondence, table, atol=1e-5)
  other = sane_jax.Explainer(nonlinear_model(), design=SAMPLING[0])
  with pytest.raises(ValueError, match="measured with design='hadamard'"):
    other.explain(query, reference)


def test_correspondence_by_hand(photos):
  explainer = sane_jax.Explainer(nonlinear_model(), design=SAMPLING[4], fill="mean")
  e = explainer.explain(*photos[:2])
  rows = []
  for image in photos[:2]:
    masks = masks_of(SAMPLING[4], explainer.key, 0, 128)
    image = image.astype(np.float64)
    shown = [m[..., None] * image + (1 - m[..., None]) * image.mean(axis=(0, 1)) for m in masks]
    u = encoders.nonlinear_unit_float64(encoders.nonlinear_params(), shown)
    z = masks[:, ::7, ::7].reshape(128, 16)
    effect = np.array([u[z[:, c] == 1].mean(0) - u[z[:, c] == 0].mean(0) for c in range(16)])
    effect -= effect.mean(0)
    rows.append(effect / np.linalg.norm(effect, axis=1, keepdims=True))
  assert e.grid == (4, 4)
  np.testing.assert_allclose(e.correspondence, rows[0] @ rows[1].T, atol=1e-4)


def test_contrast_is_the_difference_of_two_maps(photos):
  for model in (nonlinear_model(), score_model()):
    explainer = sane_jax.Explainer(model, design=SAMPLING[4])
    a, b = explainer.explain_many(photos[0], photos[1:3])
    c = explainer.contrast(photos[0], photos[1], photos[2])
    np.testing.assert_allclose(c.saliency_map, a.saliency_map - b.saliency_map, atol=1e-6)
    assert c.score == pytest.approx(a.score - b.score, abs=1e-6)
    assert c.contrast is not None
    # Its error is that of the difference, far less than two independent maps' errors would give.
    assert np.isfinite(c.standard_error).all()


# --- closed forms ---------------------------------------------------------------------------------


def linear_setup(rng):
  query = rng.uniform(size=(SIZE, SIZE, 3)).astype(np.float32)
  coarse = rng.normal(size=(4, 4, 3))  # regions that help and regions that harm
  weights = np.kron(coarse, np.ones((7, 7, 1))).astype(np.float32)
  weights *= 0.9 / np.abs(weights).sum()
  # One pixel's contribution to the score, over what stands in when it is hidden (black).
  beta = (weights * query).astype(np.float64).sum(-1)

  def embed(params, images):  # the reference, all ones, lies on the first axis
    e = encoders.linear(params, images)
    is_reference = (images > 1.5 / 2).all(axis=(1, 2, 3))[:, None]
    return jnp.where(is_reference, jnp.array([[1.0, 0.0]]), e)

  model = sane_jax.from_jax(embed, weights, image_size=SIZE)
  return model, query, np.ones((SIZE, SIZE, 3), np.float32), beta


def closed_form(design, beta):
  """The expected map of a linear score whose pixels contribute `beta`."""
  n = design.grid[0]
  per_cell = beta.reshape(n, SIZE // n, n, SIZE // n).sum((1, 3)).ravel() if SIZE % n == 0 else None
  if isinstance(design, sane_jax.SlidingWindow):
    out = []
    for i in range(7):
      for j in range(7):
        top, left = (round(-2 + k * (SIZE + 4 - 8) / 6) for k in (i, j))
        out.append(beta[max(top, 0) : top + 8, max(left, 0) : left + 8].sum())
    return np.array(out)
  if isinstance(design, sane_jax.Rise):
    # E[s | weight m(p)] − E[s] = Σ_q β(q) Cov(m(p), m(q)) / E m(p); m is separable in shift and
    # cell, Bernoulli cells are independent with variance 1/4: average over all shifts.
    m, step = design.mask_cells, -(-SIZE // design.mask_cells)
    second = []
    for shift in range(step):
      position = np.clip((np.arange(SIZE) + shift + 0.5) / step * m / (m + 1) - 0.5, 0, m - 1)
      weight = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(m)))
      second.append(weight @ weight.T)
    k = np.mean(second, axis=0)  # rows and columns shift independently
    return (0.25 * k @ beta @ k / 0.5).ravel()
  return per_cell


@by_name(
  [
    sane_jax.Rise(num_masks=2000),
    sane_jax.SlidingWindow(grid=(7, 7)),
    sane_jax.Lime(num_masks=1000, grid=(4, 4), ridge=1e-3),
    sane_jax.KernelShap(num_masks=501, grid=(4, 4)),
    sane_jax.Hadamard(num_masks=128, grid=(4, 4), smoothing=0.0),
  ]
)
def test_linear_encoder_has_its_closed_form(design, rng):
  model, query, reference, beta = linear_setup(rng)
  e = sane_jax.Explainer(model, design=design, fill="black").explain(query, reference)
  want = closed_form(design, beta)
  error = np.abs(e.saliency.cells - want)
  assert np.abs(want).max() > 1e-3
  # Within its standard error: the worst of the cells within four, or within rounding.
  assert (error < 4.5 * e.saliency.cell_errors + 2e-6).all()
  if not isinstance(design, sane_jax.Rise):
    assert error.max() < 3e-5  # nothing but rounding and the ridge disturbs these


@by_name([sane_jax.Rise(num_masks=400, grid=(7, 7)), sane_jax.Hadamard(num_masks=160, grid=(4, 4))])
def test_standard_error_is_honest(design, rng):
  """About 68 % of cells lie inside one standard error and 95 % inside two, over many keys."""
  if isinstance(design, sane_jax.Rise):
    model, query, reference, beta = linear_setup(rng)
    want = closed_form(sane_jax.Rise(), beta).reshape(7, 4, 7, 4).mean((1, 3)).ravel()
    fill = "black"
  else:
    model, fill = nonlinear_model(), "mean"
    query, reference = rng.uniform(size=(2, SIZE, SIZE, 3)).astype(np.float32)
    many = sane_jax.Explainer(
      model, design=sane_jax.Hadamard(num_masks=32 * 400, grid=(4, 4)), fill=fill
    )
    want = many.explain(query, reference).saliency.cells
  inside = []
  for key in range(40):
    e = sane_jax.Explainer(model, design=design, fill=fill, key=key).explain(query, reference)
    inside.append(np.abs(e.saliency.cells - want) / e.saliency.cell_errors)
  inside = np.concatenate(inside)
  assert 0.60 < np.mean(inside < 1) < 0.76
  assert 0.91 < np.mean(inside < 2) < 0.985


def test_both_images_error_counts_the_references_masks(photos):
  """The map over many keys scatters as the error says, the K reference masks' share included."""
  query, reference = photos[:2]
  maps, errors = [], []
  for key in range(30):
    explainer = sane_jax.Explainer(
      nonlinear_model(), design="hadamard", num_masks=160, grid=(4, 4), mode="both", key=key
    )
    e = explainer.explain(query, reference)
    maps.append(e.saliency.cells)
    errors.append(e.saliency.cell_errors)
  scatter = np.std(maps, axis=0, ddof=1)
  claimed = np.sqrt(np.mean(np.square(errors), axis=0))
  assert 0.7 < np.median(claimed / scatter) < 1.4


@pytest.mark.parametrize("design", [sane_jax.Hadamard(), sane_jax.Rise(num_masks=200)])
def test_the_share_of_the_reference_s_masks_is_their_scatter(photos, design):
  """Of the query's masks nothing is drawn anew; fills that take turns are no scatter."""
  matrix = np.asarray(
    sane_jax.Explainer(nonlinear_model(), design=design).effects(photos[0]).matrix
  )
  maps, variances = [], []
  for key in range(50):
    explainer = sane_jax.Explainer(
      nonlinear_model(), design=design, mode="both", fill="mean+blur", key=key
    )
    each = explainer.masked_embeddings(photos[1]) @ matrix.T
    groups = effects_lib.reference_groups(design, each, num_fills=2)
    maps.append(groups.mean(axis=0))
    variances.append(groups.var(axis=0, ddof=1) / len(groups))
  ratio = np.mean(variances, axis=0) / np.var(maps, axis=0, ddof=1)
  assert 0.7 < np.median(ratio) < 1.45


def test_one_replicate_has_no_spread_to_see(photos):
  explainer = sane_jax.Explainer(nonlinear_model(), design="hadamard", num_masks=32, grid=(4, 4))
  assert np.isnan(explainer.explain(*photos[:2]).standard_error).all()


# --- planted evidence -----------------------------------------------------------------------------

REGION = ((14, 21), (7, 14))
GENERATORS = [
  sane_jax.Rise(num_masks=1000),
  sane_jax.SlidingWindow(),
  sane_jax.Lime(num_masks=300),
  sane_jax.Lime(num_masks=300, grid=(4, 4)),
  sane_jax.KernelShap(num_masks=301, grid=(4, 4)),
  sane_jax.KernelShap(num_masks=301, grid=None),
  sane_jax.Hadamard(num_masks=128, grid=(4, 4)),
  sane_jax.Hadamard(num_masks=128, grid=(4, 4), smoothing=0.0),
  sane_jax.LearnedMask(cells=4, num_steps=150),
]


def planted(rng, sign, scale=1):
  """A query that matches the reference in REGION alone, or is spoilt by it (sign −1).

  Backgrounds differ, so that the two differ where nothing is shown (their mean colours): were
  those alike, masking both images with probability 1/2 would by symmetry show no effect at all.
  """
  size = scale * SIZE
  rows, columns = (slice(scale * low, scale * high) for low, high in REGION)
  query = np.full((size, size, 3), [0.1, 0.1, 0.8], np.float32)
  reference = np.full((size, size, 3), [0.1, 0.8, 0.1], np.float32)
  query += 0.03 * rng.normal(size=query.shape).astype(np.float32)
  query[rows, columns] = [0.9, 0.1, 0.1]
  reference[rows, columns] = [1.0, 0.0, 0.0] if sign > 0 else [0.0, 0.0, 1.0]
  return query.clip(0, 1), reference, region_model(scale), (rows, columns)


@functools.cache  # traced once
def region_model(scale):
  region = tuple((scale * low, scale * high) for low, high in REGION)
  return sane_jax.from_jax(
    lambda _, x: encoders.one_region(region, x), None, image_size=scale * SIZE, name="one_region"
  )


@by_name(GENERATORS)
@pytest.mark.parametrize("mode", ["fixed", "both"])
@pytest.mark.parametrize("sign", [1, -1])
def test_every_generator_finds_planted_evidence(design, mode, sign, rng):
  # Superpixels are made for photos: at 28 pixels there is but one.
  scale = 4 if getattr(design, "grid", 0) is None else 1
  query, reference, model, (rows, columns) = planted(rng, sign, scale)
  explainer = sane_jax.Explainer(model, design=design, mode=mode, fill="mean")
  saliency = explainer.explain(query, reference).saliency_map
  if sign < 0 and isinstance(design, sane_jax.LearnedMask):
    assert saliency.max() < 0.2  # nothing to hide: hiding the region raises the score
    return
  top = sign * saliency >= (sign * saliency).max() - 1e-3 * np.abs(saliency).max()
  row, column = (axis.mean() for axis in np.nonzero(top))  # a maximum may be a plateau
  assert rows.start <= row < rows.stop
  assert columns.start <= column < columns.stop
  assert (np.sign(saliency[rows, columns]) == sign).mean() > 0.9


def test_random_is_noise_of_its_key_whatever_the_images(photos):
  def noise(model, key, query, reference):
    explainer = sane_jax.Explainer(model, design="random", key=key)
    return explainer.explain(photos[query], photos[reference]).saliency.cells

  one = noise(nonlinear_model(), 0, 0, 1)
  np.testing.assert_array_equal(one, noise(score_model(), 0, 2, 3))
  assert 0.7 < one.std() < 1.3
  assert np.abs(one - noise(nonlinear_model(), 9, 0, 1)).max() > 0.1


def test_random_floor_does_not_find_it(rng):
  query, reference, model, _ = planted(rng, 1)
  found = 0
  for key in range(20):
    e = sane_jax.Explainer(model, design="random", key=key).explain(query, reference)
    row, column = np.unravel_index(np.argmax(e.saliency_map), (SIZE, SIZE))
    found += 14 <= row < 21 and 7 <= column < 14
    assert e.encoder_passes == 2
  assert found < 6


# --- passes, counted in the model -----------------------------------------------------------------


def counting_model(kind, counter):
  params = encoders.nonlinear_params()
  if kind == "host":

    def embed(images):
      counter.append(len(images))
      return np.asarray(encoders.nonlinear(params, jnp.asarray(images)))

    return sane_jax.from_numpy(embed, image_size=SIZE)

  def embed_jax(params, images):
    jax.debug.callback(lambda x: counter.append(len(x)), images[:, 0, 0, 0])
    return encoders.nonlinear(params, images)

  return sane_jax.from_jax(embed_jax, params, image_size=SIZE)


@pytest.mark.parametrize("kind", ["jax", "host"])
def test_passes_are_those_that_the_model_saw(kind, photos):
  counter: list[int] = []
  model = counting_model(kind, counter)
  one = jax.local_devices()[:1]  # a callback fires once a device

  def spent(what):
    counter.clear()
    out = what()
    jax.effects_barrier()
    return out, sum(counter)

  make = functools.partial(sane_jax.Explainer, model, design="rise", num_masks=100, devices=one)
  explainer = make()
  e, seen = spent(lambda: explainer.explain(photos[0], photos[1]))
  assert e.encoder_passes == 100 + 2
  assert seen == explainer.encoder_passes == 100 + 2 + 2  # once a model: does it give one answer?
  for chunk in (7, 1000):
    e, seen = spent(lambda chunk=chunk: make(chunk_size=chunk).explain(photos[0], photos[1]))
    assert seen == e.encoder_passes == 100 + 2
  _, seen = spent(lambda: e.reference_saliency_map)
  assert seen == 101
  assert e.encoder_passes == 203
  e, seen = spent(lambda: make(mode="both").explain(photos[0], photos[1]))
  assert seen == e.encoder_passes == 100 + 30 + 2
  references = [photos[1 + i % 4] for i in range(20)]
  explainer = make()
  es, seen = spent(lambda: explainer.explain_many(photos[0], references))
  assert seen == explainer.encoder_passes == 100 + 1 + 20
  assert {e.encoder_passes for e in es} == {102}
  explainer = make()
  _, seen = spent(lambda: sane_jax.insertion_deletion(explainer, es[:3]))
  assert seen == explainer.encoder_passes
  assert 3 * 202 <= seen <= 3 * 202 + 6


def test_learned_mask_passes(photos):
  counter: list[int] = []
  model = counting_model("jax", counter)
  for mode, sides in (("fixed", 1), ("both", 2)):
    counter.clear()
    explainer = sane_jax.Explainer(
      model, design="learned_mask", num_steps=30, mode=mode, devices=jax.local_devices()[:1]
    )
    e = explainer.explain(photos[0], photos[1])
    jax.effects_barrier()
    assert e.encoder_passes == 30 * sides + 2
    assert explainer.encoder_passes == sum(counter)  # 2 more, once a model, to try it
    assert sum(counter) - e.encoder_passes == (2 if mode == "fixed" else 0)


# --- other models ---------------------------------------------------------------------------------


def score_model(counter=None):
  params = encoders.nonlinear_params()

  def score(queries, reference):
    if counter is not None:
      counter.append(len(queries))
    u = encoders.nonlinear_unit_float64(params, queries)
    return u @ encoders.nonlinear_unit_float64(params, reference[None])[0]

  return sane_jax.from_score(score, image_size=SIZE)


@pytest.mark.parametrize(
  ("design", "mode"),
  [
    *((design, "fixed") for design in SAMPLING),
    (sane_jax.Hadamard(128, (4, 4)), "both"),  # both draws are in the error
    (sane_jax.SlidingWindow(grid=(3, 3)), "both"),
  ],
  ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_score_only_model_gives_the_same_maps(design, mode, photos):
  expected = sane_jax.Explainer(nonlinear_model(), design=design, mode=mode)
  explainer = sane_jax.Explainer(score_model(), design=design, mode=mode, chunk_size=32)
  for a, b in zip(
    expected.explain_many(photos[0], photos[1:3]),
    explainer.explain_many(photos[0], photos[1:3]),
    strict=True,
  ):
    assert relative(b.saliency.cells, a.saliency.cells) < 1e-4
    assert b.score == pytest.approx(a.score, abs=1e-6)
    np.testing.assert_allclose(b.standard_error, a.standard_error, rtol=1e-2, atol=1e-6)


def test_score_only_reference_side_and_refusals(photos):
  counter: list[int] = []
  design = sane_jax.Hadamard(num_masks=32, grid=(4, 4))
  explainer = sane_jax.Explainer(score_model(counter), design=design)
  e = explainer.explain(photos[0], photos[1])
  assert e.encoder_passes == 33
  # Once a model: does it give one score? And, for hiding parts raises it: is it a distance?
  assert sum(counter) == explainer.encoder_passes == 33 + 2 + 1
  same = sane_jax.Explainer(nonlinear_model(), design=design).explain(photos[0], photos[1])
  np.testing.assert_allclose(e.reference_saliency_map, same.reference_saliency_map, atol=1e-5)
  with pytest.raises(ValueError, match="needs a model that gives embeddings"):
    _ = e.correspondence
  with pytest.raises(ValueError, match="nothing but scores"):
    explainer.effects(photos[0])


@by_name(SAMPLING)
def test_host_model_gives_the_same_maps(design, photos):
  host = sane_jax.from_numpy(
    lambda x: np.asarray(encoders.nonlinear(encoders.nonlinear_params(), x)), image_size=SIZE
  )
  a = sane_jax.Explainer(nonlinear_model(), design=design).explain(photos[0], photos[1])
  b = sane_jax.Explainer(host, design=design, chunk_size=50).explain(photos[0], photos[1])
  np.testing.assert_allclose(a.saliency_map, b.saliency_map, atol=1e-6)
  np.testing.assert_allclose(a.standard_error, b.standard_error, atol=1e-5)


def test_new_weights_do_not_retrace(photos):
  traces = []

  def embed(params, images):
    traces.append(images.shape)
    return encoders.nonlinear(params, images)

  for seed in (0, 1):
    model = sane_jax.from_jax(embed, encoders.nonlinear_params(seed), image_size=SIZE)
    sane_jax.Explainer(model, design=SAMPLING[0]).explain(photos[0], photos[1])
    if seed == 0:
      first = len(traces)
  assert len(traces) <= first + 2  # the shape check of from_jax, and no more


# --- learned mask ---------------------------------------------------------------------------------


def test_learned_mask_follows_its_objective(rng):
  """One step by hand: Adam from ones moves every mask cell by the learning rate, down-gradient."""
  query, reference, model, _ = planted(rng, 1)
  make = functools.partial(sane_jax.Explainer, model, design="learned_mask")
  e = make(num_steps=1, cells=4, noise=0.0).explain(query, reference)
  saliency = e.saliency.cells.reshape(4, 4)
  assert saliency[2, 1] == pytest.approx(0.1, abs=1e-3)  # the planted cell
  # Far cells feel only l1 = 0, for |1 − m| is flat at m = 1 in the direction that clipping allows.
  assert saliency[0, 3] < 0.1 + 1e-6
  many = make(num_steps=100, cells=4).explain_pairs([(query, reference), (reference, query)])
  alone = make(num_steps=100, cells=4).explain(query, reference)
  np.testing.assert_allclose(many[0].saliency_map, alone.saliency_map, atol=1e-4)
  assert np.isnan(alone.standard_error).all()


def test_learned_mask_both_is_one_mask_side_by_side(rng):
  """Where nothing in the query can be hidden, for it is of one colour, the reference is."""
  _, reference, model, (rows, columns) = planted(rng, 1)
  reference[rows, columns] = [0.9, 0.1, 0.1]
  query = np.full_like(reference, [1.0, 0.0, 0.0])
  make = functools.partial(sane_jax.Explainer, model, design="learned_mask", num_steps=100)
  e = make(mode="both", fill="mean").explain(query, reference)
  before = e.encoder_passes
  side = e.reference_saliency_map
  assert e.encoder_passes == before  # it was learned along with the query's
  row, column = (axis.mean() for axis in np.nonzero(side > 0.99))
  assert rows.start <= row < rows.stop
  assert columns.start <= column < columns.stop
  assert side.mean() > 2 * e.saliency_map.mean()


# --- effects that cancel --------------------------------------------------------------------------


def two_cells(offset=0.0, unit=1.0):
  """A score of 0.8 where two cells of 4 x 4 are both as they were or both hidden, else of 0.3."""

  def score(queries, reference):
    shown = queries[:, 3, 3].mean(axis=1) > 0.5, queries[:, 24, 24].mean(axis=1) > 0.5
    return offset + unit * np.where(shown[0] == shown[1], 0.8, 0.3)

  query = np.full((SIZE, SIZE, 3), 0.9, np.float32)
  return sane_jax.from_score(score, image_size=SIZE), query


@pytest.mark.parametrize(
  "design", ["hadamard", "kernel_shap", sane_jax.Hadamard(128, (4, 4), 0.0)], ids=str
)
@pytest.mark.parametrize("unit", [1.0, 1e-9, 1e9])
def test_effects_that_cancel_are_not_said_to_be_none(design, unit):
  model, query = two_cells(unit=unit)
  options = {} if isinstance(design, sane_jax.Hadamard) else {"grid": (4, 4)}
  with pytest.warns(UserWarning, match=r"of its own here.*by up to [\d.e+-]+.*sliding_window"):
    e = sane_jax.Explainer(model, design=design, fill="black", **options).explain(query, query)
  assert not e.saliency_map.any()
  assert not e.sure.any()
  assert f"by up to {0.5 * unit:.2g}" in e.warnings[0]
  window = sane_jax.SlidingWindow(grid=(4, 4), window=0.25, padding=0.0)
  w = sane_jax.Explainer(model, design=window, fill="black").explain(query, query)
  assert w.saliency.cells.max() == pytest.approx(0.5 * unit, rel=1e-3)


@by_name([sane_jax.Hadamard(128, (4, 4)), sane_jax.SlidingWindow()])
def test_masking_both_may_cancel_and_says_so(design):
  """One region decides, and hidden it looks alike in both: (u1 − u0) · (u1 + u0) / 2 = 0."""

  def embed(_, images):
    on = images[:, 3, 3].mean(axis=1) > 0.5
    return jnp.where(on[:, None], jnp.array([[1.0, 0.0]]), jnp.array([[0.6, 0.8]]))

  image = np.full((SIZE, SIZE, 3), 0.9, np.float32)
  model = sane_jax.from_jax(embed, None, image_size=SIZE)
  if isinstance(design, sane_jax.Hadamard):
    design = dataclasses.replace(design, num_reference_masks=32)
    with pytest.warns(UserWarning, match=r"by up to 0\.4:.*mode='fixed'"):
      e = sane_jax.Explainer(model, design=design, fill="black", mode="both").explain(image, image)
    assert not e.saliency_map.any()
  fixed = sane_jax.Explainer(model, design=design, fill="black").explain(image, image)
  assert fixed.saliency.cells.max() == pytest.approx(0.4, rel=0.4)
  assert not fixed.warnings


def test_fills_that_differ_are_no_error_where_each_has_replicates_of_its_own(rng):
  """A score linear in the pixels: behind one fill every effect is exact, whatever the other is."""
  query = rng.uniform(size=(SIZE, SIZE, 3)).astype(np.float32)
  weights = rng.normal(size=(SIZE, SIZE, 3)).astype(np.float32) / SIZE**2
  model = sane_jax.from_score(lambda q, r: 5 + (q * weights).sum(axis=(1, 2, 3)), image_size=SIZE)
  design = sane_jax.Hadamard(num_masks=128, grid=(4, 4), smoothing=0.0)
  with pytest.warns(UserWarning, match="the fill decides much of this map.*black.*white"):
    e = sane_jax.Explainer(model, design=design, fill="black+white").explain(query, query)
  want = [
    (weights * (query - fill)).sum(axis=-1).reshape(4, 7, 4, 7).sum(axis=(1, 3)).ravel()
    for fill in (0.0, 1.0)
  ]
  assert list(e.maps_by_fill) == ["black", "white"]
  np.testing.assert_allclose(list(e.maps_by_fill.values()), want, atol=2e-6)
  np.testing.assert_allclose(e.saliency.cells, np.mean(want, axis=0), atol=2e-6)
  assert e.saliency.cell_errors.max() < 1e-6
  assert np.abs(want[0] - want[1]).max() > 1e-3
  assert e.record()["by_fill"]["white"] == pytest.approx(want[1].tolist(), abs=2e-6)
  # With one replicate a fill there is no spread within a fill: pairs take turns, and fills leak.
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    few = sane_jax.Explainer(model, design=design, num_masks=64, fill="black+white")
    f = few.explain(query, query)
  assert not f.maps_by_fill
  assert (np.abs(f.saliency.cells - np.mean(want, axis=0)) < 5 * f.saliency.cell_errors).all()
  assert f.saliency.cell_errors.max() > 1e-4


def test_few_cells_are_sure_where_nothing_is_there(rng):
  """In 5 % of maps, at most, any cell is named: scores are noise of the masked image."""
  weights = rng.normal(size=(SIZE * SIZE * 3, 64))

  def noise(queries, reference):  # of no cell: each masked image has its own
    return np.sin(1e3 * queries.reshape(len(queries), -1) @ weights).mean(axis=1)

  model, named = sane_jax.from_score(noise, image_size=SIZE), 0
  query = rng.uniform(size=(SIZE, SIZE, 3)).astype(np.float32)
  design = sane_jax.Hadamard(num_masks=64, grid=(4, 4))
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for key in range(60):
      explainer = sane_jax.Explainer(model, design=design, key=key, fill="mean", chunk_size=64)
      named += explainer.explain(query, query).saliency.sure.any()
  assert named <= 6  # of 60; with 2 standard errors and no correction it is about half


@pytest.mark.parametrize("masks", [101, 401])
def test_the_error_of_kernel_shap_is_honest_with_few_masks(masks):
  """A regression's jackknife is too large by the share of unknowns to observations."""
  query, reference = np.random.default_rng(0).uniform(size=(2, SIZE, SIZE, 3)).astype(np.float32)
  maps, errors = [], []
  for key in range(30):
    design = sane_jax.KernelShap(num_masks=masks, grid=(4, 4))
    e = sane_jax.Explainer(nonlinear_model(), design=design, key=key).explain(query, reference)
    maps.append(e.saliency.cells)
    errors.append(e.saliency.cell_errors)
  ratio = np.sqrt(np.mean(np.square(errors)) / np.var(maps, axis=0, ddof=1).mean())
  assert 0.8 < ratio < 1.25


def test_lime_does_not_shrink_with_the_number_of_samples(rng):
  """The ridge goes with the samples: the paper's at its own number."""
  model, query, reference, beta = linear_setup(rng)
  want = closed_form(sane_jax.Lime(grid=(4, 4)), beta)
  slopes = []
  for masks in (100, 1000):
    explainer = sane_jax.Explainer(model, design="lime", num_masks=masks, grid=(4, 4))
    found = explainer.explain(query, reference).saliency.cells
    slopes.append((found @ want) / (want @ want))
  assert slopes[0] == pytest.approx(slopes[1], abs=0.01)


@pytest.mark.parametrize("at", [20, 56, 90])
def test_a_sliding_window_is_drawn_where_its_windows_were(at):
  """A spot of 4 pixels is hidden by windows whose middles are within 16 of it."""
  size = 112

  def score(queries, reference):
    return queries[:, at - 2 : at + 2, at - 2 : at + 2].mean(axis=(1, 2, 3))

  image = np.full((size, size, 3), 0.9, np.float32)
  model = sane_jax.from_score(score, image_size=size)
  explainer = sane_jax.Explainer(model, design="sliding_window", fill="black", chunk_size=625)
  warm = explainer.explain(image, image).saliency_map.max(axis=0)
  first, *_, last = np.flatnonzero(warm > warm.max() / 2)
  # No middle is within 8 of an edge, where the outermost values hold.
  assert at < 25 or first == pytest.approx(at - 16, abs=2)
  assert at > 87 or last + 1 == pytest.approx(at + 16, abs=2)


def test_distances_are_refused(photos):
  """Less is more alike, which would turn every sign."""

  def distance(queries, reference):
    return np.sqrt(((queries - reference) ** 2).mean(axis=(1, 2, 3)))

  far = sane_jax.from_score(distance, image_size=SIZE)
  near = sane_jax.from_score(lambda q, r: -distance(q, r), image_size=SIZE)
  base = photos[1] * 0.98 + 0.01
  for design in (SAMPLING[4], SAMPLING[1]):
    with pytest.raises(ValueError, match=r"look like distances.*returns the negative"):
      sane_jax.Explainer(far, design=design, fill="black").explain(base, photos[1])
    sane_jax.Explainer(near, design=design, fill="black").explain(base, photos[1])


def test_a_score_of_a_small_unit_is_not_flat(photos):
  """Whether a map is flat is a matter of the score's own size."""
  tiny = sane_jax.from_score(lambda q, r: 1e-9 * q[:, :14].mean(axis=(1, 2, 3)), image_size=SIZE)
  e = sane_jax.Explainer(tiny, design=SAMPLING[4], fill="black").explain(*photos[:2])
  assert e.saliency_map.max() > 1e-11
  assert not e.warnings


# --- bad input ------------------------------------------------------------------------------------


def test_constant_score_is_a_flat_map_with_a_warning(photos):
  model = sane_jax.from_jax(
    lambda _, x: jnp.ones((x.shape[0], 3)), None, image_size=SIZE, name="constant"
  )
  for design in SAMPLING:
    with pytest.warns(UserWarning, match="flat"):
      e = sane_jax.Explainer(model, design=design).explain(photos[0], photos[1])
    assert (e.saliency_map == 0).all()
    assert (e.standard_error == 0).all()
    assert any("flat" in w for w in e.warnings)
    assert e.score == pytest.approx(1)


def test_bad_embeddings_are_named(photos):
  def embed(_, images, bad):
    hidden = (images < 0.01).any(axis=(1, 2, 3))[:, None]
    return jnp.where(hidden, bad, jnp.ones((images.shape[0], 3)))

  whole = sane_jax.from_numpy(lambda x: np.full((len(x), 3), np.nan), image_size=SIZE)
  with pytest.raises(sane_jax.ModelError, match="NaN"):
    sane_jax.Explainer(whole).explain(photos[0], photos[1])
  zero = sane_jax.from_jax(lambda _, x: jnp.zeros((x.shape[0], 3)), None, image_size=SIZE)
  with pytest.raises(sane_jax.ModelError, match="zero norm"):
    sane_jax.Explainer(zero).explain(photos[0], photos[1])
  bright = photos * 0.9 + 0.05
  nan = sane_jax.from_jax(functools.partial(embed, bad=jnp.nan), None, image_size=SIZE, name="sick")
  with pytest.raises(sane_jax.ModelError, match=r"sick gave NaN.* of 256 images"):
    sane_jax.Explainer(nan, design="hadamard", grid=(7, 7), fill="black").explain(*bright[:2])
  lost = sane_jax.from_jax(functools.partial(embed, bad=0.0), None, image_size=SIZE)
  with pytest.warns(UserWarning, match="zero norm.*taken as 0"):
    e = sane_jax.Explainer(lost, design="hadamard", grid=(7, 7), fill="black").explain(*bright[:2])
  assert np.isfinite(e.saliency_map).all()


@pytest.mark.parametrize(
  ("make", "error", "words"),
  [
    (lambda m: sane_jax.Explainer(m, design="rize"), ValueError, "rize.*rise, sliding_window"),
    (lambda m: sane_jax.Explainer(m, design=7), ValueError, "no design 7; there is rise"),
    (lambda m: sane_jax.Explainer(m, num_masks="many"), ValueError, "hadamard can't have.*many"),
    (
      lambda m: sane_jax.Explainer(m, design=sane_jax.SlidingWindow(), num_masks=9),
      ValueError,
      "sliding_window has no 'num_masks'",
    ),
    (lambda m: sane_jax.Explainer(m, gird=(2, 2)), ValueError, "hadamard has no 'gird'.*grid"),
    (lambda m: sane_jax.Explainer(m, fill="pink"), ValueError, "pink.*mean, black"),
    (lambda m: sane_jax.Explainer(m, fill=(2, 0, 0)), ValueError, r"in \[0, 1\]"),
    (lambda m: sane_jax.Explainer(m, mode="one"), ValueError, "'fixed' or 'both'"),
    (lambda m: sane_jax.Explainer(m, chunk_size=0), ValueError, "1 or more; given 0"),
    (lambda m: sane_jax.Explainer(m, design="sliding_window", num_masks=9), ValueError, "has no"),
    (lambda m: sane_jax.Explainer("m"), TypeError, "load_model"),
    (lambda m: sane_jax.Explainer(m).explain_many("x", []), ValueError, "at least one"),
    (lambda m: sane_jax.Explainer(m).explain("/no.jpg", "/no.jpg"), sane_jax.ImageError, "no.jpg"),
    (lambda m: sane_jax.load_model("resnet9000"), ValueError, "efficientnet_lite0"),
    (
      lambda m: sane_jax.Explainer(score_model(), design="learned_mask"),
      ValueError,
      "gradients.*design='rise'",
    ),
    (
      lambda m: sane_jax.from_jax(lambda p, x: x, None, image_size=8),
      sane_jax.ModelError,
      r"\(2, 8, 8, 3\).*\(2, d\)",
    ),
    (
      lambda m: sane_jax.from_jax(lambda p, x: np.asarray(x) + 1, None, image_size=8),
      sane_jax.ModelError,
      "from_numpy",
    ),
    (
      lambda m: sane_jax.from_jax(lambda p, x: x @ np.ones((5, 2)), None, image_size=8),
      sane_jax.ModelError,
      "could not be traced",
    ),
    (lambda m: sane_jax.from_numpy(len, image_size=(0, 3)), sane_jax.ModelError, "positive"),
    (lambda m: sane_jax.from_numpy(len, image_size="big"), sane_jax.ModelError, "image_size"),
  ],
)
def test_errors_say_what_would_do(make, error, words):
  with pytest.raises(error, match=words):
    make(nonlinear_model())


def test_a_host_model_that_raises_is_named(photos):
  def fussy(images):
    raise RuntimeError("expected 64 x 64")

  model = sane_jax.from_numpy(fussy, image_size=SIZE)
  with pytest.raises(sane_jax.ModelError, match=r"fussy raised RuntimeError.*28, 28.*64 x 64"):
    sane_jax.Explainer(model).explain(photos[0], photos[1])


@pytest.mark.parametrize("bad", [lambda x: x, lambda x: np.zeros(len(x)), lambda x: "no", len])
def test_host_outputs_of_a_wrong_shape_are_named(bad, photos):
  model = sane_jax.from_numpy(bad, image_size=SIZE, name="odd")
  with pytest.raises(sane_jax.ModelError, match=r"odd gave .*\(1, d\)"):
    sane_jax.Explainer(model).explain(photos[0], photos[1])


def test_fills(photo):
  assert fills.fill_image("mean", photo)[0, 0] == pytest.approx(photo.mean((0, 1)), abs=1e-6)
  assert fills.fill_image("grey", photo)[3, 3, 0] == pytest.approx(127 / 255)
  assert fills.fill_image("blur", photo).std() < photo.std()
  np.testing.assert_array_equal(fills.fill_image(photo, photo), photo)
