"""Tests of the still figure."""

import io
import itertools
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sane_jax.report import AttributeView, PairView, draw_figure, overlay
from sane_jax.report import page as page_lib


def make_pair(**changes):
  """A grey pair whose maps raise the score on the left and lower it on the right."""
  signs = np.where(np.arange(40) < 20, 0.25, -0.25) * np.ones((40, 1))
  fields = {
    "query_name": "query.png",
    "reference_name": "reference.png",
    "query": np.full((40, 40, 3), 128, np.uint8),
    "reference": np.full((40, 40, 3), 60, np.uint8),
    "score": 0.75,
    "saliency_map": signs,
    "standard_error": np.full((40, 40), 0.05),
    "reference_saliency_map": 2 * signs,
    "reference_standard_error": np.full((40, 40), 0.05),
    "query_cells": None,
    "reference_cells": None,
    "correspondence": None,
    "encoder_passes": 2030,
    "seconds": 1.5,
    "metrics": {},
    "settings": {},
    "command": "",
    "warnings": [],
  }
  return PairView(**{**fields, **changes})


def panels(figure):
  return {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_title(loc="left")}


def texts(figure):
  return [text.get_text() for text in figure.texts]


def pixels(figure):
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png")
  return np.asarray(Image.open(buffer).convert("RGB")).astype(int)


def test_panels_show_the_query_and_both_maps_on_one_scale():
  pair = make_pair()
  figure = draw_figure(pair)
  shown = {title: axes.images[0].get_array() for title, axes in panels(figure).items()}
  assert list(shown) == ["Query", "Query, saliency map", "Reference, saliency map"]
  np.testing.assert_array_equal(shown["Query"], pair.query)
  # Grey images are their own muted versions; the limit is the larger one, the reference's.
  np.testing.assert_array_equal(
    shown["Query, saliency map"], overlay(pair.query, pair.saliency_map, limit=0.5)
  )
  np.testing.assert_array_equal(
    shown["Reference, saliency map"],
    overlay(pair.reference, pair.reference_saliency_map, limit=0.5),
  )


def test_what_is_drawn_is_warm_on_the_left_and_cool_on_the_right():
  figure = draw_figure(make_pair())
  image = pixels(figure)
  height, width = image.shape[:2]
  for title in ("Query, saliency map", "Reference, saliency map"):
    box = panels(figure)[title].get_position()
    y = int((1 - (box.y0 + box.y1) / 2) * height)
    left, right = (int((box.x0 + at * box.width) * width) for at in (0.25, 0.75))
    assert image[y, left, 0] > image[y, left, 2] + 30
    assert image[y, right, 2] > image[y, right, 0] + 30
  # Nothing is cut off: the rim stays white.
  for rim in (image[:4], image[-4:], image[:, :4], image[:, -4:]):
    assert (rim == 255).all()


def test_numbers_and_colour_bar():
  figure = draw_figure(make_pair(score=-0.0521, sure_cells=(3, 64)))
  assert texts(figure) == [
    "Score −0.052",
    "median standard error (SE) 0.05 · 3 of 64 cells sure · 2,030 encoder passes",
  ]
  (bar,) = [axes for axes in figure.axes if axes.get_xlabel() == "effect on the score"]
  labels = bar.get_xticklabels()
  assert [label.get_text() for label in labels] == ["−0.5", "0", "+0.5"]
  figure.canvas.draw()
  box = bar.get_window_extent()
  for label in labels:  # none reaches over a neighbouring panel
    assert box.x0 - 1 < label.get_window_extent().x0
    assert label.get_window_extent().x1 < box.x1 + 1
  colors = np.asarray(bar.images[0].get_array())[0]
  assert colors[0, 2] > colors[0, 0] + 0.3
  assert colors[-1, 0] > colors[-1, 2] + 0.3
  assert np.ptp(colors[127]) < 0.01


def test_without_a_map_the_reference_is_shown_as_it_is():
  figure = draw_figure(make_pair(reference_saliency_map=None, reference_standard_error=None))
  axes = panels(figure)["Reference"]
  np.testing.assert_array_equal(axes.images[0].get_array(), make_pair().reference)


def test_contrast_is_a_panel_and_the_score_a_difference():
  contrast = np.full((20, 30, 3), 9, np.uint8)
  figure = draw_figure(make_pair(score=0.2, contrast_name="other.png", contrast=contrast))
  assert panels(figure)["Rather than"].get_xlabel() == "other.png"
  assert texts(figure)[0] == "Score difference +0.200"


def test_panels_keep_their_images_proportions_at_one_height():
  wide = np.full((20, 38, 3), 9, np.uint8)
  tall = {"reference": np.full((60, 40, 3), 9, np.uint8)}
  tall |= {"reference_saliency_map": None, "reference_standard_error": None}
  figure = draw_figure(make_pair(contrast_name="wide", contrast=wide, **tall))
  figure.canvas.draw()
  inches = figure.get_size_inches()
  for title, expected in (("Query", 1), ("Reference", 40 / 60), ("Rather than", 1.9)):
    box = panels(figure)[title].get_position()
    assert box.width * inches[0] / (box.height * inches[1]) == pytest.approx(expected, rel=0.01)
    assert box.height == pytest.approx(panels(figure)["Query"].get_position().height)


def test_names_are_not_mathematics_and_keep_both_ends():
  long_name = "a" * 100 + "_$x^{2$.png"
  figure = draw_figure(make_pair(query_name="$\\frac{$.png", reference_name=long_name))
  pixels(figure)  # raises where mathtext cannot parse
  assert panels(figure)["Query"].get_xlabel() == "$\\frac{$.png"
  label = panels(figure)["Reference, saliency map"].get_xlabel()
  assert label.startswith("aaaa")
  assert label.endswith("_$x^{2$.png")
  assert len(label) < 40


def make_attribute(name):
  activation_map = np.where(np.arange(40) < 10, 0.3, 0.0) * np.ones((40, 1))
  return AttributeView(name, 1.0, {"confidence": 0.5}, {"confidence": 1.0}, activation_map)


def test_names_that_are_no_characters_are_drawn():
  pair = make_pair(
    query_name="a\nb\ud800\x1b.png", reference_name="\udce9", sentence="Both \udce9."
  )
  figure = draw_figure(pair)
  pixels(figure)
  assert panels(figure)["Query"].get_xlabel() == "a b? .png"


def test_the_first_attribute_is_a_panel_beside_the_saliency_map():
  pair = make_pair(attributes=[make_attribute("striped"), make_attribute("floral")])
  figure = draw_figure(pair)
  assert list(panels(figure)) == [
    "Query", "Query, saliency map", "striped", "Reference, saliency map",
  ]  # fmt: skip
  painted = page_lib.overlay_activation(pair.query, pair.attributes[0].activation_map)
  np.testing.assert_array_equal(panels(figure)["striped"].images[0].get_array(), painted)
  image = pixels(figure)
  box = panels(figure)["striped"].get_position()
  y = int((1 - (box.y0 + box.y1) / 2) * image.shape[0])
  left, right = (int((box.x0 + at * box.width) * image.shape[1]) for at in (0.1, 0.75))
  assert image[y, left, 1] > image[y, left].take([0, 2]).max() + 20
  assert np.ptp(image[y, right]) < 5
  for rim in (image[:4], image[-4:], image[:, :4], image[:, -4:]):
    assert (rim == 255).all()


@pytest.mark.parametrize("name", ["$\\frac{$", "a\nb " * 40, ""])
def test_attributes_are_not_mathematics_and_keep_to_their_panel(name):
  figure = draw_figure(make_pair(attributes=[make_attribute(name)]))
  pixels(figure)
  axes = [axes for axes in figure.axes if axes.images][3]
  title = axes.get_title(loc="left")
  assert "\n" not in title
  assert len(title) < 40


@pytest.mark.parametrize("dpi", [72, 120, 300])
def test_the_sentence_is_a_caption_that_fits(dpi):
  words = (
    "These match mainly on “striped” (62 % of what speaks for the match, $x_1$), then on “W”. "
  )
  sentence = words * 4 + "W" * 200
  figure = draw_figure(make_pair(sentence=sentence))
  lines = texts(figure)[2:]
  assert len(lines) > 4
  whole = "".join("".join(lines).split())
  assert whole == "".join(sentence.split())
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", dpi=dpi)
  image = np.asarray(Image.open(buffer).convert("L"))
  rim = int(0.05 * dpi)
  for part in (image[-rim:], image[:, -rim:], image[:, :rim]):
    assert (part == 255).all()
  # It stands clear of the panels and of itself.
  figure.canvas.draw()
  boxes = [text.get_window_extent() for text in figure.texts[2:]]
  lowest = min(axes.get_tightbbox().y0 for axes in figure.axes)
  assert boxes[0].y1 < lowest
  assert all(above.y0 > below.y1 - 1 for above, below in itertools.pairwise(boxes))


def test_a_per_cent_sign_stays_with_its_number():
  for width in range(1, 5):  # moves the break about
    lines = texts(draw_figure(make_pair(sentence="m" * width + " about 20 % of it " * 6)))[2:]
    assert not [line for line in lines if line.startswith("%")]


def test_nothing_known_is_still_a_figure():
  nothing = np.full((40, 40), np.nan)
  pair = make_pair(
    score=np.nan, saliency_map=nothing, standard_error=nothing, reference_saliency_map=None
  )
  figure = draw_figure(pair)
  pixels(figure)
  assert texts(figure) == ["Score –", "2,030 encoder passes"]
  shown = panels(figure)["Query, saliency map"].images[0].get_array()
  np.testing.assert_array_equal(shown, pair.query)


def test_mute_takes_colour_out_and_keeps_grey():
  image = np.array([[[255, 0, 0], [80, 80, 80]]], np.uint8)
  muted = page_lib.mute(image)
  np.testing.assert_array_equal(muted[0, 1], [80, 80, 80])
  assert np.ptp(muted[0, 0].astype(int)) < 60


def test_arrays_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match="saliency_map must be"):
    draw_figure(make_pair(saliency_map=np.zeros((3, 3))))


def test_needs_no_pyplot_and_the_page_needs_no_matplotlib():
  code = """
import sys
import sane_jax.report
assert not [name for name in sys.modules if name.startswith("matplotlib")]
import numpy as np
image, values = np.zeros((4, 4, 3), np.uint8), np.ones((4, 4))
pair = sane_jax.report.PairView(
    "q", "r", image, image, 1.0, values, values, *[None] * 5, 1, None, {}, {}, "", []
)
sane_jax.report.render_page([pair], title="")
assert not [name for name in sys.modules if name.startswith("matplotlib")]
sane_jax.report.draw_figure(pair)
assert "matplotlib.pyplot" not in sys.modules
"""
  subprocess.run([sys.executable, "-c", code], check=True)
