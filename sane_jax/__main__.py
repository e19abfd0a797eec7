"""`python -m sane_jax`: the same as `python -m sane_jax.main`."""

from sane_jax.main import run

run()
