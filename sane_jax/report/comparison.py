"""One self-contained HTML page that shows where the reasons of two models differ.

No script is needed: maps are painted into the pictures, and cells say their numbers as titles.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import markupsafe
import numpy as np

from sane_jax.report import page as page_lib
from sane_jax.report.page import format_number, largest, mute, overlay, shorten

_LETTERS = "AB"


class RegionMatch(NamedTuple):
  """A region of the query that raises a model's score, and what it matches in the reference.

  Attributes:
    model: 0 or 1.
    value: of the model's scaled map there.
    correspondence: cosine of the two regions' effects, in [-1, 1].
    query, reference: top, left, bottom and right of the two regions, as shares of the photos.
  """

  model: int
  value: float
  correspondence: float
  query: tuple[float, float, float, float]
  reference: tuple[float, float, float, float]


class ComparisonView(NamedTuple):
  """All that the page shows of two models' maps: plain arrays and text.

  Attributes:
    query_name, reference_name: what to call the two.
    names: of the models, A and B.
    picture: [h w 3] uint8, the query's photo.
    reference: [h2 w2 3] uint8; None for a text, which `reference_name` is.
    pixel_maps: [2 h w], scaled, NaN where a model does not see the photo.
    maps, errors: [2 rows columns], scaled, over common cells.
    difference, standard_error, p_values: [rows columns], of A less B.
    significant: [rows columns], bool.
    frame: top, left, bottom and right of the common cells, as shares of the photo.
    scores, scales, reliabilities: of A and B.
    rank_correlation, most_correlation: of the two maps, and what it can be at most.
    paired: whether both saw the same masks.
    matches: strongest regions of each model.
    encoder_passes: of both.
    settings: of A and B.
    warnings: what a reader should know.
    command: what makes this again.
  """

  query_name: str
  reference_name: str
  names: tuple[str, str]
  picture: np.ndarray
  reference: np.ndarray | None
  pixel_maps: np.ndarray
  maps: np.ndarray
  errors: np.ndarray
  difference: np.ndarray
  standard_error: np.ndarray
  p_values: np.ndarray
  significant: np.ndarray
  frame: tuple[float, float, float, float]
  scores: tuple[float, float]
  scales: tuple[float, float]
  rank_correlation: float
  most_correlation: float
  reliabilities: tuple[float, float]
  paired: bool
  matches: Sequence[RegionMatch]
  encoder_passes: int
  settings: Sequence[Mapping[str, Any]]
  warnings: Sequence[str] = ()
  command: str = ""


def _percent(shares: Sequence[float], picture: np.ndarray) -> dict[str, str]:
  """A box in the picture's pixels, for SVG."""
  h, w = picture.shape[:2]
  top, left, bottom, right = shares
  return {
    "x": f"{left * w:.4g}",
    "y": f"{top * h:.4g}",
    "width": f"{(right - left) * w:.4g}",
    "height": f"{(bottom - top) * h:.4g}",
  }


def _cells(view: ComparisonView) -> list[dict[str, Any]]:
  """The common cells, with what each says when it is pointed at."""
  rows, columns = view.difference.shape
  top, left, bottom, right = view.frame
  height, width = (bottom - top) / rows, (right - left) / columns
  out = []
  for r, c in np.ndindex(rows, columns):
    box = (top + r * height, left + c * width, top + (r + 1) * height, left + (c + 1) * width)
    p = float(view.p_values[r, c])
    told = (
      f"row {r + 1}, column {c + 1}:"
      f" A {_with_error(view.maps[0, r, c], view.errors[0, r, c])},"
      f" B {_with_error(view.maps[1, r, c], view.errors[1, r, c])},"
      f" A − B {_with_error(view.difference[r, c], view.standard_error[r, c])}"
    )
    if math.isfinite(p):
      told += f", p {'< 0.001' if p < 1e-3 else f'= {p:.3f}'}"
    differs = bool(view.significant[r, c])
    out.append(
      {**_percent(box, view.picture), "told": told, "differs": differs, "row": r, "column": c}
    )
  return out


def _with_error(value: Any, error: Any) -> str:
  spread = f" ± {format_number(float(error), digits=2)}" if math.isfinite(error) else ""
  return f"{format_number(float(value), signed=True)}{spread}"


def _finding(view: ComparisonView) -> str:
  """What the comparison says, in a sentence."""
  count, cells = int(view.significant.sum()), view.significant.size
  if count == 0:
    if not view.difference.any():
      return "The two maps are the same."
    if not np.isfinite(view.standard_error).any():
      return (
        "No replicate of the masks is there to compare with: whether the maps differ is unknown."
      )
    return "No region’s difference is beyond what the draw of masks makes."
  more = int((view.significant & (view.difference > 0)).sum())
  noun = "region differs" if count == 1 else "regions differ"
  if more in (0, count):
    name = "A" if more else "B"
    return f"{count} of {cells} {noun}: {name}’s score rests more on {_them(count)}."
  return (
    f"{count} of {cells} {noun}: A’s score rests more on {more} of them, B’s on {count - more}."
  )


def _them(count: int) -> str:
  return "it" if count == 1 else "them"


def _painted_difference(view: ComparisonView) -> np.ndarray:
  """The cells' differences [h w] over the photo, NaN beyond them."""
  h, w = view.picture.shape[:2]
  rows, columns = view.difference.shape
  top, left, bottom, right = view.frame
  places = []
  for size, count, low, high in ((h, rows, top, bottom), (w, columns, left, right)):
    share = ((np.arange(size) + 0.5) / size - low) / (high - low)
    places.append((np.clip((share * count).astype(int), 0, count - 1), (share < 0) | (share > 1)))
  (row, above), (column, beside) = places
  out = np.asarray(view.difference, np.float64)[row[:, None], column[None]]
  out[above[:, None] | beside[None]] = np.nan
  return out


def _card(number: int, view: ComparisonView) -> dict[str, Any]:
  # Where both see the photo: what one alone sees has nothing to be compared with.
  both = np.isfinite(view.pixel_maps).all(axis=0)
  limit = largest(*(np.where(both, m, np.nan) for m in view.pixel_maps))
  between = largest(view.difference)
  muted = mute(view.picture)
  painted = [overlay(muted, m, limit=limit) for m in view.pixel_maps]
  difference = overlay(muted, _painted_difference(view), limit=between)
  height, width = view.picture.shape[:2]

  def marks(model: int, side: str, picture: np.ndarray) -> list[dict[str, Any]]:
    own = [m for m in view.matches if m.model == model]
    return [
      {
        **_percent(getattr(m, side), picture), "label": f"{_LETTERS[model]}{place}",
        "letter": _LETTERS[model].lower(),
        "told": f"{_LETTERS[model]}{place}: map {format_number(m.value, signed=True)},"
        f" cosine {format_number(m.correspondence, digits=2)}",
      }
      for place, m in enumerate(own, 1)
    ]  # fmt: skip

  reference = None
  if view.reference is not None:
    reference = {
      "url": page_lib.data_url(view.reference),
      "height": view.reference.shape[0], "width": view.reference.shape[1],
      "marks": [m for k in (0, 1) for m in marks(k, "reference", view.reference)],
    }  # fmt: skip
  worst = [
    (name, *(format_number(x, digits=d) for x, d in row))
    for name, row in (
      ("Score", [(s, 3) for s in view.scores]),
      ("Unit of the map, in its score", [(s, 3) for s in view.scales]),
      ("Median SE of the scaled map", [(float(np.median(e)), 2) for e in view.errors]),
      ("Share of the map that is no noise", [(r, 2) for r in view.reliabilities]),
    )
  ]
  differing = [
    (name, *(page_lib.format_setting(s.get(name, "–")) for s in view.settings))
    for name in dict.fromkeys(n for s in view.settings for n in s)
    if len({str(s.get(name)) for s in view.settings}) > 1
  ]
  common = [
    (name, page_lib.format_setting(value))
    for name, value in view.settings[0].items()
    if str(view.settings[1].get(name)) == str(value)
  ]
  correlation = format_number(view.rank_correlation, digits=2)
  ceiling = format_number(view.most_correlation, digits=2)
  return {
    "number": number,
    "view": view,
    "reference_title": (
      view.reference_name if view.reference is not None else f"“{shorten(view.reference_name)}”"
    ),
    "finding": _finding(view),
    "height": height,
    "width": width,
    "query_url": page_lib.data_url(view.picture),
    "models": [
      {
        "letter": _LETTERS[k], "name": view.names[k], "url": page_lib.data_url(painted[k]),
        "marks": marks(k, "query", view.picture),
      }
      for k in (0, 1)
    ],
    "difference_url": page_lib.data_url(difference),
    "cells": _cells(view),
    "limit": format_number(limit, digits=2),
    "between": format_number(between, digits=2),
    "reference": reference,
    "rows": worst,
    "facts": [
      ("Rank correlation", correlation),
      # What both hear of the same masks agrees, and may be above it.
      (f"At most, {'were no noise shared' if view.paired else 'given the noise'}", ceiling),
      ("Regions that differ", f"{int(view.significant.sum())} of {view.significant.size}"),
      ("Masks", "the same for both" if view.paired else "each its own"),
      ("Encoder passes", f"{view.encoder_passes:,}"),
    ],
    "differing": differing,
    "common": common,
  }  # fmt: skip


def render_comparisons(
  views: Sequence[ComparisonView], *, title: str, subtitle: str = "",
  failures: Sequence[tuple[str, str]] = (),
) -> str:  # fmt: skip
  """Renders comparisons as one HTML page that works from a file, offline and without scripts.

  Args:
    views: what to show, in the order given.
    title: the page's heading.
    subtitle: a line under it.
    failures: (which pair, what went wrong) for the pairs that could not be compared.

  Returns:
    The page. Write it as UTF-8.
  """
  style, source = page_lib.inline("page.css")
  more, more_source = page_lib.inline("comparison.css")
  page = page_lib.template("comparison.html.j2").render(
    title=title, subtitle=subtitle, failures=failures, style=style, more_style=more,
    style_source=markupsafe.Markup(f"{source} {more_source}"),
    cards=[_card(number, view) for number, view in enumerate(views)],
  )  # fmt: skip
  return page.encode("utf-8", "replace").decode("utf-8")
