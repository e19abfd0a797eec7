"""A still figure of one explained pair, for papers, notebooks and logs."""

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sane_jax.report.page import (
  PairView,
  activation_colors,
  bind_units,
  check_pair,
  error_summary,
  format_number,
  format_score,
  largest,
  mute,
  overlay,
  overlay_activation,
  saliency_colors,
)
from sane_jax.report.tables import one_line

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

_OPACITY = 0.8
_MUTED = "#5d5a54"
_PANEL, _GAP, _MARGIN, _HEAD, _FOOT = 2.5, 0.12, 0.15, 0.85, 0.55  # inches
_CAPTION, _LINE = 9, 0.18  # points of its letters, inches of its lines
_INSET = 0.15  # inches around a text
_BAR_GROUND = 0.83  # grey behind the colour bar's transparent middle


def _shorten(name: str, length: int) -> str:
  """Keeps both ends of a long name, which tell files apart better than the start alone."""
  if len(name) <= length:
    return name
  head = (length - 1) // 2
  return f"{name[:head]}…{name[head + 1 - length :]}"


class _Panel(NamedTuple):
  """One picture, with a name under it or the bar of its colours."""

  title: str
  image: np.ndarray | None  # None for a text, which is the name
  name: str = ""
  bar: Callable[["Axes"], None] | None = None


def draw_figure(pair: PairView) -> "Figure":
  """Draws a pair: the query, its saliency map, the reference's, colour bars and the numbers.

  With attributes, also where the query shows the first; with a sentence, that as the caption. The
  figure belongs to no window and no pyplot state: `figure.savefig(path)` is all it takes.

  Args:
    pair: what to draw. Both maps share one limit, so one colour is one change of the score.

  Returns:
    A matplotlib figure on an Agg canvas.

  Raises:
    ValueError: the pair's arrays do not fit together.
  """
  # Only here, for the page has no need of matplotlib.
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  check_pair(pair)
  pair = _drawable(pair)
  panels = _panels(pair)

  # Laid out in inches: panels of one height, as wide as their images are.
  shapes = [(1, 1) if p.image is None else p.image.shape for p in panels]
  widths = [_PANEL * min(max(shape[1] / shape[0], 0.5), 2) for shape in shapes]
  width = sum(widths) + _GAP * (len(panels) - 1) + 2 * _MARGIN
  figure = Figure(figsize=(width, 1), dpi=150, facecolor="white")
  FigureCanvasAgg(figure)
  caption = _wrap(figure, bind_units(pair.sentence), width - 2 * _MARGIN)
  foot = _FOOT + (len(caption) * _LINE + 0.1 if caption else 0)
  size = (width, _PANEL + _HEAD + foot)
  figure.set_size_inches(*size)

  def add_axes(left: float, bottom: float, width: float, height: float) -> "Axes":
    box = (left / size[0], bottom / size[1], width / size[0], height / size[1])
    return figure.add_axes(box, anchor="NW")

  left = _MARGIN
  for panel, width in zip(panels, widths, strict=True):
    axes = add_axes(left, foot, width, _PANEL)
    if panel.image is None:
      _write_text(axes, _wrap(figure, panel.name, width - 2 * _INSET), width)
    else:
      axes.imshow(panel.image, interpolation="lanczos")
    # Names are text, never mathematics: a file name may hold dollar signs.
    title = _shorten(panel.title, int(11 * width))
    axes.set_title(title, fontsize=9, loc="left", pad=4, parse_math=False)
    if panel.name and panel.image is not None:
      name = _shorten(panel.name, int(13 * width))
      axes.set_xlabel(name, fontsize=8, color=_MUTED, loc="left", parse_math=False)
    elif panel.bar is not None:
      panel.bar(add_axes(left, foot - 0.17, width, 0.09))
    for each in figure.axes:
      each.spines[:].set_visible(False)
      each.set_yticks([])
    axes.set_xticks([])
    left += width + _GAP

  def write(inches_from_top: float, text: str, **style: Any) -> None:
    at = (_MARGIN / size[0], 1 - inches_from_top / size[1])
    figure.text(*at, text, va="top", **style)

  kind = "Score" if pair.contrast_name is None else "Score difference"
  write(0.14, f"{kind} {format_score(pair)}", fontsize=13, weight="bold")
  write(0.42, _notes(pair), fontsize=8, color=_MUTED)
  for number, line in enumerate(caption):
    write(
      size[1] - 0.1 - (len(caption) - number) * _LINE, line, fontsize=_CAPTION, parse_math=False
    )
  return figure


def _drawable(pair: PairView) -> PairView:
  """The pair with texts on one line: names of files may hold what is no character."""
  return pair._replace(
    query_name=one_line(pair.query_name),
    reference_name=one_line(pair.reference_name),
    contrast_name=None if pair.contrast_name is None else one_line(pair.contrast_name),
    sentence=one_line(pair.sentence),
    attributes=[a._replace(name=one_line(a.name)) for a in pair.attributes],
  )


def _panels(pair: PairView) -> list[_Panel]:
  limit = largest(pair.saliency_map, pair.reference_saliency_map)
  panels = [
    _Panel("Query", pair.query, pair.query_name),
    _Panel(
      "Query, saliency map",
      _paint(pair.query, pair.saliency_map, limit),
      bar=lambda axes: _draw_bar(axes, limit),
    ),
  ]
  for attribute in pair.attributes[:1]:
    painted = overlay_activation(mute(pair.query), attribute.activation_map, opacity=_OPACITY)
    panels.append(_Panel(attribute.name, painted, bar=_draw_activation_bar))
  if pair.reference is None:
    panels.append(_Panel("Reference, a text", None, pair.reference_name))
  elif pair.reference_saliency_map is None:
    panels.append(_Panel("Reference", pair.reference, pair.reference_name))
  else:
    painted = _paint(pair.reference, pair.reference_saliency_map, limit)
    panels.append(_Panel("Reference, saliency map", painted, pair.reference_name))
  if pair.contrast_name is not None:
    panels.append(_Panel("Rather than", pair.contrast, pair.contrast_name))
  return panels


def _wrap(figure: "Figure", text: str, inches: float) -> list[str]:
  """Lines of a caption that are at most so wide as they are drawn; long words are broken."""
  drawn = figure.text(0, 0, "", fontsize=_CAPTION, parse_math=False)

  def fits(line: str) -> bool:
    drawn.set_text(line)
    # Another resolution sets the letters a little wider.
    return drawn.get_window_extent().width <= 0.94 * inches * figure.dpi

  lines: list[str] = []
  # An unbreakable space does not part words.
  for word in filter(None, re.split(r"[ \t\r\n]+", text)):
    if lines and fits(f"{lines[-1]} {word}"):
      lines[-1] += f" {word}"
      continue
    lines.append("")
    for letter in word:
      if lines[-1] and not fits(lines[-1] + letter):
        lines.append("")
      lines[-1] += letter
  drawn.remove()
  return lines


def _write_text(axes: "Axes", lines: list[str], width: float) -> None:
  """A text where a picture would be; what has no room is cut, and an ellipsis says so."""
  axes.set_facecolor("#f0eeea")
  room = int((_PANEL - 2 * _INSET) / _LINE)
  if len(lines) > room:
    lines = [*lines[: room - 1], f"{lines[room - 1]} …"]
  for number, line in enumerate(lines):
    at = (_INSET / width, 1 - (_INSET + number * _LINE) / _PANEL)
    axes.text(*at, line, transform=axes.transAxes, va="top", fontsize=_CAPTION, parse_math=False)


def _paint(image: np.ndarray, saliency_map: np.ndarray, limit: float) -> np.ndarray:
  return overlay(mute(image), saliency_map, opacity=_OPACITY, limit=limit)


def _draw_bar(axes: "Axes", limit: float) -> None:
  """Draws the overlay's colours with the effects that they stand for."""
  rgba = saliency_colors(np.linspace(-1, 1, 255))
  alpha = _OPACITY * rgba[:, 3:]
  colors = rgba[:, :3] * alpha + _BAR_GROUND * (1 - alpha)
  axes.imshow(colors[None], extent=(-1, 1, 0, 1), aspect="auto", interpolation="bilinear")
  ends = (format_number(-limit), format_number(limit, signed=True)) if limit else ("", "")
  axes.set_xticks([-1, 0, 1], [ends[0], "0", ends[1]], fontsize=8)
  for label, side in zip(axes.get_xticklabels(), ("left", "center", "right"), strict=True):
    label.set_horizontalalignment(side)
  axes.tick_params(length=2, pad=2)
  axes.set_xlabel("effect on the score", fontsize=8, labelpad=1)


def _draw_activation_bar(axes: "Axes") -> None:
  """Draws an activation map's colours; its values have no unit."""
  rgba = activation_colors(np.linspace(0, 1, 255))
  alpha = _OPACITY * rgba[:, 3:]
  colors = rgba[:, :3] * alpha + _BAR_GROUND * (1 - alpha)
  axes.imshow(colors[None], extent=(0, 1, 0, 1), aspect="auto", interpolation="bilinear")
  axes.set_xticks([])
  axes.set_xlabel("where the query shows it", fontsize=8, labelpad=4)


def _notes(pair: PairView) -> str:
  """How sure the map is, and what it cost."""
  median_error, sure = error_summary(pair)
  notes = []
  if median_error is not None:
    notes.append(f"median standard error (SE) {format_number(median_error)}")
  if sure is not None:
    notes.append(f"{sure} cells sure")
  return " · ".join([*notes, f"{pair.encoder_passes:,} encoder passes"])


def figure_png(pair: PairView, *, dpi: int = 120) -> bytes:
  """The figure of a pair as a PNG file's bytes."""
  out = io.BytesIO()
  draw_figure(pair).savefig(out, format="png", dpi=dpi)
  return out.getvalue()
