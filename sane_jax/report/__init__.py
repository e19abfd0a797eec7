"""Showing explained pairs: an interactive page and a static figure; and tables of results."""

from sane_jax.report.figure import draw_figure, figure_png
from sane_jax.report.page import AttributeView, PairView, mute, overlay, render_page, shorten
from sane_jax.report.tables import Interval, Table

__all__ = [
  "AttributeView",
  "Interval",
  "PairView",
  "Table",
  "draw_figure",
  "figure_png",
  "mute",
  "overlay",
  "render_page",
  "shorten",
]
