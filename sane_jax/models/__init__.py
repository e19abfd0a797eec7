"""Similarity models: real ones, and how any other is brought in."""
