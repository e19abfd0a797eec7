"""What an explanation hands out: a page's view, a record, files, and how to make it again."""

import dataclasses
import io
import json
import os
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from sane_jax import report
from sane_jax.maps import generators, pictures
from sane_jax.ops import designs, matches, resampling
from sane_jax.runs import files

if TYPE_CHECKING:
  from sane_jax.maps.explanation import Explanation

PAGE_ATTRIBUTES = 6  # of the first ranked, on the page
RECORD_ATTRIBUTES = 10  # of the first ranked, in JSON


def view(e: "Explanation") -> report.PairView:
  """What the page and the figure show. Computes the reference's side if there is one."""
  side = e.reference_side if e.make_reference_side else None
  query_cells = reference_cells = table = None
  least = matches.LEAST_MATCH
  if side is not None and side.matrices is not None:
    query_cells, reference_cells = e.query_cells, side.labels
    table, least = e.correspondence, e.match_threshold
    if e.grid is not None:
      query_cells, pool = _page_cells(query_cells.shape, e.grid)
      reference_cells, _ = _page_cells(reference_cells.shape, e.grid)
      table = pool @ table @ pool.T
  named: dict[str, Any] = {}
  if e.ranker is not None:
    named = {
      "attributes": [
        report.AttributeView(a.name, a.total, a.terms, a.shares, a.map)
        for a in e.attributes[:PAGE_ATTRIBUTES]
      ],
      "attribute_margin": e.attribute_margin,
      "sentence": e.sentence,
    }
  return report.PairView(
    **named,
    query_name=e.query.name or "query",
    reference_name=e.reference.name or "reference",
    query=e.query.uint8,
    reference=e.reference.uint8,
    score=e.score,
    saliency_map=e.saliency_map,
    standard_error=e.standard_error,
    reference_saliency_map=None if side is None else side.saliency.values,
    reference_standard_error=None if side is None else side.saliency.errors,
    query_cells=query_cells,
    reference_cells=reference_cells,
    correspondence=table,
    match_threshold=least,
    encoder_passes=e.encoder_passes,
    seconds=e.seconds,
    metrics=e.metrics,
    settings=e.settings,
    command=snippet(e),
    warnings=[*e.warnings, *_no_errors(e)],
    contrast_name=None if e.contrast is None else (e.contrast.name or "contrast"),
    contrast=None if e.contrast is None else e.contrast.uint8,
    sure=e.sure if np.isfinite(e.saliency.p_values).any() else None,
    reference_sure=(
      None
      if side is None or not np.isfinite(side.saliency.p_values).any()
      else side.saliency.sure[side.labels]
    ),
    sure_cells=_sure_cells(e),
  )


def _sure_cells(e: "Explanation") -> tuple[int, int] | None:
  """How many cells are sure, of how many; None without an error."""
  known = np.isfinite(e.saliency.p_values)
  return (int(e.saliency.sure.sum()), int(known.sum())) if known.any() else None


def _no_errors(e: "Explanation") -> list[str]:
  """Says why a map of masks that were drawn has no error bars."""
  count = e.settings.get("num_masks")
  if not count or np.isfinite(e.saliency.cell_errors).any():
    return []
  return [
    f"there are no error bars: {count} masks are one replicate of this design, and its spread can't"
    f" be seen; num_masks={2 * count} has them"
  ]


def _page_cells(shape: tuple[int, int], grid: tuple[int, int]):
  """Labels [h w] of at most 14 x 14 page cells, and how they average a grid's cells [page c]."""
  labels = designs.grid_cells(shape, resampling.page_grid(grid)).labels
  return np.asarray(labels), resampling.page_pooling(grid)


# --- JSON and files -------------------------------------------------------------------------------


def attribute_records(attributes: Sequence[Any]) -> list[dict[str, Any]]:
  """Ranked attributes, or a page's, for JSON."""
  return [
    {"name": a.name, "total": a.total, "terms": a.terms, "shares": a.shares} for a in attributes
  ]


def record(e: "Explanation") -> dict[str, Any]:
  """Everything but the arrays, for JSON; of several fills, each one's map over cells."""
  named, by_fill = {}, {name: v.tolist() for name, v in e.maps_by_fill.items()}
  sides = [e.query, e.reference] + ([] if e.contrast is None else [e.contrast])
  sources = [getattr(side, "path", None) for side in sides]
  if e.ranker is not None:
    named = {
      "sentence": e.sentence,
      "attribute_margin": e.attribute_margin,
      "attributes": attribute_records(e.attributes[:RECORD_ATTRIBUTES]),
    }
  return {
    **named,
    "query": e.query.name,
    "reference": e.reference.name,
    **({"contrast": e.contrast.name} if e.contrast is not None else {}),
    **({"sources": sources} if None not in sources else {}),
    "score": e.score,
    "sure_cells": _sure_cells(e),
    **({"by_fill": by_fill} if by_fill else {}),
    "encoder_passes": e.encoder_passes,
    "seconds": e.seconds,
    "metrics": dict(e.metrics),
    "warnings": list(e.warnings),
    "settings": e.settings,
  }


def title(e: "Explanation") -> str:
  """The two sides' names; that of a text in quotation marks."""
  name = e.reference.name or "reference"
  if e.reference.uint8 is None:
    name = f"“{report.shorten(name)}”"
  return f"{e.query.name or 'query'} and {name}"


def save(e: "Explanation", folder: str | os.PathLike[str]) -> pathlib.Path:
  """Writes explanation.json, maps.npz, figure.png and index.html into `folder`."""
  folder = files.at(folder)
  shown = view(e)
  arrays: dict[str, Any] = {
    "query": shown.query,
    "saliency_map": e.saliency_map,
    "standard_error": e.standard_error,
    "cell_values": e.saliency.cells,
    "cell_errors": e.saliency.cell_errors,
    "cell_p_values": e.saliency.p_values,
    "query_cells": e.query_cells,
  }
  if shown.reference is None:
    arrays["reference_embedding"] = e.reference.unit  # pyright: ignore[reportAttributeAccessIssue]
  else:
    arrays["reference"] = shown.reference
  if shown.reference_saliency_map is not None:
    arrays["reference_saliency_map"] = shown.reference_saliency_map
    arrays["reference_standard_error"] = shown.reference_standard_error
    arrays["reference_cells"] = e.reference_cells
  if shown.correspondence is not None:
    arrays["correspondence"] = e.correspondence
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **arrays)
  files.write_bytes(folder / "maps.npz", buffer.getvalue())
  files.write_bytes(folder / "figure.png", report.figure_png(shown))
  page = report.render_page([shown], title=title(e))
  files.write_bytes(folder / "index.html", page.encode())
  text = json.dumps(record(e), indent=2, allow_nan=False)
  files.write_bytes(folder / "explanation.json", f"{text}\n".encode())
  return folder


# --- to make it again -----------------------------------------------------------------------------


def snippet(e: "Explanation") -> str:
  """Python that reproduces the explanation, given the `model`.

  A picture as the fill is given by its hash: the program that used it has it, and others are told
  to give it.
  """
  settings = e.settings
  before, after, fill = [], [], settings["fill"]
  if pictures.is_name(fill):
    after.append(
      "# The fill is a picture. This program still has it; another one can't make this map without:"
      " give fill=array [h w 3] there."
    )
  elif isinstance(fill, list):
    fill = tuple(fill)
  kind = "threefry2x32" if e.key is None else str(jax.random.key_impl(e.key))
  words = settings["key"]
  key = str(words[-1]) if kind == "threefry2x32" and not any(words[:-1]) else repr(tuple(words))
  if kind not in ("threefry2x32", "rbg"):
    before += ["import jax", "import numpy as np"]
    key = f"jax.random.wrap_key_data(np.array({words}, np.uint32), impl={kind!r})"
  known = [f.name for f in dataclasses.fields(generators.DESIGNS[settings["design"]])]
  options = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items() if k in known}
  given = [f"{k}={v!r}" for k, v in {"design": settings["design"], **options}.items()]
  given += [f"fill={fill!r}", f"mode={settings['mode']!r}", f"key={key}"]
  # Which the explainer was given with a model of full precision.
  given += [f"dtype={d!r}" for d in ("bfloat16", "float16") if settings["model"].endswith(f", {d}")]
  sides = {"query": e.query, "reference": e.reference, "contrast": e.contrast}
  shown = [
    repr(shown.name or side)
    if shown.uint8 is not None
    else f"sane_jax.Embedding(vector, {shown.name[:80]!r})"
    for side, shown in sides.items()
    if shown is not None
  ]
  call = "explain" if e.contrast is None else "contrast"
  return "\n".join([
    *before,
    f"explainer = sane_jax.Explainer(model, {', '.join(given)})",
    *after,
    f"explainer.{call}({', '.join(shown)})",
  ])  # fmt: skip


def shell_line(fields: Mapping[str, Any]) -> str:
  """The command that runs configs/photos.py with those fields; None leaves a field as it is."""
  given = {k: v for k, v in fields.items() if v is not None}
  options = " ".join(f"--config.{k}={quoted(v)}" for k, v in given.items())
  return f"python -m sane_jax.main --config=configs/photos.py {options}"


def quoted(value: Any) -> str:
  """A setting as a shell takes it."""
  return shlex.quote(
    str(tuple(value)).replace(" ", "") if isinstance(value, list | tuple) else str(value)
  )
