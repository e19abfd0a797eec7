"""Outfits that are drawn: garments, what makes them match, and the files of a data set of them."""

from sane_jax.datasets.outfits_drawn.release import check_numbers, draw_outfits, read_truth

__all__ = ["check_numbers", "draw_outfits", "read_truth"]
