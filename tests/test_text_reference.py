"""A reference that is a vector: the answers are those of an image with that embedding."""

import json
import pathlib
import runpy

import encoders
import jax.numpy as jnp
import numpy as np
import pytest

import sane_jax
from sane_jax import report


@pytest.fixture(scope="module")
def model():
  return sane_jax.from_jax(
    encoders.nonlinear, encoders.nonlinear_params(), image_size=28, name="small"
  )


def make(model, **options):
  return sane_jax.Explainer(model, **{"num_masks": 64, "grid": (4, 4)} | options)


@pytest.mark.parametrize("design", ["hadamard", "rise", "kernel_shap", "sliding_window", "lime"])
def test_a_vector_is_worth_an_image_of_that_embedding(model, photos, design):
  options = {"grid": (4, 4)} if design in ("hadamard", "rise", "kernel_shap") else {}
  masks = {"sliding_window": None, "kernel_shap": 65}.get(design, 64)
  explainer = sane_jax.Explainer(model, design=design, num_masks=masks, **options)
  vector = explainer.embed([photos[1]])[0]
  image = explainer.explain(photos[0], photos[1])
  before = explainer.encoder_passes
  text = explainer.explain(photos[0], reference_embedding=37 * vector, reference_name="a text")
  assert text.score == pytest.approx(image.score, abs=1e-6)
  np.testing.assert_allclose(text.saliency_map, image.saliency_map, atol=1e-6)
  np.testing.assert_allclose(text.standard_error, image.standard_error, atol=1e-6)
  assert explainer.encoder_passes - before == text.encoder_passes == image.encoder_passes - 1


def test_against_brute_force(photos):
  """The direction enters the score alone: the map towards v is the map of e · v."""
  params = encoders.nonlinear_params()
  model = sane_jax.from_jax(encoders.nonlinear, params, image_size=28, name="small")
  vector = np.array([1.0, -2, 0.5, 0, 3, 1])
  options = {"grid": (6, 6), "window": 8 / 28, "padding": 0.0}
  explainer = sane_jax.Explainer(model, design="sliding_window", fill="white", **options)
  e = explainer.explain(photos[0], reference_embedding=vector)
  unit = vector / np.linalg.norm(vector)
  whole = encoders.nonlinear_unit_float64(params, photos[:1])[0] @ unit
  assert e.score == pytest.approx(whole, abs=1e-6)
  hidden = photos[0].copy()
  hidden[4:12, 8:16] = 1
  drop = whole - encoders.nonlinear_unit_float64(params, hidden[None])[0] @ unit
  assert e.saliency.cells.reshape(e.grid)[1, 2] == pytest.approx(drop, abs=1e-5)


def test_texts_and_images_side_by_side(model, photos):
  explainer = make(model)
  vector = sane_jax.Embedding(np.arange(1.0, 7), "a striped shirt")
  before = explainer.encoder_passes
  text, image = explainer.explain_many(photos[0], [vector, photos[1]])
  assert explainer.encoder_passes - before == 64 + 2
  rather = explainer.contrast(photos[0], vector, photos[1])
  np.testing.assert_allclose(rather.saliency_map, text.saliency_map - image.saliency_map, atol=1e-6)
  assert rather.score == pytest.approx(text.score - image.score, abs=1e-6)
  other = explainer.contrast(photos[0], photos[1], vector)
  np.testing.assert_allclose(other.saliency_map, -rather.saliency_map, atol=1e-6)
  assert other.contrast.name == "a striped shirt"
  assert other.reference_saliency_map.shape == (28, 28)
  effects = explainer.effects(photos[0])
  again = explainer.explain(effects, vector)
  np.testing.assert_allclose(again.saliency_map, text.saliency_map, atol=1e-7)


def test_it_has_no_regions(model, photos):
  e = make(model).explain(photos[0], reference_embedding=np.ones(6), reference_name="red")
  for ask in (
    lambda: e.reference_saliency_map,
    lambda: e.correspondence,
    lambda: e.reference_cells,
  ):
    with pytest.raises(ValueError, match="embedding has no regions"):
      ask()


def test_both_images_perturbed_says_that_one_can_not_be(model, photos):
  vector = sane_jax.Embedding(np.arange(1.0, 7), "text")
  with pytest.warns(UserWarning, match="only the query was"):
    both = make(model, mode="both").explain(photos[0], vector)
  fixed = make(model).explain(photos[0], vector)
  np.testing.assert_array_equal(both.saliency_map, fixed.saliency_map)
  assert any("only the query was" in text for text in both.warnings)


def test_a_learned_mask_follows_a_vector(model, photos):
  explainer = sane_jax.Explainer(model, design="learned_mask", num_steps=20)
  vector = explainer.embed([photos[1]])[0]
  image = explainer.explain(photos[0], photos[1])
  text = explainer.explain(photos[0], reference_embedding=vector)
  np.testing.assert_allclose(text.saliency_map, image.saliency_map, atol=1e-5)
  both = sane_jax.Explainer(model, design="learned_mask", num_steps=20, mode="both")
  with pytest.raises(ValueError, match="mode='fixed'"):
    both.explain(photos[0], reference_embedding=vector)


@pytest.mark.parametrize(
  ("vector", "words"),
  [
    (np.ones(5), "has 5 numbers, and the embeddings of small have 6"),
    (np.zeros(6), "zeros alone"),
    (np.array([1, np.nan, 0, 0, 0, 0]), "NaN"),
    (np.ones((2, 6)), r"one vector \[d\]; given an array \[2, 6\]"),
    (np.zeros(0), "one vector"),
  ],
)
@pytest.mark.parametrize("design", ["hadamard", "learned_mask"])
def test_what_is_no_vector_of_that_space(model, photos, vector, words, design):
  options = {"num_masks": 128} if design == "hadamard" else {"num_steps": 2}
  explainer = sane_jax.Explainer(model, design=design, **options)
  with pytest.raises(ValueError, match=words):
    explainer.explain(photos[0], reference_embedding=vector, reference_name="a text")
  assert explainer.encoder_passes <= 1, "refused before any mask is spent"


def test_a_reference_or_an_embedding(model, photos):
  for given in ({}, {"reference": photos[1], "reference_embedding": np.ones(6)}):
    with pytest.raises(ValueError, match="one of the two"):
      make(model).explain(photos[0], **given)
  scores = sane_jax.from_score(lambda queries, reference: np.ones(len(queries)), image_size=28)
  with pytest.raises(ValueError, match="nothing but scores"):
    sane_jax.Explainer(scores).explain(photos[0], reference_embedding=np.ones(6))


def test_pixels_of_the_query_inserted_and_deleted(model, photos):
  explainer = make(model)
  vector = explainer.embed([photos[1]])[0]
  pairs = [
    explainer.explain(photos[0], photos[1]),
    explainer.explain(photos[0], reference_embedding=vector),
  ]
  curves = sane_jax.insertion_deletion(explainer, pairs)
  for curve in curves:
    np.testing.assert_allclose(curve[0], curve[1], atol=1e-5)
  with pytest.raises(ValueError, match="no pixels to perturb"):
    sane_jax.insertion_deletion(explainer, pairs, perturb="both")


NASTY = "</script><script>window.pwned=1</script> \u202eright to left, $x^2$ " + "long " * 2000


def test_everything_that_is_written_of_it(model, photos, tmp_path):
  e = make(model).explain(photos[0], reference_embedding=np.ones(6), reference_name=NASTY)
  folder = e.save(tmp_path / "why")
  page = (folder / "index.html").read_text()
  assert "<script>window.pwned" not in page
  assert page.count("long ") < 2 * 2000 + 100, "once where it is read, shortened in headings"
  with np.load(folder / "maps.npz") as arrays:
    np.testing.assert_allclose(np.linalg.norm(arrays["reference_embedding"]), 1, atol=1e-6)
    assert "reference" not in arrays.files
  assert json.loads((folder / "explanation.json").read_text())["reference"] == NASTY
  short = make(model).explain(photos[0], reference_embedding=np.ones(6), reference_name="a shoe")
  assert "sane_jax.Embedding(vector, 'a shoe')" in short.snippet()
  assert report.figure_png(short.view()) != report.figure_png(
    short.view()._replace(reference_name="a boot")
  )


def test_an_index_answers_texts(model, photos, tmp_path):
  explainer = make(model)
  named = {str(number): photo for number, photo in enumerate(photos)}
  index = sane_jax.ExplanationIndex.build(tmp_path / "index", explainer, named)
  vector = explainer.embed([photos[3]])[0]
  text = sane_jax.Embedding(5 * vector, "like the fourth")
  maps = index.maps("0", [text, "1", "3"])
  np.testing.assert_allclose(maps, index.maps("0", ["3", "1", "3"]), atol=1e-6)
  np.testing.assert_allclose(
    index.scores("0", [text, "1"]), index.scores("0", ["3", "1"]), atol=1e-6
  )
  np.testing.assert_allclose(
    index.standard_errors("0", [text, "1"]), index.standard_errors("0", ["3", "1"]), rtol=1e-4
  )
  np.testing.assert_allclose(
    index.contrast("0", text, "1"), index.contrast("0", "3", "1"), atol=1e-6
  )
  with pytest.raises(ValueError, match="another model's space"):
    index.maps("0", [sane_jax.Embedding(np.ones(4))])


def test_an_index_of_photos_explains_a_text_as_a_page(model, photos, tmp_path):
  from PIL import Image

  paths = []
  for number in range(2):
    paths.append(tmp_path / f"{number}.png")
    Image.fromarray(np.uint8(255 * photos[number])).save(paths[-1])
  index = sane_jax.ExplanationIndex.build(tmp_path / "index", make(model), paths)
  text = sane_jax.Embedding(np.arange(1.0, 7), "<b>a shoe</b>")
  e = index.explain(str(paths[0]), text)
  np.testing.assert_allclose(
    e.saliency.cells.reshape(4, 4), index.maps(str(paths[0]), [text])[0], atol=1e-6
  )
  assert "&lt;b&gt;a shoe" in e.to_html(tmp_path / "why.html").read_text()


def test_gradients_do_not_flow_where_there_are_none(photos):
  """A JAX model that keeps its embedding's length: the vector's own length is of no account."""
  model = sane_jax.from_jax(
    lambda params, images: images.mean(axis=(1, 2)) + params, jnp.zeros(3), image_size=28,
    name="colour",
  )  # fmt: skip
  explainer = make(model)
  one, ten = (explainer.explain(photos[0], reference_embedding=s * np.ones(3)) for s in (1, 10))
  np.testing.assert_array_equal(one.saliency_map, ten.saliency_map)


@pytest.mark.full  # it trains
@pytest.mark.torch
@pytest.mark.onnx
def test_a_small_clip_points_at_what_the_caption_names(tmp_path):
  """Planted evidence through transformers' CLIP: by torch, and the same map by ONNX."""
  for needed in ("torch", "transformers", "onnx", "onnxruntime"):
    pytest.importorskip(needed)
  path = pathlib.Path(__file__).parents[1] / "docs/examples/text_reference.py"
  found = runpy.run_path(str(path))["main"](str(tmp_path), steps=250, pictures=24)
  assert found["known"] > 0.9
  assert found["right"] > 0.8  # by chance 0.25
  assert found["wrong"] < 0.1
  assert found["untrained"] < 0.6
  assert found["apart"] < 1e-4
  assert (tmp_path / "why.html").stat().st_size > 10_000
