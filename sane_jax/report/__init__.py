"""Showing explained pairs: an interactive page and a static figure; and tables of results."""

from sane_jax.report.comparison import ComparisonView, RegionMatch, render_comparisons
from sane_jax.report.figure import draw_figure, figure_png
from sane_jax.report.page import AttributeView, PairView, mute, overlay, render_page, shorten
from sane_jax.report.tables import Interval, Table

__all__ = [
  "AttributeView",
  "ComparisonView",
  "Interval",
  "PairView",
  "RegionMatch",
  "Table",
  "draw_figure",
  "figure_png",
  "mute",
  "overlay",
  "render_comparisons",
  "render_page",
  "shorten",
]
