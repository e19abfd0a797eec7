"""Showing explained pairs: a self-contained interactive page, and a static figure."""

from sane_jax.report.figure import draw_figure, figure_png
from sane_jax.report.page import PairView, mute, overlay, render_page

__all__ = ["PairView", "draw_figure", "figure_png", "mute", "overlay", "render_page"]
