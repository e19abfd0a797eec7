"""Learned masks: meaningful perturbation (Fong and Vedaldi, ICCV 2017, arXiv 1704.03296).

The one generator that follows gradients; it needs a model that JAX can differentiate.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from sane_jax.ops import effects, programs


@dataclasses.dataclass(frozen=True)
class LearnedMask:
  """A mask m that hides as little as it can and lowers the score as far as it can.

      min_m  s(m·q + (1 − m)·blur(q) + noise) + l1·mean|1 − m| + tv·TV₃(m),   m in [0, 1]

  with TV₃ the mean cubed difference of neighbours down plus that across, by Adam from m = 1.
  The saliency map is 1 − m: in [0, 1], zero both where nothing matters and where the image
  lowers the score. It is optimised, not sampled, so it has no standard error.

  Attributes:
    cells: the mask is cells x cells, enlarged bilinearly.
    blur: side of the median filter, in pixels.
    noise: standard deviation of the noise drawn anew each step, for pixels in [0, 1]. 0.045 is
      0.2 in units of ImageNet's channel deviations, in which the authors' code adds it.
  """

  cells: int = 8
  blur: int = 11
  noise: float = 0.045
  learning_rate: float = 0.1
  num_steps: int = 500
  l1: float = 0.01
  tv: float = 0.2
  default_fill: ClassVar[str] = "median"


class Problem(NamedTuple):
  """Pairs to learn masks for; `both` masks the references too."""

  keys: PRNGKeyArray  # one a pair: [b]
  queries: Float[Array, "b h w 3"]
  query_fills: Float[Array, "b h w 3"]
  references: Float[Array, "b h w 3"]
  reference_fills: Float[Array, "b h w 3"]
  targets: Float[Array, "b d"]  # unit embeddings of the whole references


class State(NamedTuple):
  """Masks [b sides cells cells], the optimiser's state, steps done."""

  masks: Float[Array, "b sides m m"]
  optimizer: Any
  step: Int[Array, ""]


def start(settings: LearnedMask, pairs: int, *, both: bool) -> State:
  """All masks at one. With `both` there are two sides: query and reference."""
  masks = jnp.ones((pairs, 1 + both, settings.cells, settings.cells))
  return State(masks, optax.adam(settings.learning_rate).init(masks), jnp.int32(0))


def enlarge(masks: Float[Array, "... m m"], shape: tuple[int, ...]) -> Float[Array, "... h w"]:
  """Masks interpolated bilinearly to `shape`."""
  return jax.image.resize(masks, (*masks.shape[:-2], *shape), "linear")


def _total_variation(mask):
  """Σ over the two axes of the mean cubed difference of neighbours."""
  down, across = jnp.diff(mask, axis=-2), jnp.diff(mask, axis=-1)
  return (jnp.abs(down) ** 3).mean() + (jnp.abs(across) ** 3).mean()


def _optimize(
  embed: Callable[..., Any], params: Any, settings: LearnedMask, problem: Problem, state: State,
  num_steps: Int[Array, ""], *, both: bool,
) -> State:  # fmt: skip
  """`num_steps` further steps for every pair at once; each pair's result is its own affair."""
  shape = problem.queries.shape[1:3]
  optimizer = optax.adam(settings.learning_rate)

  def masked(key, mask, images, fills):
    blended = jax.vmap(effects.blend)(enlarge(mask, shape), images, fills)
    noise = jax.vmap(lambda k: jax.random.normal(k, images.shape[1:]))(key)
    return effects.normalize(embed(params, blended + settings.noise * noise))

  def loss(masks, step):
    keys = jax.vmap(lambda k: jax.random.split(jax.random.fold_in(k, step)))(problem.keys)
    query = masked(keys[:, 0], masks[:, 0], problem.queries, problem.query_fills)
    target = problem.targets
    if both:
      target = masked(keys[:, 1], masks[:, 1], problem.references, problem.reference_fills)
    # One mask over both images side by side: its regularisers see the two halves as one.
    joined = jnp.concatenate(list(jnp.moveaxis(masks, 1, 0)), axis=-1)
    size = jnp.abs(1 - joined).mean(axis=(-2, -1))
    variation = jax.vmap(_total_variation)(joined)
    # A sum over pairs: the gradient of one pair's mask depends on that pair alone.
    score = (query * target).sum(axis=-1)
    return (score + settings.l1 * size + settings.tv * variation).sum()

  def body(_, state):
    gradient = jax.grad(loss)(state.masks, state.step)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer)
    masks = jnp.clip(jnp.asarray(optax.apply_updates(state.masks, updates)), 0, 1)
    return State(masks, optimizer_state, state.step + 1)

  return jax.lax.fori_loop(0, num_steps, body, state)


optimize = programs.jit_for_each(
  _optimize, static_argnames=("settings", "both"), donate_argnames="state"
)
