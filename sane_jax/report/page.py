"""One self-contained HTML page that shows why pairs of images match.

The page asks for nothing over the network, and says so in its content security policy: pictures are
data URLs, the one style sheet and the one script are inlined and allowed by their hashes alone.
Everything a caller hands over is text to the page, never markup.

Arrays travel as 8 or 16-bit codes, difference-coded, deflated and in base64: a pair at 224 px takes
100 to 200 kB. `card.js` holds the other half of that code.
"""

import base64
import hashlib
import io
import itertools
import json
import math
import pathlib
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import jinja2
import markupsafe
import numpy as np
from PIL import Image

from sane_jax.ops import matches
from sane_jax.report import tables as tables_lib
from sane_jax.report.tables import Cell, Interval, Table, format_fixed, format_number

_FOLDER = pathlib.Path(__file__).parent
_OPACITY = 0.8
_NO_CELL = 0xFFFF
_NO_VALUE = -128
_THUMBNAIL_PX = 72
_HEADING = 120  # letters of a text in a heading; the whole of it stands in its own place
_BLANK = np.zeros((1, 1, 3), np.uint8)  # where there is no picture
_MOST_ATTRIBUTES = 6  # the first and its runners-up
_NUMERIC = "biuf"  # kinds of dtypes
_TEXTS = ("query_name", "reference_name", "command", "sentence", "kind")
_CALLED: dict[type, str] = {str: "a text", float: "a number", Mapping: "a mapping"}

# Opaque colours from weak to strong. Orange against blue stays apart under every common colour
# blindness, and all darken towards their end, so strength survives a grey print. Green is for
# activation maps alone, which have a picture of their own.
_WARM = np.array([(255, 184, 56), (244, 109, 20), (190, 22, 12)], np.float32)
_COOL = np.array([(86, 196, 255), (28, 112, 232), (34, 32, 150)], np.float32)
_ERROR = np.array([(214, 170, 255), (150, 80, 220), (84, 20, 140)], np.float32)
_ACTIVATION = np.array([(190, 236, 110), (64, 180, 90), (10, 122, 74)], np.float32)


class AttributeView(NamedTuple):
  """One attribute as the reason why a pair matches.

  Attributes:
    name: of the attribute.
    total: by which attributes are ranked.
    terms: name to value of what the ranking rests on, each in its own unit, as {"confidence": 0.31,
      "map fit": 0.82, "prior": 0.5}.
    shares: what each term adds to the total, signed; they sum to it.
    activation_map: [h w] over the query's pixels, at least 0: where the query shows the attribute.
      NaN is unknown.
  """

  name: str
  total: float
  terms: Mapping[str, float]
  shares: Mapping[str, float]
  activation_map: np.ndarray


class PairView(NamedTuple):
  """All that the page shows of one explained pair: plain arrays and text.

  `h w` are the query's pixels, `h2 w2` the reference's, `c_q c_r` their cells.

  Attributes:
    query_name: what to call the query, often its file name.
    reference_name: what to call the reference.
    query: [h w 3] uint8, as the model saw it.
    reference: [h2 w2 3] uint8, as the model saw it; None for a text, which `reference_name` is.
    score: the score of the pair, or with a contrast the score's difference.
    saliency_map: [h w], signed: above 0 raises the score, below 0 lowers it, NaN is unknown.
    standard_error: [h w], at least 0, in the saliency map's unit.
    reference_saliency_map: [h2 w2], the same over the reference.
    reference_standard_error: [h2 w2].
    query_cells: [h w] int, the cell of each pixel (of a grid, or a superpixel), -1 for none.
    reference_cells: [h2 w2] int.
    correspondence: [c_q c_r] in [-1, 1], which region matches which; needs both sides' cells.
    match_threshold: the correspondence from which two regions match; below it nothing is lit.
    encoder_passes: how many images the encoder saw for this explanation.
    seconds: how long it took, None where nobody looked.
    metrics: name to value, as {"insertion AUC": 71.2}.
    settings: what the explanation was made with: design, number of masks, fill, key, model, ...
    command: a shell line or Python snippet that makes this explanation again.
    warnings: what a reader should know before trusting the map.
    contrast_name: set with `contrast`: why the reference rather than this image.
    contrast: [h3 w3 3] uint8; None for a text.
    attributes: what explains the match, best first; the page shows the first and five runners-up.
    attribute_margin: total of the first less that of the second.
    sentence: why the two match, in words.
    kind: what sort of pair this is, a short line.
    sure: [h w] bool, where the effect is not the draw of masks; None where that is not known.
    reference_sure: [h2 w2] bool, the same over the reference.
    sure_cells: how many of the query's cells are sure, and of how many; None where not known.
  """

  query_name: str
  reference_name: str
  query: np.ndarray
  reference: np.ndarray | None
  score: float
  saliency_map: np.ndarray
  standard_error: np.ndarray
  reference_saliency_map: np.ndarray | None
  reference_standard_error: np.ndarray | None
  query_cells: np.ndarray | None
  reference_cells: np.ndarray | None
  correspondence: np.ndarray | None
  encoder_passes: int
  seconds: float | None
  metrics: Mapping[str, float | None]
  settings: Mapping[str, Any]
  command: str
  warnings: Sequence[str]
  contrast_name: str | None = None
  contrast: np.ndarray | None = None
  attributes: Sequence[AttributeView] = ()
  attribute_margin: float | None = None
  sentence: str = ""
  kind: str = ""
  match_threshold: float = matches.LEAST_MATCH
  sure: np.ndarray | None = None
  reference_sure: np.ndarray | None = None
  sure_cells: Sequence[int] | None = None


def check_pair(pair: PairView) -> None:
  """Raises ValueError, naming the pair and the field, for what the page can't show.

  Of shapes and types that do not fit together, and of values that are no text, number or mapping.
  """

  def fail(message: str) -> NoReturn:
    raise ValueError(f"{pair.query_name!r} against {pair.reference_name!r}: {message}")

  for field, wanted, value in _typed_values(pair):
    if not (
      np.ndim(value) == 0 and np.asarray(value).dtype.kind in _NUMERIC
      if wanted is float
      else isinstance(value, wanted)
    ):
      fail(f"{field} must be {_CALLED[wanted]}, got {value!r}")
  for field in ("query", "reference", "contrast"):
    image = getattr(pair, field)
    if image is None and field != "query":
      continue
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
      fail(f"{field} must be uint8 [h w 3], got {image.dtype} {list(image.shape)}")
  if pair.contrast is not None and pair.contrast_name is None:
    fail("give contrast_name with contrast")
  for field, image in (
    ("saliency_map", pair.query),
    ("standard_error", pair.query),
    ("query_cells", pair.query),
    ("sure", pair.query),
    ("reference_saliency_map", pair.reference),
    ("reference_standard_error", pair.reference),
    ("reference_cells", pair.reference),
    ("reference_sure", pair.reference),
  ):
    if getattr(pair, field) is None:
      if field in ("saliency_map", "standard_error"):
        fail(f"{field} must be given")
      continue
    if image is None:
      fail(f"{field} has no image to lie over: the reference is a text")
    array = np.asarray(getattr(pair, field))
    if array.shape != image.shape[:2]:
      fail(f"{field} must be {list(image.shape[:2])} as its image, got {list(array.shape)}")
    if array.dtype.kind not in _NUMERIC:
      fail(f"{field} must hold numbers, got {array.dtype}")
    if field.endswith("sure") and array.dtype != bool:
      fail(f"{field} must be bool, got {array.dtype}")
    if field.endswith("cells"):
      if array.dtype.kind not in "iu" or not np.can_cast(array.dtype, np.int64):
        fail(f"{field} must be integers, got {array.dtype}")
      if array.min() < -1 or array.max() >= _NO_CELL:
        fail(f"{field} must lie in [-1, {_NO_CELL}), got [{array.min()}, {array.max()}]")
  if pair.correspondence is not None:
    if pair.query_cells is None or pair.reference_cells is None:
      fail("correspondence needs query_cells and reference_cells")
    shape, dtype = np.shape(pair.correspondence), np.asarray(pair.correspondence).dtype
    if dtype.kind not in _NUMERIC:
      fail(f"correspondence must hold numbers, got {dtype}")
    least = [max(int(cells.max()) + 1, 1) for cells in (pair.query_cells, pair.reference_cells)]
    if len(shape) != 2 or shape[0] < least[0] or shape[1] < least[1]:
      fail(f"correspondence must be at least {least} (cells by cells), got {list(shape)}")
  for attribute in pair.attributes:
    activation_map = np.asarray(attribute.activation_map)
    if activation_map.shape != pair.query.shape[:2]:
      fail(
        f"activation_map of {attribute.name!r} must be {list(pair.query.shape[:2])} as the query,"
        f" got {list(activation_map.shape)}"
      )
    if activation_map.dtype.kind not in _NUMERIC:
      fail(f"activation_map of {attribute.name!r} must hold numbers, got {activation_map.dtype}")
    if (activation_map < 0).any():
      fail(f"activation_map of {attribute.name!r} must be at least 0, got {activation_map.min()}")
    shares = list(attribute.shares.values())
    # The page shows the total beside its parts.
    if abs(sum(shares) - attribute.total) > 1e-3 * (1 + sum(map(abs, shares))):
      fail(
        f"shares of {attribute.name!r} must sum to its total {attribute.total:g}, got"
        f" {sum(shares):g}"
      )
  for first, second in itertools.pairwise(pair.attributes):
    if second.total > first.total:
      fail(
        f"attributes must stand best first: {second.name!r} has {second.total:g}, after"
        f" {first.name!r} with {first.total:g}"
      )


def _typed_values(pair: PairView) -> Iterator[tuple[str, type, Any]]:
  """All of a pair but its arrays: the field, of which type it has to be, and the value."""
  yield from ((name, str, getattr(pair, name)) for name in _TEXTS)
  yield from (("warnings", str, text) for text in pair.warnings)
  if pair.contrast_name is not None:
    yield "contrast_name", str, pair.contrast_name
  yield from (
    (name, float, getattr(pair, name)) for name in ("score", "encoder_passes", "match_threshold")
  )
  yield "settings", Mapping, pair.settings
  yield "metrics", Mapping, pair.metrics
  optional = [("seconds", pair.seconds), ("attribute_margin", pair.attribute_margin)]
  optional += pair.metrics.items()
  for attribute in pair.attributes:
    yield "an attribute's name", str, attribute.name
    yield f"total of {attribute.name!r}", float, attribute.total
    yield f"terms of {attribute.name!r}", Mapping, attribute.terms
    yield f"shares of {attribute.name!r}", Mapping, attribute.shares
    yield from ((name, float, share) for name, share in attribute.shares.items())
    optional += attribute.terms.items()
  yield from ((name, float, value) for name, value in optional if value is not None)


def _ramp(strength: np.ndarray, stops: np.ndarray) -> np.ndarray:
  """Colours [... 3] in [0, 255] of strengths [...] in [0, 1], linear between the stops."""
  at = np.linspace(0, 1, len(stops))
  return np.stack([np.interp(strength, at, stops[:, channel]) for channel in range(3)], axis=-1)


def saliency_colors(relative: np.ndarray) -> np.ndarray:
  """Colours [... 4], RGBA in [0, 1], of saliencies [...] relative to their limit, in [-1, 1].

  Warm above 0, cool below, transparent at 0 and for NaN.
  """
  relative = np.clip(np.nan_to_num(np.asarray(relative, np.float32), nan=0.0), -1, 1)
  strength = np.abs(relative)
  rgb = np.where(relative[..., None] > 0, _ramp(strength, _WARM), _ramp(strength, _COOL))
  return np.concatenate([rgb / 255, strength[..., None]], axis=-1)


def error_colors(relative: np.ndarray) -> np.ndarray:
  """Colours [... 4], RGBA in [0, 1], of standard errors [...] in [0, 1], relative to a limit."""
  strength = np.clip(np.nan_to_num(np.asarray(relative, np.float32), nan=0.0), 0, 1)
  return np.concatenate([_ramp(strength, _ERROR) / 255, strength[..., None]], axis=-1)


def activation_colors(relative: np.ndarray) -> np.ndarray:
  """Colours [... 4], RGBA in [0, 1], of activations [...] in [0, 1], relative to the strongest."""
  strength = np.clip(np.nan_to_num(np.asarray(relative, np.float32), nan=0.0), 0, 1)
  return np.concatenate([_ramp(strength, _ACTIVATION) / 255, strength[..., None]], axis=-1)


def largest(*arrays: np.ndarray | None) -> float:
  """The largest magnitude among the finite entries, 0 where there are none."""
  found = 0.0
  for array in arrays:
    if array is not None:
      finite = np.abs(np.asarray(array, np.float64))
      found = max(found, float(np.max(finite, where=np.isfinite(finite), initial=0.0)))
  return found


def overlay(
  image: np.ndarray, saliency: np.ndarray, *, opacity: float = 0.8, limit: float | None = None
) -> np.ndarray:
  """Paints a signed saliency map over an image.

  Args:
    image: [h w 3] uint8.
    saliency: [h w], signed; where it is 0 or NaN the image stays as it is.
    opacity: in [0, 1], of the strongest colour.
    limit: the magnitude that gets the strongest colour; by default the map's own largest. Give two
      maps one limit to compare them.

  Returns:
    [h w 3] uint8: warm where the saliency is above 0, cool below.
  """
  image, saliency = np.asarray(image), np.asarray(saliency, np.float64)
  if image.dtype != np.uint8 or image.shape != (*saliency.shape, 3):
    raise ValueError(
      "overlay takes a uint8 image [h w 3] and a saliency map [h w], got "
      f"{image.dtype} {list(image.shape)} and {list(saliency.shape)}"
    )
  if not 0 <= opacity <= 1:
    raise ValueError(f"opacity must lie in [0, 1], got {opacity}")
  limit = largest(saliency) if limit is None else limit
  if not limit > 0:
    return image.copy()
  return _blend(image, saliency_colors(saliency / limit), opacity)


def overlay_activation(
  image: np.ndarray, activation_map: np.ndarray, *, opacity: float = 0.8
) -> np.ndarray:
  """Paints an activation map [h w], at least 0, over an image [h w 3] uint8, in green.

  Relative to the map's own strongest point: maps of two attributes have no common unit.
  """
  relative = np.asarray(activation_map, np.float64) / (largest(activation_map) or 1.0)
  return _blend(np.asarray(image), activation_colors(relative), opacity)


def _blend(image: np.ndarray, rgba: np.ndarray, opacity: float) -> np.ndarray:
  alpha = opacity * rgba[..., 3:]
  return np.rint(image * (1 - alpha) + 255 * rgba[..., :3] * alpha).astype(np.uint8)


def mute(image: np.ndarray) -> np.ndarray:
  """Takes most colour out of an image [h w 3] uint8, so that only the overlay's colour speaks."""
  image = np.asarray(image)
  grey = image @ np.array([0.2126, 0.7152, 0.0722])
  return np.rint(0.15 * image + 0.85 * grey[..., None]).astype(np.uint8)


def format_score(pair: PairView) -> str:
  """The score with three decimals, as scores are compared; signed where it is a difference."""
  if not math.isfinite(pair.score) or not 5e-4 <= abs(pair.score) < 1000:
    return format_number(pair.score, signed=pair.contrast_name is not None)
  return f"{float(pair.score):{'+' if pair.contrast_name is not None else ''}.3f}".replace("-", "−")


def format_setting(value: Any) -> str:
  """A setting for reading: numbers with six digits."""
  return f"{value:.6g}" if isinstance(value, float) else str(value)


def _pack(codes: np.ndarray) -> str:
  """Integers to base64 of deflated differences, which smooth maps make small."""
  flat = np.ascontiguousarray(codes).ravel()
  differences = np.diff(flat, prepend=flat.dtype.type(0))  # wraps, as its undoing does
  if differences.dtype.itemsize == 2:
    differences = differences.astype("<u2")
  return base64.b64encode(zlib.compress(differences.tobytes(), 6)).decode("ascii")


def pack_signed(values: np.ndarray, limit: float) -> str:
  """Values in [-limit, limit] as codes -127 .. 127, NaN as -128."""
  values = np.asarray(values, np.float64)
  codes = np.rint(127 * np.clip(values / (limit or 1.0), -1, 1))
  return _pack(np.where(np.isfinite(values), codes, _NO_VALUE).astype(np.int8))


def pack_positive(values: np.ndarray, limit: float) -> str:
  """Values in [0, limit] as codes 0 .. 254, NaN as 255."""
  values = np.asarray(values, np.float64)
  codes = np.rint(254 * np.clip(values / (limit or 1.0), 0, 1))
  return _pack(np.where(np.isfinite(values), codes, 255).astype(np.uint8))


def _json_number(value: float) -> float | None:
  return float(f"{value:.6g}") if math.isfinite(value) else None


def _cell_means(values: np.ndarray, cells: np.ndarray) -> list[float | None]:
  """The mean of the finite values [h w] in each cell; None for a cell that has none."""
  values = np.asarray(values, np.float64)
  use = np.isfinite(values) & (cells >= 0)
  length = int(cells.max()) + 1
  total = np.bincount(cells[use], weights=values[use], minlength=length)
  count = np.bincount(cells[use], minlength=length)
  return [_json_number(t / n) if n else None for t, n in zip(total, count, strict=True)]


def best_matches(correspondence: np.ndarray, least: float) -> list[list[float | None] | None]:
  """For each row [index, value] of its largest entry; None for a row with none of `least`."""
  rows = np.where(np.isfinite(correspondence), correspondence, -np.inf)
  best = rows.argmax(axis=1)
  return [
    [int(index), _json_number(row[index])] if row[index] >= least else None
    for row, index in zip(rows, best, strict=True)
  ]


def _side(
  image: np.ndarray,
  saliency_map: np.ndarray | None,
  standard_error: np.ndarray | None,
  cells: np.ndarray | None,
  sure: np.ndarray | None,
  limit: float,
  error_limit: float,
) -> dict[str, Any]:
  """What the page's script needs of one image of a pair."""
  side = {"height": image.shape[0], "width": image.shape[1]}
  side["map"] = None if saliency_map is None else pack_signed(saliency_map, limit)
  side["error"] = None if standard_error is None else pack_positive(standard_error, error_limit)
  side["sure"] = None if sure is None else _pack(np.asarray(sure).astype(np.uint8))
  side["cells"] = side["cellMeans"] = side["cellErrors"] = side["cellSure"] = None
  if cells is not None:
    cells = np.asarray(cells)
    side["cells"] = _pack(np.where(cells < 0, _NO_CELL, cells).astype(np.uint16))
    if saliency_map is not None:
      side["cellMeans"] = _cell_means(saliency_map, cells)
    if standard_error is not None:
      # The mean over a cell errs by at most the mean of its pixels' errors, and neighbours in a
      # cell err together, so the bound is close.
      side["cellErrors"] = _cell_means(standard_error, cells)
    if sure is not None:  # a page's cell may hold several of the map's
      side["cellSure"] = [share is not None and share >= 0.5 for share in _cell_means(sure, cells)]
  return side


def _pair_data(pair: PairView) -> dict[str, Any]:
  """The arrays of one pair, as the page's script reads them."""
  # One limit for both images: the same colour is the same change of the score.
  limit = largest(pair.saliency_map, pair.reference_saliency_map)
  error_limit = largest(pair.standard_error, pair.reference_standard_error)
  data: dict[str, Any] = {"limit": limit, "errorLimit": error_limit, "correspondence": None}
  data["activations"] = [
    pack_positive(attribute.activation_map, largest(attribute.activation_map))
    for attribute in pair.attributes[:_MOST_ATTRIBUTES]
  ]
  data["query"] = _side(
    pair.query, pair.saliency_map, pair.standard_error, pair.query_cells, pair.sure, limit,
    error_limit,
  )  # fmt: skip
  data["reference"] = _side(
    _BLANK if pair.reference is None else pair.reference,
    pair.reference_saliency_map,
    pair.reference_standard_error,
    pair.reference_cells,
    pair.reference_sure,
    limit,
    error_limit,
  )
  if pair.correspondence is not None:
    matrix = np.asarray(pair.correspondence, np.float64)
    largest_entry = largest(matrix)
    data["correspondence"] = {
      "columns": matrix.shape[1],
      "limit": largest_entry,
      "least": pair.match_threshold,
      "codes": pack_signed(matrix, largest_entry),
      "ofQuery": best_matches(matrix, pair.match_threshold),
      "ofReference": best_matches(matrix.T, pair.match_threshold),
    }
  return data


def json_block(data: Any) -> markupsafe.Markup:
  """JSON that cannot end the script element it stands in; NaN is an error rather than a value."""
  text = json.dumps(data, allow_nan=False, separators=(",", ":"))
  for character in "<>&\u2028\u2029":
    text = text.replace(character, f"\\u{ord(character):04x}")
  return markupsafe.Markup(text)


def _encode(image: Image.Image, image_format: str, **options: Any) -> bytes:
  buffer = io.BytesIO()
  image.save(buffer, image_format, **options)
  return buffer.getvalue()


def data_url(image: np.ndarray, *, thumbnail: bool = False) -> str:
  """An image [h w 3] uint8 as a data URL: PNG where that is no larger than a fine JPEG."""
  picture = Image.fromarray(np.ascontiguousarray(image))
  if thumbnail:
    picture.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.LANCZOS)
  jpeg = _encode(picture, "JPEG", quality=80 if thumbnail else 90, subsampling=0)
  png = _encode(picture, "PNG")
  kind, data = ("png", png) if len(png) <= len(jpeg) else ("jpeg", jpeg)
  return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def error_summary(pair: PairView) -> tuple[float | None, str | None]:
  """The median standard error of the query's map, and how many of its cells are sure, in words.

  None where it is not known.
  """
  error = np.asarray(pair.standard_error, np.float64)
  known = np.isfinite(np.asarray(pair.saliency_map, np.float64)) & np.isfinite(error)
  sure = None if pair.sure_cells is None else f"{pair.sure_cells[0]} of {pair.sure_cells[1]}"
  return (float(np.median(error[known])) if known.any() else None), sure


def _ranking(pair: PairView) -> dict[str, Any]:
  """What the template needs of the attributes of a pair that has some."""
  shown = pair.attributes[:_MOST_ATTRIBUTES]
  names = list(dict.fromkeys(n for a in shown for n in (*a.terms, *a.shares)))
  shares = [share for a in shown for share in a.shares.values() if math.isfinite(share)]
  low, high = min([0.0, *shares]), max([0.0, *shares])
  span = high - low or 1.0
  size = max([abs(value) for value in (*shares, *(a.total for a in shown)) if value], default=1.0)
  # As many decimals for all, so that one can add them up.
  digits = max(2, 1 - math.floor(math.log10(size))) if math.isfinite(size) else 2

  def cell(attribute: AttributeView, name: str) -> dict[str, Any]:
    share = attribute.shares.get(name, math.nan)
    known = share if math.isfinite(share) else 0.0
    return {
      "term": name,
      "value": format_number(attribute.terms.get(name)),
      "share": _signed(share, digits),
      "sign": "negative" if known < 0 else "positive",
      "start": f"{100 * (min(known, 0.0) - low) / span:.4g}",
      "width": f"{100 * abs(known) / span:.4g}",
    }

  margin = pair.attribute_margin
  return {
    "terms": [_capital(name) for name in names],
    "zero": f"{-100 * low / span:.4g}",
    "margin": (
      format_fixed(margin, digits)
      if margin is not None and math.isfinite(margin) and len(shown) > 1
      else ""
    ),
    "attributes": [
      {
        "name": attribute.name,
        "total": _signed(attribute.total, digits),
        "cells": [cell(attribute, name) for name in names],
      }
      for attribute in shown
    ],
    "picture": data_url(
      overlay_activation(mute(pair.query), shown[0].activation_map, opacity=_OPACITY)
    ),
  }


def _capital(name: str) -> str:
  return name[:1].upper() + name[1:]


def bind_units(text: str) -> str:
  """Keeps a per cent sign on the line of its number."""
  return re.sub(r"(?<=\d) (?=%)", "\u00a0", text)


def _signed(value: float, digits: int) -> str:
  text = format_fixed(value, digits)
  return f"+{text}" if value > 0 and math.isfinite(value) else text


def _domain(cells: Sequence[Cell]) -> tuple[float, float] | None:
  """The range that a column's intervals are drawn on; None where there are no two to compare."""
  ends = [
    (cell.low, cell.high)
    for cell in cells
    if isinstance(cell, Interval) and all(map(math.isfinite, cell[:3]))
  ]
  low, high = min((e[0] for e in ends), default=0.0), max((e[1] for e in ends), default=0.0)
  return (low, high) if len(ends) > 1 and high > low else None


def _whisker(cell: Cell, domain: tuple[float, float] | None) -> dict[str, str] | None:
  """Where an interval's ends, its value and 0 lie on its column's range, in % of it."""
  if domain is None or not isinstance(cell, Interval) or not all(map(math.isfinite, cell[:3])):
    return None
  low, high = domain
  marks = {"low": cell.low, "value": cell.value, "high": cell.high}
  if low < 0 < high:
    marks["zero"] = 0.0
  return {name: f"{3 + 94 * (x - low) / (high - low):.4g}" for name, x in marks.items()}


def _table(table: Table) -> dict[str, Any]:
  """What the template needs of a table."""
  tables_lib.check_table(table)
  numeric, best = tables_lib.numeric_columns(table), tables_lib.best_cells(table)
  domains = [_domain([row[column] for row in table.rows]) for column in range(len(numeric))]
  rows = []
  for number, row in enumerate(table.rows):
    cells = []
    for column, cell in enumerate(row):
      value, bounds = tables_lib.format_cell(cell)
      cells.append(
        {
          "value": value,
          "bounds": bounds,
          "numeric": numeric[column],
          "best": (number, column) in best,
          "whisker": _whisker(cell, domains[column]),
        }
      )
    rows.append(cells)
  columns = [
    {"name": name, "numeric": right} for name, right in zip(table.columns, numeric, strict=True)
  ]
  return {"title": table.title, "note": bind_units(table.note), "columns": columns, "rows": rows}


def _card(number: int, pair: PairView) -> dict[str, Any]:
  """What the template needs of one pair."""
  check_pair(pair)
  limit = largest(pair.saliency_map, pair.reference_saliency_map)
  median_error, sure = error_summary(pair)
  facts = [
    ("Median SE", format_number(median_error)),
    ("Cells that are sure", sure or "–"),
    ("Encoder passes", f"{pair.encoder_passes:,}"),
    ("Seconds", format_number(pair.seconds)),
  ]
  metrics = [
    (_capital(name), format_number(value, digits=4)) for name, value in pair.metrics.items()
  ]
  images = [
    ("query", "Query", pair.query_name, pair.query, pair.saliency_map),
    ("reference", "Reference", pair.reference_name, pair.reference, pair.reference_saliency_map),
  ]
  if pair.contrast_name is not None:
    images.append(("contrast", "Rather than", pair.contrast_name, pair.contrast, None))
  # Of a text, which may be long, its beginning is enough to find and to sort it by.
  names = [name if image is not None else shorten(name) for _, _, name, image, _ in images]
  return {
    "number": number,
    "pair": pair,
    "name": " ".join(names),
    "images": [
      {
        "side": side,
        "kicker": kicker,
        "name": name,
        "url": "" if image is None else data_url(image),
        "thumbnail": "" if image is None else data_url(image, thumbnail=True),
        "height": 1 if image is None else image.shape[0],
        "width": 1 if image is None else image.shape[1],
        "heading": name if image is not None else f"“{shorten(name)}”",
        "has_map": saliency_map is not None,
      }
      for side, kicker, name, image, saliency_map in images
    ],
    "score": format_score(pair),
    "sort_score": f"{pair.score:.9g}" if math.isfinite(pair.score) else "",
    "facts": facts + metrics,
    "limit": format_number(limit),
    "ranking": _ranking(pair) if pair.attributes else None,
    "search": " ".join(
      [*names, pair.kind] + [attribute.name for attribute in pair.attributes[:_MOST_ATTRIBUTES]]
    ),
    "sentence": bind_units(pair.sentence),
    "settings": [(name, format_setting(value)) for name, value in pair.settings.items()],
    "data": json_block(_pair_data(pair)),
  }


def shorten(text: str) -> str:
  """A text for a heading: one line of its beginning."""
  text = " ".join(text.split())
  return text if len(text) <= _HEADING else f"{text[: _HEADING - 1].rstrip()}…"


def _lookup_table(colors: np.ndarray) -> list[int]:
  """RGBA [n 4] in [0, 1] as one list of bytes."""
  return np.rint(255 * colors).astype(int).ravel().tolist()


def lookup_tables() -> dict[str, list[int]]:
  """The colours of each code, as the script reads them."""
  return {
    "saliency": _lookup_table(saliency_colors(np.arange(-127, 128) / 127)),
    "error": _lookup_table(error_colors(np.arange(255) / 254)),
    "activation": _lookup_table(activation_colors(np.arange(255) / 254)),
  }


def inline(*names: str) -> tuple[markupsafe.Markup, str]:
  """Files of ours to inline, and the source expression that lets the policy allow only them."""
  text = "\n".join((_FOLDER / name).read_text(encoding="utf-8") for name in names)
  digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
  return markupsafe.Markup(text), f"'sha256-{digest}'"


def template(name: str) -> jinja2.Template:
  """A page's template, which escapes whatever text it is given and refuses a name it lacks."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_FOLDER),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  return environment.get_template(name)


def render_page(
  pairs: Sequence[PairView],
  *,
  title: str,
  subtitle: str = "",
  failures: Sequence[tuple[str, str]] = (),
  pages: Sequence[tuple[str, str]] = (),
  tables: Sequence[Table] = (),
  shows_pairs: bool = True,
) -> str:
  """Renders explained pairs as one HTML page that works from a file, offline.

  Args:
    pairs: what to show, in the order given.
    title: the page's heading.
    subtitle: a line under it.
    failures: (which pair, what went wrong) for the pairs that have no explanation.
    pages: (label, file) of all pages of a long report, this one with an empty file name.
    tables: how good the explanations are, shown after them.
    shows_pairs: False for a page of tables alone, which does not speak of pairs.

  Returns:
    The page. Write it as UTF-8.

  Raises:
    ValueError: a pair's arrays, or a table's cells, do not fit together.
  """
  style, style_source = inline("page.css")
  script, script_source = inline("card.js", "page.js")
  page = template("page.html.j2").render(
    title=title,
    subtitle=subtitle,
    failures=failures,
    pages=pages,
    cards=[_card(number, pair) for number, pair in enumerate(pairs)],
    tables=[_table(table) for table in tables],
    shows_pairs=shows_pairs,
    colors=json_block(lookup_tables()),
    style=style,
    style_source=markupsafe.Markup(style_source),
    script=script,
    script_source=markupsafe.Markup(script_source),
  )
  # File names may hold bytes that are no text (lone surrogates), and a page must be writable.
  return page.encode("utf-8", "replace").decode("utf-8")
