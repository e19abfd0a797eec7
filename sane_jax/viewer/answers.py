"""The viewer's answers on pairs, from what is known of their images, as JSON."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sane_jax.maps import reasons
from sane_jax.ops import effects, matches, resampling, statistics
from sane_jax.report import page
from sane_jax.viewer import collection as collection_lib
from sane_jax.viewer.collection import Collection, Measured, View
from sane_jax.web.guard import Refusal

# (query's id, reference's id) -> ranker of that pair's attributes; an upload's id is None.
Rankers = Callable[[str | None, str | None], reasons.Ranker]
MOST_ATTRIBUTES = 6
_correspondence = jax.jit(effects.correspondence)


class Pair(NamedTuple):
  """A pair in a view."""

  score: float
  query_map: np.ndarray | None  # [rows columns]
  reference_map: np.ndarray | None
  query_error: float | None  # pooled over cells
  reference_error: float | None
  correspondence: "Correspondence | None"


class Correspondence(NamedTuple):
  """Which region matches which, and from which cosine on."""

  table: np.ndarray  # [c c]
  least: float


def explain_pair(collection: Collection, query: str, reference: str, view: View, mode: str) -> Pair:
  """All that is known of a pair, without the encoder; nothing of a photo that was replaced since.

  Raises:
    Refusal: 404, no such image; 409, one that was left out, or not measured at all.
  """
  sides = {q: collection.side(q, view, r) for q, r in ((query, reference), (reference, query))}
  embeddings = {
    q: collection.known_embedding(q, view, r) for q, r in ((query, reference), (reference, query))
  }
  maps, errors = [], []
  for one, other in ((query, reference), (reference, query)):
    side = sides[one]
    towards = embeddings[other]
    if mode == "both" and towards is not None:
      towards = collection.masked(other, view, one)
    known = None
    if side is not None and towards is not None:
      known = (side.matrix @ towards).reshape(side.grid)
    maps.append(known)
    # With both perturbed, the error includes a spread over masked references, which isn't saved.
    direction = embeddings[other] if mode == "fixed" else None
    errors.append(None if direction is None else error_of(side, direction))
  ends = embeddings[query], embeddings[reference]
  score = float("nan") if ends[0] is None or ends[1] is None else float(ends[0] @ ends[1])
  return Pair(
    score, maps[0], maps[1], errors[0], errors[1],
    correspond(sides[query], sides[reference]),
  )  # fmt: skip


def error_of(side: Measured | None, direction: np.ndarray) -> float | None:
  """The standard error of a map against a direction [d], pooled over cells; None without."""
  if side is None or side.factor is None:
    return None
  return side.factor(direction)


def correspond(query: Measured | None, reference: Measured | None) -> Correspondence | None:
  """Which region matches which; None where one of the two is not measured."""
  if query is None or reference is None:
    return None
  table = np.asarray(_correspondence(query.matrix, reference.matrix))
  return Correspondence(
    table, matches.match_threshold(len(table), table.shape[1], query.matrix.shape[1])
  )


def explain_contrast(
  collection: Collection, query: str, a: str, b: str, view: View
) -> tuple[list[float], np.ndarray | None, float | None]:
  """Why the query matches a rather than b: both scores, the map of their difference, its error.

  Raises:
    Refusal: as `explain_pair`; 409 where a and b are compared with the query in different spaces.
  """
  one, other = (collection.side(query, view, each) for each in (a, b))
  towards = [collection.embedding(each, view, query) for each in (a, b)]
  mine = [collection.embedding(query, view, each) for each in (a, b)]
  scores = [float(m @ t) for m, t in zip(mine, towards, strict=True)]
  if one is None or other is None:
    return scores, None, None
  values = (one.matrix @ towards[0] - other.matrix @ towards[1]).reshape(one.grid)
  error = None
  if one.factor is not None and np.array_equal(mine[0], mine[1]):  # in one space
    error = error_of(one, towards[0] - towards[1])
  return scores, values, error


def rank_attributes(
  collection: Collection, rankers: Rankers, query: str, reference: str, view: View
) -> dict[str, Any]:
  """What explains a pair in words, for JSON. Costs a pass of the attribute model.

  Raises:
    Refusal: as `explain_pair`; 409 where the query has no map.
    ImageError: its photo can't be read.
  """
  pair = explain_pair(collection, query, reference, view, "fixed")
  if pair.query_map is None:
    raise Refusal(409, "Attributes are weighed by the query's map, and it has none in this view.")
  pixels = collection.pixels(query)
  if pixels.dtype == np.uint8:
    pixels = pixels.astype(np.float32) / 255
  rank = rankers(collection.ids.get(query), collection.ids.get(reference))
  embeddings = (
    collection.embedding(query, view, reference), collection.embedding(reference, view, query),
  )  # fmt: skip
  found = rank(pixels, pair.query_map, embeddings)
  shown = found.ranked[:MOST_ATTRIBUTES]
  return {
    "sentence": found.sentence,
    "margin": number(found.margin),
    "attributes": [
      {
        "name": a.name,
        "total": number(a.total),
        "terms": {name: number(value) for name, value in a.terms.items()},
        "shares": {name: number(value) for name, value in a.shares.items()},
        "map": page.pack_positive(a.map, page.largest(a.map)),
      }
      for a in shown
    ],
  }


# --- as JSON --------------------------------------------------------------------------------------


def number(value: float | None) -> float | None:
  """Seven digits, which float32 has; None for what is no number."""
  return float(f"{value:.7g}") if value is not None and np.isfinite(value) else None


def map_json(values: np.ndarray | None, error: float | None, smooth: bool) -> dict[str, Any] | None:
  """A map [rows columns] for JSON, with what is said of it in numbers."""
  if values is None:
    return None
  finite = np.isfinite(values)
  sure = None
  if error is not None and finite.any():
    flat = values.ravel().astype(np.float64)
    p = statistics.holm(effects.p_values(flat, np.full(flat.shape, error), np.inf))
    sure = [int(known) for known in p <= statistics.SIGNIFICANCE]
  return {
    "rows": values.shape[0],
    "columns": values.shape[1],
    "smooth": smooth,
    "values": [number(v) for v in values.ravel().tolist()],
    "standard_error": number(error),
    "sure": sure,
  }


def correspondence_json(
  found: Correspondence | None, query: Sequence[int], reference: Sequence[int]
) -> dict[str, Any] | None:
  """A correspondence of two grids for JSON, of the cells that a page tells apart."""
  if found is None:
    return None
  table, least = found
  grids = ((query[0], query[1]), (reference[0], reference[1]))
  if any(resampling.page_grid(grid) != grid for grid in grids):
    table = collection_lib.pool_correspondence(table, *grids)
  limit = page.largest(table)
  rows = [list(resampling.page_grid(grid)) for grid in grids]
  return {
    "query_grid": rows[0],
    "reference_grid": rows[1],
    "columns": table.shape[1],
    "limit": number(limit),
    "least": number(least),
    "codes": page.pack_signed(table, limit),
    "of_query": page.best_matches(table, least),
    "of_reference": page.best_matches(table.T, least),
  }
