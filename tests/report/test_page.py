"""Tests of the page's text and data, without a browser."""

import base64
import collections
import hashlib
import html.parser
import io
import json
import math
import re
import zlib

import numpy as np
import pytest
import skimage.color
import skimage.data
from PIL import Image

from sane_jax.report import AttributeView, Interval, PairView, Table, overlay, render_page
from sane_jax.report import page as page_lib
from sane_jax.report.page import mute, overlay_activation

NASTY = "\"'><script>window.pwned=1</script><img src=x onerror='window.pwned=1'>&lt;\u2028.png"


def grid_cells(height, width, cells_per_side):
  y, x = np.mgrid[:height, :width]
  return (y * cells_per_side // height) * cells_per_side + x * cells_per_side // width


def make_pair(**changes):
  """A pair of different sizes, with everything on it."""
  rng = np.random.default_rng(0)
  fields = {
    "query_name": "query.png",
    "reference_name": "reference.png",
    "query": np.full((12, 16, 3), 90, np.uint8),
    "reference": np.full((8, 10, 3), 160, np.uint8),
    "score": 0.75,
    "saliency_map": rng.normal(size=(12, 16)),
    "standard_error": rng.uniform(0.1, 1, size=(12, 16)),
    "reference_saliency_map": rng.normal(size=(8, 10)),
    "reference_standard_error": rng.uniform(0.1, 1, size=(8, 10)),
    "query_cells": grid_cells(12, 16, 3),
    "reference_cells": grid_cells(8, 10, 2),
    "correspondence": rng.uniform(-1, 1, size=(9, 4)),
    "encoder_passes": 2030,
    "seconds": 1.5,
    "metrics": {"insertion AUC": 71.2},
    "settings": {"num_masks": 2000},
    "command": "python -m sane_jax.main",
    "warnings": [],
  }
  return PairView(**{**fields, **changes})


def make_attributes(*names, size=(12, 16)):
  """One attribute a name, each with shares that add up to a total, best first."""
  rng = np.random.default_rng(2)
  return [
    AttributeView(
      name,
      0.7 - 0.5 * i,
      {"confidence": 0.31, "map fit": 0.82, "prior": 0.5},
      {"confidence": 0.6, "map fit": 0.35 - 0.5 * i, "prior": -0.25},
      rng.uniform(size=size),
    )
    for i, name in enumerate(names)
  ]


TABLE = Table(
  "Insertion",
  "Higher is better.",
  ("ranked by", "deletion", "more"),
  (
    ("random", Interval(1.25, 0.5, 2.0), Interval(-4.5, -5.0, -4.0)),
    ("all three", Interval(9.0, 8.0, 10.5), Interval(4.0, 3.0, 5.0)),
    ("none", "–", None),
  ),
  ("", "high", ""),
)


class Parsed(html.parser.HTMLParser):
  """The page as a browser's parser splits it."""

  def __init__(self, text):
    super().__init__()
    self.tags = collections.Counter()
    self.attributes = collections.Counter()
    self.sources = []
    self.scripts = []
    self.styles = []
    self.policy = None
    self.text = []
    self.ids = []
    self._inside = None
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    values = dict(attributes)
    if tag not in ("bdi", "span", "a"):
      self.text.append(" ")
    self.tags[tag] += 1
    self.attributes.update(name for name, _ in attributes)
    self.sources += [values[name] for name in ("src", "href", "srcset") if name in values]
    if "id" in values:
      self.ids.append(values["id"])
    if values.get("http-equiv") == "Content-Security-Policy":
      self.policy = values["content"]
    if tag in ("script", "style"):
      self._inside = self.scripts if tag == "script" else self.styles
      self._inside.append([values, ""])

  def handle_endtag(self, tag):
    if tag in ("script", "style"):
      self._inside = None

  def handle_data(self, data):
    if self._inside is None:
      self.text.append(data)
    else:
      self._inside[-1][1] += data

  @property
  def pair_data(self):
    return [
      json.loads(text, parse_constant=pytest.fail)
      for values, text in self.scripts
      if values.get("data-role") == "pair-data"
    ]

  @property
  def plain(self):
    return " ".join("".join(self.text).split())


def render(*pairs, **options):
  return Parsed(render_page(pairs, title="A title", **options))


def unpack(text, dtype, shape):
  """Undoes the page's packing by its description: base64, deflate, running sums."""
  differences = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype)
  return np.cumsum(differences, dtype=dtype).reshape(shape)


def decode_image(url):
  return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1]))).convert("RGB"))


def test_maps_reach_the_page_to_within_half_a_step():
  saliency_map = np.random.default_rng(1).normal(size=(12, 16))
  saliency_map[3, 5] = np.nan
  pair = make_pair(saliency_map=saliency_map)
  (data,) = render(pair).pair_data
  # One limit for both images, so that one colour is one change of the score.
  limit = max(np.nanmax(np.abs(saliency_map)), np.abs(pair.reference_saliency_map).max())
  assert data["limit"] == pytest.approx(limit)
  codes = unpack(data["query"]["map"], np.int8, (12, 16))
  assert codes[3, 5] == -128
  codes = np.where(codes == -128, np.nan, codes)
  np.testing.assert_allclose(codes / 127 * limit, saliency_map, atol=limit / 253)
  codes = unpack(data["reference"]["map"], np.int8, (8, 10))
  np.testing.assert_allclose(codes / 127 * limit, pair.reference_saliency_map, atol=limit / 253)
  assert (data["query"]["height"], data["query"]["width"]) == (12, 16)
  assert (data["reference"]["height"], data["reference"]["width"]) == (8, 10)


def test_standard_errors_reach_the_page_to_within_half_a_step():
  standard_error = np.random.default_rng(1).uniform(0, 3, size=(12, 16))
  standard_error[0, 0] = np.nan
  (data,) = render(make_pair(standard_error=standard_error)).pair_data
  limit = data["errorLimit"]
  assert limit == pytest.approx(np.nanmax(standard_error))
  codes = unpack(data["query"]["error"], np.uint8, (12, 16))
  assert codes[0, 0] == 255
  codes = np.where(codes == 255, np.nan, codes)
  np.testing.assert_allclose(codes / 254 * limit, standard_error, atol=limit / 507)


def test_cells_reach_the_page_exactly():
  cells = grid_cells(12, 16, 3) + 290
  cells[2, 2] = -1
  (data,) = render(make_pair(query_cells=cells, correspondence=None)).pair_data
  expected = np.where(cells < 0, 0xFFFF, cells)
  np.testing.assert_array_equal(unpack(data["query"]["cells"], "<u2", (12, 16)), expected)


def test_cell_values_are_means_over_the_finite_pixels():
  cells = np.zeros((12, 16), int)
  cells[:, 8:] = 2
  cells[0, :] = -1
  saliency_map = np.where(cells == 2, -3.0, 1.0)
  saliency_map[0] = 100.0
  saliency_map[1, 0] = np.nan
  saliency_map[2, 0] = 1.0 + 87  # one pixel of the 87 that count in cell 0
  pair = make_pair(
    query_cells=cells,
    saliency_map=saliency_map,
    standard_error=np.where(cells == 2, 0.25, np.nan),
    correspondence=None,
  )
  (data,) = render(pair).pair_data
  assert data["query"]["cellMeans"] == [2.0, None, -3.0]
  assert data["query"]["cellErrors"] == [None, None, 0.25]


def test_pictures_that_compress_badly_reach_the_page():
  """Pillow's buffer is too small for the optimised JPEG of noise."""
  noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3)).astype(np.uint8)
  assert page_lib.data_url(noise).startswith("data:image/jpeg;base64,")


def test_best_matches_of_rows_and_columns():
  matrix = np.full((9, 4), -0.5)
  matrix[0] = [0.1, 0.2, 0.9, 0.3]
  matrix[1] = [0.8, np.nan, 0.7, 0.6]
  matrix[2] = np.nan
  matrix[8, 3] = 0.65
  (data,) = render(make_pair(correspondence=matrix)).pair_data
  found = data["correspondence"]
  assert found["ofQuery"] == [[2, 0.9], [0, 0.8], *[None] * 6, [3, 0.65]]
  assert found["ofReference"] == [[1, 0.8], None, [0, 0.9], [8, 0.65]]
  assert found["least"] == 0.35
  assert found["columns"] == 4
  codes = unpack(found["codes"], np.int8, (9, 4))
  np.testing.assert_array_equal(codes == -128, np.isnan(matrix))
  known = ~np.isnan(matrix)
  np.testing.assert_allclose(codes[known] / 127 * 0.9, matrix[known], atol=0.9 / 253)


def test_no_nan_reaches_the_page():
  nothing = np.full((12, 16), np.nan)
  pair = make_pair(
    score=math.nan,
    seconds=math.nan,
    saliency_map=nothing,
    standard_error=nothing,
    reference_saliency_map=np.full((8, 10), np.inf),
    correspondence=np.full((9, 4), np.nan),
    metrics={"insertion AUC": math.nan, "deletion AUC": None},
  )
  parsed = render(pair)
  (data,) = parsed.pair_data  # its parser fails on NaN and Infinity
  assert (data["limit"], data["correspondence"]["limit"]) == (0, 0)
  assert data["query"]["cellMeans"] == [None] * 9
  assert "nan" not in parsed.plain.lower()
  assert "Insertion AUC – " in parsed.plain
  assert "Median SE – " in parsed.plain


def test_absent_parts_are_said_to_be_absent():
  bare = make_pair(
    reference_saliency_map=None,
    reference_standard_error=None,
    query_cells=None,
    reference_cells=None,
    correspondence=None,
    seconds=None,
    metrics={},
    settings={},
  )
  parsed = render(bare)
  (data,) = parsed.pair_data
  assert data["correspondence"] is None
  assert [data["reference"][field] for field in ("map", "error", "cells")] == [None] * 3
  assert "No correspondence was computed" in parsed.plain
  assert "No map was computed for the reference." in parsed.plain
  assert "Seconds – " in parsed.plain
  full = render(make_pair())
  assert "No correspondence" not in full.plain
  assert "No map was computed" not in full.plain


def test_the_numbers_are_on_the_page():
  plain = render(
    make_pair(
      score=-0.0521,
      encoder_passes=60030,
      seconds=12.34,
      saliency_map=np.where(np.arange(16) < 4, 1.0, 0.4) * np.ones((12, 1)),
      standard_error=np.full((12, 16), 0.25),
      metrics={"insertion AUC": 71.25, "deletion AUC": 22},
      settings={"design": "rise", "keep": 0.1 + 0.2},
      sure_cells=(16, 64),
      warnings=["Two replicates only."],
      command="python -m sane_jax.main --job=explain",
    ),
    subtitle="A subtitle",
  ).plain
  for expected in (
    "−0.052 score",
    "Encoder passes 60,030",
    "Seconds 12.3",
    "Median SE 0.25",
    "Cells that are sure 16 of 64",
    "Insertion AUC 71.25",
    "Deletion AUC 22",
    "design rise",
    "keep 0.3 ",
    "Two replicates only.",
    "python -m sane_jax.main --job=explain",
    "A subtitle",
    "1 pair explained",
  ):
    assert expected in plain, expected


def test_a_pair_with_attributes_says_why():
  text = render_page(
    [
      make_pair(
        attributes=make_attributes("striped", "floral"),
        attribute_margin=0.5,
        sentence="They match on “striped” (62 % of it).",
        kind="tops and shoes; match",
      )
    ],
    title="",
  )
  parsed = Parsed(text)
  for expected in (
    "They match on “striped” (62 % of it).",
    "tops and shoes; match",
    "Explained by: striped",
    "Why striped 0.50 ahead of floral",
    "Attribute Confidence Map fit Prior Total",
    "striped confidence 0.31 +0.60 map fit 0.82 +0.35 prior 0.5 −0.25 +0.70",
    "floral confidence 0.31 +0.60 map fit 0.82 −0.15 prior 0.5 −0.25 +0.20",
  ):
    assert expected in parsed.plain, expected
  # The sentence is the first that one reads of a pair.
  article = text[text.index("<article") :]
  assert article.index("They match on") < article.index("query.png</bdi>")
  assert "62\u00a0%" in article
  assert "query.png, green where it shows “striped”" in article


def test_bars_of_shares_start_at_zero_and_have_one_scale():
  attributes = make_attributes("striped", "floral")  # shares from -0.25 to 0.6
  text = render_page([make_pair(attributes=attributes)], title="")
  bars = re.findall(r'<rect class="(\w+)" x="([\d.]+)" y="1" width="([\d.]+)"', text)
  zeros = {float(x) for x in re.findall(r'class="zero" x1="([\d.]+)"', text)}
  (zero,) = zeros
  assert zero == pytest.approx(100 * 0.25 / 0.85, abs=0.01)
  drawn = []
  for sign, start, width in bars:
    start, width = float(start), float(width)
    assert (start if sign == "positive" else start + width) == pytest.approx(zero, abs=0.02)
    drawn.append((1 if sign == "positive" else -1) * width * 0.85 / 100)
  expected = [share for a in attributes for share in a.shares.values()]
  np.testing.assert_allclose(drawn, expected, atol=1e-4)


def test_activation_maps_reach_the_page_to_within_half_a_step():
  attributes = make_attributes(*"abcdefgh")
  attributes[1].activation_map[2, 3] = np.nan
  parsed = render(make_pair(attributes=attributes))
  (data,) = parsed.pair_data
  assert len(data["activations"]) == 6  # the first and five runners-up
  for packed, attribute in zip(data["activations"], attributes, strict=False):
    codes = unpack(packed, np.uint8, (12, 16))
    codes = np.where(codes == 255, np.nan, codes)
    limit = np.nanmax(attribute.activation_map)
    np.testing.assert_allclose(codes / 254 * limit, attribute.activation_map, atol=limit / 507)
  assert "f confidence" in parsed.plain
  assert "g confidence" not in parsed.plain


def test_the_first_attribute_is_a_picture_without_a_script():
  (attribute,) = make_attributes("striped")
  attribute.activation_map[:, :8] = 0
  pair = make_pair(attributes=[attribute])
  images = [source for source in render(pair).sources if source.startswith("data:image/")]
  assert len(images) == 3
  painted = overlay_activation(mute(pair.query), attribute.activation_map)
  shown = decode_image(images[-1]).astype(int)
  assert np.abs(shown - painted).max() <= (0 if "png" in images[-1][:20] else 40)
  np.testing.assert_allclose(shown[:, :7], mute(pair.query)[:, :7], atol=12)
  assert (shown[..., 1] - shown[..., 0])[:, 9:].mean() > 20


def test_pairs_without_attributes_have_nothing_of_them():
  parsed = render(make_pair(), make_pair())
  assert not {"svg", "table", "h3"} & set(parsed.tags)
  for word in ("Explained by", "attribute", "Why ", "How good"):
    assert word not in parsed.plain, word
  assert parsed.pair_data[0]["activations"] == []
  mixed = render(make_pair(), make_pair(attributes=make_attributes("striped")))
  assert mixed.plain.count("Explained by:") == 1
  assert "Filter by name or attribute" in mixed.plain
  assert "ahead of" not in mixed.plain


def test_unknown_terms_are_dashes():
  (attribute,) = make_attributes("striped")
  attribute = attribute._replace(
    terms={"confidence": math.nan}, shares={"confidence": 0.7}, activation_map=np.zeros((12, 16))
  )
  other = attribute._replace(name="floral", terms={"prior": 0.5})
  pair = make_pair(attributes=[attribute, other], attribute_margin=math.nan)
  plain = render(pair).plain
  assert "striped confidence – +0.70 prior – – +0.70" in plain
  assert "floral confidence – +0.70 prior 0.5 – +0.70" in plain
  assert "ahead" not in plain
  assert "nan" not in plain.lower()


def test_tables_stand_after_the_explanations():
  text = render_page([make_pair()], title="", tables=[TABLE], failures=[("a", "b")])
  parsed = Parsed(text)
  assert text.index("</article>") < text.index('id="failures"') < text.index('id="tables"')
  assert "#tables" in parsed.sources
  for expected in (
    "How good are these explanations?",
    "Insertion Higher is better. ranked by deletion more",
    "random 1.2 [0.5, 2.0] −4.5 [−5.0, −4.0]",
    "all three 9.0 [8.0, 10.5] 4.0 [3.0, 5.0]",
    "none – –",
  ):
    assert expected in parsed.plain, expected
  assert re.findall(r"<strong>(.*?)</strong>", text[text.index('id="tables"') :]) == ["9.0"]

  # Intervals are drawn on the range of their column, 3 % inside the cell.
  def at(value, low, high):
    return 3 + 94 * (value - low) / (high - low)

  marks = re.findall(r'<line( class="\w+")? x1="([\d.]+)" x2="([\d.]+)"', text)
  zero, value = ' class="zero"', ' class="value"'
  wanted = []
  for row in TABLE.rows[:2]:
    for cell, (low, high) in zip(row[1:], ((0.5, 10.5), (-5.0, 5.0)), strict=True):
      if low < 0:
        wanted.append((zero, at(0, low, high), at(0, low, high)))
      wanted.append(("", at(cell.low, low, high), at(cell.high, low, high)))
      wanted.append((value, at(cell.value, low, high), at(cell.value, low, high)))
  assert [mark[0] for mark in marks] == [mark[0] for mark in wanted]
  np.testing.assert_allclose(
    [[float(x) for x in mark[1:]] for mark in marks], [mark[1:] for mark in wanted], atol=0.01
  )
  alone = render_page([], title="", tables=[TABLE])
  assert "No pair was explained." in alone
  assert "all three" in alone


def test_contrast_makes_the_score_a_difference():
  contrast = np.full((6, 6, 3), 10, np.uint8)
  parsed = render(make_pair(score=0.134, contrast_name="other.png", contrast=contrast))
  assert "+0.134 score difference" in parsed.plain
  assert "rather than other.png" in parsed.plain
  assert parsed.tags["img"] == render(make_pair()).tags["img"] + 1


def test_failures_are_counted_and_listed():
  parsed = render(make_pair(), failures=[("a.png", "too small"), ("b.png", "not an image")])
  assert "1 pair explained, 2 failed" in parsed.plain
  assert "2 pairs without an explanation" in parsed.plain
  assert "a.png too small b.png not an image" in parsed.plain
  assert "failures" in parsed.ids
  assert "failed" not in render(make_pair()).plain


def test_index_only_where_there_is_something_to_choose():
  assert render().tags["nav"] == 0
  assert "No pair was explained." in render().plain
  assert render(make_pair()).tags["nav"] == 0
  parsed = render(make_pair(), make_pair())
  assert parsed.tags["nav"] == 1
  assert parsed.sources.count("#pair-0") == parsed.sources.count("#pair-1") == 1
  assert len(parsed.ids) == len(set(parsed.ids))


def test_names_are_text_never_markup():
  def page_with(text):
    pair = make_pair(
      query_name=text,
      reference_name=text,
      contrast_name=text,
      contrast=np.zeros((4, 4, 3), np.uint8),
      metrics={text: 1.0},
      settings={text: text},
      command=text,
      warnings=[text],
      attributes=[
        AttributeView(text, 1.0, {text: 0.5}, {text: 1.0}, np.ones((12, 16))),
        AttributeView(text, 0.5, {text: 0.5}, {text: 0.5}, np.ones((12, 16))),
      ],
      attribute_margin=0.5,
      sentence=text,
      kind=text,
    )
    table = Table(text, text, (text, text), ((text, 1.0), (text, text)))
    return Parsed(
      render_page([pair, pair], title=text, subtitle=text, failures=[(text, text)], tables=[table])
    )

  nasty, plain = page_with(NASTY), page_with("plain")
  assert nasty.tags == plain.tags
  assert nasty.attributes == plain.attributes
  assert " ".join(NASTY.split()) in nasty.plain


def test_json_cannot_end_its_script_element():
  data = {"</script><!--": ["a & b > c \u2028 \u2029"]}
  text = page_lib.json_block(data)
  assert json.loads(text) == data
  assert not set("<>&\u2028\u2029") & set(text)
  with pytest.raises(ValueError, match="JSON compliant"):
    page_lib.json_block(math.nan)


def test_undecodable_names_can_be_written():
  page = render_page([make_pair(query_name="caf\udce9.png")], title="\ud800")
  assert "caf?.png" in page.encode("utf-8").decode("utf-8")


def test_the_policy_allows_nothing_but_what_is_inlined():
  pair = make_pair(attributes=make_attributes("striped", "floral"), sentence="Why.")
  parsed = render(pair, make_pair(), tables=[TABLE])
  directives = dict(part.strip().split(" ", 1) for part in parsed.policy.split(";"))
  assert directives["default-src"] == "'none'"
  assert directives["img-src"] == "data:"
  assert directives["base-uri"] == directives["form-action"] == "'none'"
  executable = [text for values, text in parsed.scripts if "type" not in values]
  ((_, style),) = parsed.styles
  (script,) = executable
  for directive, text in (("script-src", script), ("style-src", style)):
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    assert directives[directive] == f"'sha256-{digest}'"
  for source in parsed.sources:
    assert source.startswith(("data:", "#")), source
  assert "//" not in style
  assert "@import" not in style
  assert "url(" not in style
  # Either would be refused by the policy.
  assert not [name for name in parsed.attributes if name.startswith("on") or name == "style"]


def test_images_are_exact_where_small_and_close_where_photographs():
  flat = np.zeros((12, 16, 3), np.uint8)
  flat[:, 8:] = (200, 30, 90)
  photograph = np.random.default_rng(0).normal(size=(8, 10, 1)).cumsum(0).cumsum(1)
  photograph = np.uint8(128 + 100 * photograph / np.abs(photograph).max()) + np.zeros(3, np.uint8)
  large = np.asarray(Image.fromarray(photograph).resize((160, 128), Image.Resampling.BICUBIC))
  noise = np.random.default_rng(1).integers(-8, 8, size=large.shape)
  large = np.uint8(np.clip(large + noise, 0, 255))
  pair = make_pair(
    query=flat,
    reference=large,
    **dict.fromkeys(
      ("reference_saliency_map", "reference_standard_error", "reference_cells"), None
    ),
    correspondence=None,
  )
  images = [source for source in render(pair).sources if source.startswith("data:image/")]
  assert len(images) == 2
  np.testing.assert_array_equal(decode_image(images[0]), flat)
  decoded = decode_image(images[1])
  assert decoded.shape == large.shape
  assert images[1].startswith("data:image/jpeg")
  assert np.abs(decoded.astype(int) - large).mean() < 4


def test_a_pair_at_224_pixels_takes_at_most_200_kilobytes():
  rng = np.random.default_rng(0)
  image = np.asarray(Image.fromarray(skimage.data.chelsea()[:, 60:360]).resize((224, 224)))
  coarse = rng.normal(size=(8, 8)).astype(np.float32)
  saliency_map = np.asarray(Image.fromarray(coarse).resize((224, 224), Image.Resampling.BICUBIC))
  pair = make_pair(
    query=image,
    reference=image,
    saliency_map=saliency_map,
    standard_error=np.abs(saliency_map) / 7,
    reference_saliency_map=saliency_map,
    reference_standard_error=np.abs(saliency_map) / 7,
    query_cells=grid_cells(224, 224, 14),
    reference_cells=grid_cells(224, 224, 14),
    correspondence=rng.uniform(-1, 1, size=(196, 196)),
  )
  coarse = Image.fromarray(np.float32(rng.uniform(size=(7, 7))))
  activation_map = np.asarray(coarse.resize((224, 224), Image.Resampling.BILINEAR))
  attributes = [a._replace(activation_map=activation_map) for a in make_attributes(*"abcdef")]
  fixed = len(render_page([], title=""))
  assert len(render_page([pair._replace(attributes=attributes)], title="")) - fixed < 300_000
  assert len(render_page([pair], title="")) - fixed < 200_000
  assert fixed < 60_000


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"query": np.zeros((12, 16, 3))}, r"query must be uint8 \[h w 3\], got float64"),
    ({"reference": np.zeros((8, 10), np.uint8)}, r"reference must be uint8 .* \[8, 10\]"),
    ({"saliency_map": np.zeros((16, 12))}, r"saliency_map must be \[12, 16\] .* \[16, 12\]"),
    ({"standard_error": None}, "standard_error must be given"),
    ({"reference_saliency_map": np.zeros((12, 16))}, r"reference_saliency_map must be \[8, 10"),
    ({"query_cells": np.zeros((12, 16))}, "query_cells must be integers, got float64"),
    ({"query_name": 5}, "query_name must be a text, got 5"),
    ({"score": "x"}, "score must be a number, got 'x'"),
    ({"encoder_passes": None}, "encoder_passes must be a number, got None"),
    ({"metrics": {"AUC": "x"}}, "AUC must be a number, got 'x'"),
    ({"settings": None}, "settings must be a mapping, got None"),
    ({"warnings": [5]}, "warnings must be a text, got 5"),
    ({"saliency_map": np.full((12, 16), "x")}, "saliency_map must hold numbers, got <U1"),
    ({"query_cells": np.zeros((12, 16), np.uint64)}, "query_cells must be integers, got uint64"),
    ({"correspondence": np.full((9, 4), "x")}, "correspondence must hold numbers, got <U1"),
    (
      {"attributes": [make_attributes("a")[0]._replace(terms={"prior": "x"})]},
      "prior must be a number, got 'x'",
    ),
    ({"query_cells": np.full((12, 16), -2)}, r"query_cells must lie in \[-1, 65535\)"),
    ({"reference_cells": None}, "correspondence needs query_cells and reference_cells"),
    ({"correspondence": np.zeros((4, 9))}, r"at least \[9, 4\] .* got \[4, 9\]"),
    ({"contrast": np.zeros((4, 4, 3), np.uint8)}, "give contrast_name with contrast"),
    ({"reference": None}, "reference_saliency_map has no image to lie over"),
    (
      {"attributes": make_attributes("striped", size=(16, 12))},
      r"activation_map of 'striped' must be \[12, 16\] as the query, got \[16, 12\]",
    ),
    (
      {"attributes": [make_attributes("a")[0]._replace(activation_map=-np.ones((12, 16)))]},
      "activation_map of 'a' must be at least 0, got -1.0",
    ),
    (
      {"attributes": [make_attributes("a")[0]._replace(total=0.8)]},
      "shares of 'a' must sum to its total 0.8, got 0.7",
    ),
    (
      {"attributes": make_attributes("a", "b")[::-1]},
      "best first: 'a' has 0.7, after 'b' with 0.2",
    ),
  ],
)
def test_arrays_that_do_not_fit_are_refused_by_name(changes, message):
  with pytest.raises(ValueError, match=message) as caught:
    render_page([make_pair(**changes)], title="")
  assert f"{changes.get('query_name', 'query.png')!r} against 'reference.png'" in str(caught.value)


def test_inputs_are_left_as_they_were():
  pair = make_pair()
  before = [np.copy(field) for field in pair if isinstance(field, np.ndarray)]
  render_page([pair], title="")
  after = [field for field in pair if isinstance(field, np.ndarray)]
  for one, other in zip(before, after, strict=True):
    np.testing.assert_array_equal(one, other)


def seen(rgb, blindness):
  """Colours [n 3] in CIELAB as eyes that lack one kind of cone see them (Viénot et al. 1999)."""
  linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
  to_lms = np.array(
    [[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]]
  )
  lacks = {
    "nothing": np.eye(3),
    "protan": np.array([[0, 2.02344, -2.52581], [0, 1, 0], [0, 0, 1]]),
    "deutan": np.array([[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]]),
  }
  linear = linear @ to_lms.T @ lacks[blindness].T @ np.linalg.inv(to_lms).T
  linear = np.clip(linear, 0, 1)
  rgb = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
  return skimage.color.rgb2lab(rgb)


@pytest.mark.parametrize("blindness", ["nothing", "protan", "deutan"])
def test_activations_have_a_colour_of_their_own(blindness):
  strengths = np.linspace(0.3, 1, 8)
  own = seen(page_lib.activation_colors(strengths)[:, :3], blindness)
  others = (
    page_lib.saliency_colors(strengths),
    page_lib.saliency_colors(-strengths),
    page_lib.error_colors(strengths),
  )
  for other in others:
    # A difference of 10 is plain at a glance.
    assert np.linalg.norm(own - seen(other[:, :3], blindness), axis=1).min() > 10
  assert (np.diff(own[:, 0]) < -1).all()  # stronger is darker: a grey print keeps it


def test_activation_overlay_is_transparent_at_zero_and_relative_to_its_strongest():
  image = np.full((1, 4, 3), 100, np.uint8)
  values = np.array([[0.0, np.nan, 0.5, 1.0]])
  painted = overlay_activation(image, values)
  np.testing.assert_array_equal(painted[0, :2], image[0, :2])
  np.testing.assert_array_equal(
    painted[0, 3], np.rint([0.2 * 100 + 0.8 * c for c in (10, 122, 74)])
  )
  np.testing.assert_array_equal(overlay_activation(image, 7 * values), painted)
  np.testing.assert_array_equal(overlay_activation(image, 0 * values), image)


class TestOverlay:
  def test_is_transparent_at_zero_and_where_nothing_is_known(self):
    image = np.random.default_rng(0).integers(0, 255, size=(3, 4, 3), dtype=np.uint8)
    saliency = np.zeros((3, 4))
    saliency[1] = np.nan
    saliency[2, 2] = 1.0
    painted = overlay(image, saliency)
    untouched = np.ones((3, 4), bool)
    untouched[2, 2] = False
    np.testing.assert_array_equal(painted[untouched], image[untouched])
    assert (painted[2, 2] != image[2, 2]).any()
    np.testing.assert_array_equal(overlay(image, np.zeros((3, 4))), image)

  def test_is_warm_above_zero_and_cool_below(self):
    grey = np.full((1, 4, 3), 128, np.uint8)
    painted = overlay(grey, np.array([[1.0, 0.4, -0.4, -1.0]])).astype(int)
    red_minus_blue = painted[0, :, 0] - painted[0, :, 2]
    assert (red_minus_blue > [40, 40, -1000, -1000]).all()
    assert (red_minus_blue < [1000, 1000, -40, -40]).all()
    # Stronger is darker on both sides, which is left when the colour is not.
    luma = painted[0] @ [0.2126, 0.7152, 0.0722]
    assert luma[0] < luma[1]
    assert luma[3] < luma[2]

  def test_blends_the_strongest_colour_by_the_opacity(self):
    image = np.full((1, 2, 3), 100, np.uint8)
    painted = overlay(image, np.array([[2.0, 0.0]]), opacity=0.5)
    np.testing.assert_array_equal(painted[0, 0], np.rint([(100 + c) / 2 for c in (190, 22, 12)]))
    np.testing.assert_array_equal(overlay(image, np.ones((1, 2)), opacity=0), image)

  def test_limit_makes_maps_comparable(self):
    image = np.full((1, 2, 3), 100, np.uint8)
    values = np.array([[0.5, -0.25]])
    np.testing.assert_array_equal(
      overlay(image, values, limit=1.0), overlay(image, 2 * values, limit=2.0)
    )
    np.testing.assert_array_equal(
      overlay(image, values, limit=0.1), overlay(image, np.array([[1.0, -1.0]]))
    )
    assert (overlay(image, values, limit=1.0) != overlay(image, values)).any()

  def test_refuses_what_does_not_fit(self):
    image = np.zeros((2, 3, 3), np.uint8)
    with pytest.raises(ValueError, match=r"\[2, 3, 3\] and \[3, 2\]"):
      overlay(image, np.zeros((3, 2)))
    with pytest.raises(ValueError, match="float64"):
      overlay(image.astype(float), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="opacity"):
      overlay(image, np.zeros((2, 3)), opacity=80)


@pytest.mark.parametrize(
  ("value", "signed", "expected"),
  [
    (0.0123456, False, "0.0123"),
    (0.5, True, "+0.5"),
    (-0.5, False, "−0.5"),
    (0.0, True, "0"),
    (-0.0, True, "0"),
    (12345.6, False, "12,346"),
    (2e-5, False, "2e−05"),
    (None, False, "–"),
    (math.inf, True, "–"),
  ],
)
def test_format_number(value, signed, expected):
  assert page_lib.format_number(value, signed=signed) == expected
