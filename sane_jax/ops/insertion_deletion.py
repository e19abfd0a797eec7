"""Insertion and deletion of pixels (Petsiuk et al., BMVC 2018)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

NUM_THRESHOLDS = 101  # 0, 0.01, ..., 1 of the pixels
KINDS = ("insertion", "deletion")


class Perturbed(NamedTuple):
  """Images with their pixels ranked, and what stands in for a deleted pixel."""

  images: Float[Array, "b h w 3"]
  ranks: Int[Array, "b h w"]
  backgrounds: Float[Array, "b h w 3"]


def pixel_ranks(saliency: Float[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
  """0 for the most salient pixel, up to h·w − 1; ties in reading order."""
  order = np.argsort(-np.asarray(saliency).ravel(), kind="stable")
  ranks = np.empty(order.size, np.int32)
  ranks[order] = np.arange(order.size)
  return ranks.reshape(np.shape(saliency))


class RenderThresholds(NamedTuple):
  """Renders image i: pair, kind and threshold are the digits of i in base (b, 2, 101)."""

  def __call__(self, perturbed: Perturbed, indices: Int[Array, " n"]):
    def one(index):
      pair, rest = index // (2 * NUM_THRESHOLDS), index % (2 * NUM_THRESHOLDS)
      deletion, step = rest // NUM_THRESHOLDS, rest % NUM_THRESHOLDS
      pixels = perturbed.ranks.shape[1] * perturbed.ranks.shape[2]
      top = perturbed.ranks[pair] * (NUM_THRESHOLDS - 1) < step * pixels
      shown = jnp.where(deletion == 1, ~top, top)
      image = jnp.where(shown[..., None], perturbed.images[pair], perturbed.backgrounds[pair])
      return image, pair

    return jax.vmap(one)(indices)


class StoreOutputs(NamedTuple):
  """Keeps what the model gave for each image, in order."""

  def __call__(self, args, total, outputs, features, indices):
    return jax.lax.dynamic_update_slice(total, outputs, (indices[0], 0))


class Curves(NamedTuple):
  """Raw scores after each threshold, one row a pair."""

  insertion: Float[np.ndarray, "b t"]
  deletion: Float[np.ndarray, "b t"]


def normalize_curves(curves: Float[np.ndarray, "b t"]) -> Float[np.ndarray, "b t"]:
  """Each pair's curve moved and scaled to [0, 1]; a constant curve, which says nothing, to 1/2."""
  low, high = curves.min(axis=1, keepdims=True), curves.max(axis=1, keepdims=True)
  flat = high - low < 1e-9
  return np.where(flat, 0.5, (curves - low) / np.where(flat, 1, high - low))


def area(curves: Float[np.ndarray, "b t"]) -> Float[np.ndarray, " b"]:
  """Area under each curve over [0, 1] by the trapezoidal rule, × 100."""
  return 100 * (curves[:, :-1] + curves[:, 1:]).mean(axis=1) / 2


def areas(curves: Curves) -> dict[str, Float[np.ndarray, " b"]]:
  """Insertion and deletion AUC (× 100) of each pair, min-max normalised per pair and curve.

  Their mean over pairs is the AUC of the mean curve, for the area is linear in the curve.
  Insertion: higher is better. Deletion: lower is better.
  """
  return {kind: area(normalize_curves(getattr(curves, kind))) for kind in KINDS}
