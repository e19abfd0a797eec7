"""A reference may be any embedding in the model's space, as of a text: what is then so."""

import json

import jax
import numpy as np
import pytest

import sane_jax
from sane_jax import metrics
from sane_jax.explanation import unit_embedding
from sane_jax.explanation_index import ExplanationIndex
from tests import encoders

SIZE = encoders.SIZE
HOSTILE = {
  "markup": "</script><script>window.pwned=1</script> \"'<b>&amp;",
  "right to left": "حذاء أحمر \u202e evil",
  "long": "a red shoe " * 1000,
  "none": "",
}
DESIGNS = [
  sane_jax.Hadamard(num_masks=128, grid=(4, 4)),
  sane_jax.Rise(num_masks=60, grid=(4, 4)),
  sane_jax.SlidingWindow(grid=(5, 5)),
  sane_jax.Lime(num_masks=100, grid=(4, 4)),
  sane_jax.KernelShap(num_masks=101, grid=(4, 4)),
]


def model(seed=0):
  return sane_jax.from_jax(encoders.nonlinear, encoders.nonlinear_params(seed), image_size=SIZE)


def explainer_of(design="hadamard", **options):
  if design == "hadamard":
    design = DESIGNS[0]
  return sane_jax.Explainer(model(), design=design, **options)


def same(first, second):
  np.testing.assert_array_equal(first.saliency.cells, second.saliency.cells)
  np.testing.assert_array_equal(first.saliency_map, second.saliency_map)
  np.testing.assert_array_equal(first.standard_error, second.standard_error)


# --- explaining -----------------------------------------------------------------------------------


@pytest.mark.parametrize("design", DESIGNS, ids=lambda d: type(d).__name__)
def test_the_embedding_of_an_image_explains_as_the_image_does(photos, design):
  explainer = explainer_of(design)
  of_image = explainer.explain(photos[0], photos[1])
  (vector,) = explainer.embed(photos[1:2])
  before = explainer.encoder_passes
  # Its length is of no account: a text model's vectors have any.
  e = explainer.explain(photos[0], reference_embedding=7.5 * vector, reference_name="a red shoe")
  np.testing.assert_allclose(e.saliency.cells, of_image.saliency.cells, atol=1e-6)
  np.testing.assert_allclose(e.standard_error, of_image.standard_error, atol=1e-6)
  assert e.score == pytest.approx(of_image.score, abs=1e-6)
  assert e.reference.name == "a red shoe"
  np.testing.assert_allclose(e.reference.vector, vector, atol=1e-6)
  spent = explainer.encoder_passes - before
  assert e.encoder_passes == spent == design.num_masks + 1  # the reference costs none
  assert of_image.encoder_passes == spent + 1
  as_value = explainer.explain(photos[0], sane_jax.Embedding(vector, "a red shoe"))
  np.testing.assert_allclose(as_value.saliency.cells, e.saliency.cells, atol=1e-6)


def test_a_text_names_a_region_that_is_planted():
  """Axis 0 of this model is the red of one corner: a text that points along it finds the corner."""
  region = ((0, 7), (21, 28))
  planted = sane_jax.from_jax(
    lambda _, x: encoders.one_region(region, x), None, image_size=SIZE, name="corner"
  )
  design = sane_jax.Hadamard(grid=(4, 4), smoothing=0.0)
  explainer = sane_jax.Explainer(planted, design=design, fill="mean")
  query = np.full((SIZE, SIZE, 3), 0.2, np.float32)
  query[:7, 21:, 0] = 1
  red = explainer.explain(query, reference_embedding=[1, 0, 0, 0], reference_name="red")
  other = np.delete(red.saliency.cells, 3)
  assert red.saliency.cells[3] > 0.1
  assert np.abs(other).max() < 1e-5
  blue = explainer.explain(query, reference_embedding=[0, 0, 1, 0], reference_name="blue")
  assert blue.saliency.cells[3] < -0.1  # red there takes it away from blue
  against = explainer.contrast(
    query, sane_jax.Embedding([1, 0, 0, 0], "red"), sane_jax.Embedding([0, 0, 1, 0], "blue")
  )
  np.testing.assert_allclose(
    against.saliency.cells, red.saliency.cells - blue.saliency.cells, atol=1e-6
  )
  assert against.score == pytest.approx(red.score - blue.score, abs=1e-6)


def test_images_and_embeddings_share_one_pass(photos):
  explainer = explainer_of()
  vectors = explainer.embed(photos[1:4])
  before = explainer.encoder_passes
  found = explainer.explain_many(
    photos[0], [photos[1], sane_jax.Embedding(vectors[1], "two")], reference_embeddings=vectors[2:]
  )
  assert explainer.encoder_passes - before == 128 + 1 + 1
  assert [e.reference.name for e in found] == ["", "two", "embedding 0"]
  for e, photo in zip(found, photos[1:4], strict=True):
    want = explainer.explain(photos[0], photo)
    np.testing.assert_allclose(e.saliency.cells, want.saliency.cells, atol=1e-6)
  only = explainer.explain_many(photos[0], reference_embeddings=vectors)
  assert [e.reference.name for e in only] == [f"embedding {i}" for i in range(3)]
  named = explainer.explain_many(
    photos[0], reference_embeddings=[vectors[0], sane_jax.Embedding(vectors[1], "two")]
  )
  assert [e.reference.name for e in named] == ["embedding 0", "two"]


def test_effects_serve_texts_without_a_pass(photos):
  explainer = explainer_of()
  effects = explainer.effects(photos[0])
  before = explainer.encoder_passes
  e = explainer.explain(effects, reference_embedding=np.arange(6.0))
  assert explainer.encoder_passes == before
  same(e, explainer.explain(photos[0], reference_embedding=np.arange(6.0)))


@pytest.mark.parametrize("kinds", ["image text", "text image", "text text"])
@pytest.mark.parametrize("mode", ["fixed", "both"])
def test_contrasts_of_images_and_texts(photos, kinds, mode):
  explainer = explainer_of(mode=mode)
  vectors = explainer.embed(photos[1:3])
  a, b = (
    photo if kind == "image" else sane_jax.Embedding(vector, f"text {n}")
    for n, (kind, photo, vector) in enumerate(zip(kinds.split(), photos[1:3], vectors, strict=True))
  )
  e = explainer.contrast(photos[0], a, b)
  one, other = (explainer.explain(photos[0], x) for x in (a, b))
  np.testing.assert_allclose(e.saliency.cells, one.saliency.cells - other.saliency.cells, atol=1e-6)
  assert e.score == pytest.approx(one.score - other.score, abs=1e-6)
  view = e.view()
  assert (view.reference is None) == (kinds.split()[0] == "text")
  assert (view.contrast is None) == (kinds.split()[1] == "text")
  assert e.snippet().count("sane_jax.Embedding(vector") == kinds.count("text")


def test_an_embedding_is_not_perturbed(photos):
  both, fixed = explainer_of(mode="both"), explainer_of()
  (vector,) = fixed.embed(photos[1:2])
  e = both.explain(photos[0], reference_embedding=vector)
  same(e, fixed.explain(photos[0], reference_embedding=vector))
  assert e.settings["mode"] == "fixed"  # which is what was done
  # In the company of an image each has its own mode.
  of_image, of_vector = both.explain_many(photos[0], [photos[1]], reference_embeddings=[vector])
  assert [of_image.settings["mode"], of_vector.settings["mode"]] == ["both", "fixed"]
  np.testing.assert_allclose(of_vector.saliency.cells, e.saliency.cells, atol=1e-6)
  assert np.abs(of_image.saliency.cells - of_vector.saliency.cells).max() > 1e-3


def test_a_tolerance_looks_at_the_map_against_the_vector(photos):
  vector = np.arange(6.0)
  explainer = explainer_of(sane_jax.Rise(grid=(4, 4)), tolerance=0.2)
  e = explainer.explain(photos[0], reference_embedding=vector)
  again = explainer_of(sane_jax.Rise(num_masks=e.settings["num_masks"], grid=(4, 4)))
  np.testing.assert_allclose(
    again.explain(photos[0], reference_embedding=vector).saliency.cells, e.saliency.cells, atol=1e-6
  )
  assert e.settings["num_masks"] < explainer.design.num_masks


def test_learned_masks_follow_gradients_to_a_vector(photos):
  design = sane_jax.LearnedMask(num_steps=15, cells=4)
  for mode in ("fixed", "both"):
    explainer = explainer_of(design, mode=mode)
    (vector,) = explainer.embed(photos[1:2])
    pairs = [
      (photos[0], sane_jax.Embedding(vector, "text")),
      (photos[0], photos[1]),
      (photos[2], sane_jax.Embedding(vector, "text")),
    ]
    of_text, of_image, third = explainer.explain_pairs(pairs)
    fixed = explainer_of(design).explain(photos[0], photos[1])
    np.testing.assert_allclose(of_text.saliency.cells, fixed.saliency.cells, atol=1e-5)
    assert [e.settings["mode"] for e in (of_text, of_image)] == ["fixed", mode]
    moved = np.abs(of_image.saliency.cells - of_text.saliency.cells).max()
    assert moved > 1e-3 if mode == "both" else moved < 1e-5
    assert third.query.pixels is not of_text.query.pixels
    with pytest.raises(ValueError, match="is an embedding"):
      _ = of_text.reference_saliency_map
    assert of_image.reference_saliency_map.shape == (SIZE, SIZE)
  with pytest.raises(ValueError, match=r"shape \(3,\).*dimension 6"):
    explainer.explain(photos[0], reference_embedding=[1, 2, 3])


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("vector", "told"),
  [
    (np.zeros(6), "is zero"),
    ([1, np.nan, 0, 0, 0, np.inf], "NaN or infinity in 2 of its 6"),
    ([1, 2, 3], r"shape \(3,\), and the model's embeddings have dimension 6"),
    (np.ones((2, 6)), r"shape \(2, 6\); one vector \[d\]"),
    (3.0, "one vector"),
    ([], "one vector"),
    ("a red shoe", "is str; a vector"),
    (["a"] * 6, "is list; a vector"),
  ],
)
def test_what_is_no_embedding_of_the_model_is_refused(photos, vector, told):
  explainer = explainer_of()
  for refused in (
    lambda: explainer.explain(photos[0], reference_embedding=vector, reference_name="shoe"),
    lambda: explainer.explain_many(photos[0], [photos[1], sane_jax.Embedding(vector, "shoe")]),
    lambda: explainer.contrast(photos[0], sane_jax.Embedding(vector, "shoe"), photos[1]),
    lambda: explainer.contrast(photos[0], photos[1], sane_jax.Embedding(vector, "shoe")),
  ):
    with pytest.raises(ValueError, match=told):
      refused()
  assert explainer.encoder_passes < 10  # nobody waited for the masks


def test_what_else_is_refused(photos):
  explainer = explainer_of()
  vector = np.arange(6.0)
  with pytest.raises(ValueError, match=r"one reference.*given neither"):
    explainer.explain(photos[0])
  with pytest.raises(ValueError, match=r"one reference.*given both"):
    explainer.explain(photos[0], photos[1], reference_embedding=vector)
  with pytest.raises(ValueError, match="has no regions to hide"):
    explainer.explain(sane_jax.Embedding(vector, "text"), photos[1])
  with pytest.raises(sane_jax.ImageError, match="reference_embedding=vector"):
    explainer.explain(photos[0], vector)
  with pytest.raises(ValueError, match="put it into a list"):
    explainer.explain_many(photos[0], reference_embeddings=vector)
  with pytest.raises(ValueError, match="put it into a list"):
    explainer.explain_many(photos[0], reference_embeddings=sane_jax.Embedding(vector))
  with pytest.raises(ValueError, match="at least one reference"):
    explainer.explain_many(photos[0], reference_embeddings=np.zeros((0, 6)))
  scores = sane_jax.from_score(lambda q, r: q.mean((1, 2, 3)), image_size=SIZE, name="scorer")
  for ask in (
    lambda e: e.explain(photos[0], reference_embedding=vector),
    lambda e: e.contrast(photos[0], photos[1], sane_jax.Embedding(vector)),
  ):
    with pytest.raises(ValueError, match="scorer gives nothing but scores"):
      ask(sane_jax.Explainer(scores))


def test_any_scale_of_numbers_has_a_direction():
  for scale in (1e-300, 1.0, 1e300):
    found = unit_embedding([3 * scale, 4 * scale]).vector
    np.testing.assert_allclose(found, [0.6, 0.8], rtol=1e-6)
  assert unit_embedding(np.ones((1, 4))).vector.shape == (4,)  # one row of a batch


# --- what is made of it ---------------------------------------------------------------------------


def test_there_is_no_side_of_the_reference(photos):
  e = explainer_of().explain(photos[0], reference_embedding=np.arange(6.0), reference_name="shoe")
  for part in ("reference_saliency_map", "reference_standard_error", "reference_cells"):
    with pytest.raises(ValueError, match="'shoe' is an embedding: it has no regions"):
      getattr(e, part)
  with pytest.raises(ValueError, match="no correspondence"):
    _ = e.correspondence


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_everything_is_made_for_any_text(photos, tmp_path, text):
  e = explainer_of().explain(photos[0], reference_embedding=np.arange(6.0), reference_name=text)
  e.save(tmp_path)
  record = json.loads((tmp_path / "explanation.json").read_text())
  assert record["reference"] == text
  with np.load(tmp_path / "maps.npz") as arrays:
    assert not {"reference", "correspondence"} & {*arrays.files}
    np.testing.assert_allclose(np.linalg.norm(arrays["reference_embedding"]), 1, rtol=1e-6)
  assert (tmp_path / "figure.png").stat().st_size > 10_000
  page = (tmp_path / "index.html").read_text()
  assert "window.pwned=1</script>" not in page
  assert (tmp_path / "index.html").read_text() == e.to_html(tmp_path / "again.html").read_text()
  assert e.plot().axes
  namespace = {"sane_jax": sane_jax, "model": model(), "vector": np.arange(6.0), "query": photos[0]}
  code = e.snippet().replace("explain('query'", "explain(query")
  last = code.splitlines()[-1]
  exec(code.removesuffix(last), namespace)  # what the page tells to run
  same(eval(last, namespace), e)


def test_insertion_and_deletion_against_a_text(photos):
  explainer = explainer_of()
  vectors = explainer.embed(photos[1:3])
  of_images = explainer.explain_many(photos[0], photos[1:3])
  of_texts = explainer.explain_many(photos[0], reference_embeddings=vectors)
  want = metrics.insertion_deletion(explainer, of_images)
  for mixed in (of_texts, [of_images[0], of_texts[1]], [of_texts[0], of_images[1]]):
    found = metrics.insertion_deletion(explainer, mixed)
    np.testing.assert_allclose(found.insertion, want.insertion, atol=1e-5)
    np.testing.assert_allclose(found.deletion, want.deletion, atol=1e-5)
  for perturb in ("reference", "both"):
    with pytest.raises(ValueError, match="'embedding 0' is an embedding; use perturb='query'"):
      metrics.insertion_deletion(explainer, of_texts, perturb=perturb)


def test_attributes_explain_a_text(photos):
  """Sensitivity is v·(e(r) − s e(q)): of the reference it needs the embedding alone."""
  seen = []

  def ranker(image, saliency, embeddings):
    seen.append(embeddings)
    raise RuntimeError

  explainer = explainer_of(attributes=ranker)
  vector = np.arange(6.0)
  e = explainer.explain(photos[0], reference_embedding=vector)
  with pytest.raises(RuntimeError):
    _ = e.attributes
  query, reference = seen[0]
  np.testing.assert_allclose(reference, vector / np.linalg.norm(vector), rtol=1e-6)
  np.testing.assert_allclose(query, explainer.embed(photos[:1])[0], atol=1e-6)


# --- of an index ----------------------------------------------------------------------------------


@pytest.fixture
def index(tmp_path, photos):
  explainer = explainer_of(mode="both")
  images = {f"photo {n}": photo for n, photo in enumerate(photos)}
  return ExplanationIndex.build(tmp_path / "index", explainer, images)


def test_an_index_explains_texts(index, photos):
  explainer = explainer_of()
  vectors = np.random.default_rng(1).normal(size=(3, 6))
  want = explainer.explain_many(photos[0], reference_embeddings=vectors)
  cells = np.array([e.saliency.cells for e in want])
  named = [sane_jax.Embedding(v, f"text {n}") for n, v in enumerate(vectors)]
  for mode in ("fixed", "both"):
    for found in (
      index.maps("photo 0", named, mode=mode),
      index.maps("photo 0", reference_embeddings=vectors, mode=mode),
      index.maps("photo 0", named[:1], reference_embeddings=[vectors[1], named[2]], mode=mode),
    ):
      np.testing.assert_allclose(found.reshape(3, -1), cells, atol=2e-3)
  np.testing.assert_allclose(
    index.scores("photo 0", reference_embeddings=vectors), [e.score for e in want], atol=1e-6
  )
  contrast = index.contrast("photo 0", *named[:2]).ravel()
  np.testing.assert_allclose(contrast, cells[0] - cells[1], atol=4e-3)
  (error,) = index.standard_errors("photo 0", named[:1])
  pooled = np.sqrt((want[0].saliency.cell_errors ** 2).mean())
  assert error == pytest.approx(pooled, rel=0.3)


def test_an_index_takes_ids_and_texts_in_any_order(index):
  vectors = index.embeddings(["photo 1", "photo 2", "photo 3"])
  text = [sane_jax.Embedding(4 * v, "text") for v in vectors]
  want = "photo 1", "photo 2", "photo 3"
  for mixed, more in (
    ((text[0], "photo 2", text[2]), ()),
    (("photo 1", text[1], "photo 3"), ()),
    (("photo 1", text[1]), vectors[2:]),
    (np.array([1, 2]), vectors[2:]),
  ):
    for ask in (index.maps, index.scores, index.standard_errors):
      found = ask("photo 0", mixed, reference_embeddings=more)
      np.testing.assert_allclose(found, ask("photo 0", want), atol=1e-6)


def test_an_index_is_searched_by_a_text(index):
  every = index.embeddings(index.ids)
  vector = every[3] + 0.1 * every[1]
  order = np.argsort(-(every @ vector))
  want = [index.ids[i] for i in order]
  assert index.nearest(sane_jax.Embedding(vector, "text"), 3) == want[:3]
  assert index.nearest(sane_jax.Embedding(vector, "text"), 99) == want  # none is left out
  assert "photo 3" in index.nearest(sane_jax.Embedding(every[3], "itself"), 1)


def test_an_index_refuses_what_is_no_embedding_of_its_model(index):
  for ask in (
    lambda v: index.maps("photo 0", [sane_jax.Embedding(v, "text")]),
    lambda v: index.maps("photo 0", reference_embeddings=[v]),
    lambda v: index.scores("photo 0", reference_embeddings=[v]),
    lambda v: index.nearest(sane_jax.Embedding(v, "text"), 2),
  ):
    with pytest.raises(ValueError, match=r"shape \(5,\).*dimension 6"):
      ask(np.ones(5))
    with pytest.raises(ValueError, match="is zero"):
      ask(np.zeros(6))
  with pytest.raises(ValueError, match="1 spaces, from 0 on; given 1"):
    index.maps("photo 0", reference_embeddings=[np.ones(6)], space=1)
  with pytest.raises(ValueError, match="no regions that could match"):
    index.correspondence("photo 0", sane_jax.Embedding(np.ones(6), "text"))


def test_an_index_of_files_shows_a_text(tmp_path, photos):
  from PIL import Image

  explainer = explainer_of()
  for n in range(2):
    Image.fromarray(np.uint8(255 * photos[n])).save(tmp_path / f"{n}.png")
  paths = [str(tmp_path / f"{n}.png") for n in range(2)]
  index = ExplanationIndex.build(tmp_path / "index", explainer, paths)
  vector = np.arange(6.0)
  e = index.explain(paths[0], sane_jax.Embedding(vector, "a red shoe"))
  want = explainer.explain(paths[0], reference_embedding=vector)
  np.testing.assert_allclose(e.saliency.cells, want.saliency.cells, atol=2e-3)
  assert e.score == pytest.approx(want.score, abs=1e-6)
  assert "a red shoe" in e.to_html(tmp_path / "page.html").read_text()
  with pytest.raises(ValueError, match="no regions"):
    _ = e.correspondence


def test_the_keys_of_jax_make_no_difference(photos):
  e, typed = (
    explainer_of(key=key).explain(photos[0], reference_embedding=np.arange(6.0))
    for key in (3, jax.random.key(3))
  )
  same(e, typed)
