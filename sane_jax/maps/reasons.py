"""Attributes that explain a pair, ranked, with all that the ranking rests on."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sane_jax.models import fingerprint
from sane_jax.models.model import Model
from sane_jax.ops import ranking, resampling

# --- one pair -------------------------------------------------------------------------------------


class RankedAttribute(NamedTuple):
  """One attribute as the reason why a pair matches.

  Attributes:
    name: of the attribute.
    total: by which attributes are ranked.
    terms: those of `ranking.TERMS`, in their own units.
    shares: what each contributes; they sum to `total`.
    map: activation map over the query's pixels [h w], positive.
    direction: the attribute's concept in the model's embeddings [d], of length 1; 0 where there is
      none: the normal of a classifier, along which the sensitivity is measured.
    pattern: how embeddings with it differ from those without [d], of length 1, or 0; None where it
      is not known.
  """

  name: str
  total: float
  terms: dict[str, float]
  shares: dict[str, float]
  map: np.ndarray
  direction: np.ndarray
  pattern: np.ndarray | None = None


class Attributes(NamedTuple):
  """What explains a pair in words.

  Attributes:
    ranked: best first.
    margin: total of the first less that of the second.
    joint: the few attributes whose maps together explain the saliency map, the first ranked among
      them; indices into `ranked`. Its shares are squared cosines.
    under: for each of those the share of the map's positive mass that it adds to what lies under
      them, and that of an even map [k 2], see `ranking.mass_under`.
    against: the attribute whose map fits best what speaks against the match; None where nothing
      does.
    against_share: the part of the map's mass that speaks against the match.
    sentence: says what was measured.
  """

  ranked: tuple[RankedAttribute, ...]
  margin: float
  joint: ranking.Joint
  under: np.ndarray
  against: str | None
  against_share: float
  sentence: str


# (query [h w 3] in [0, 1], saliency map of its cells [rows columns], unit embeddings of query and
# reference, None where the model gives scores alone) -> what explains the pair.
Ranker = Callable[[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray] | None], Attributes]


@dataclasses.dataclass(frozen=True)
class RankerOf:
  """A ranker whose concepts are directions in one model's embeddings, and mean nothing in others'.

  Attributes:
    rank: the ranker.
    model: whose embeddings they are.
    image_size: (height, width) of what that model was given.
  """

  rank: Ranker
  model: fingerprint.Fingerprint
  image_size: tuple[int, int]

  def __call__(
    self, image: np.ndarray, saliency: np.ndarray, embeddings: tuple[np.ndarray, np.ndarray] | None
  ) -> Attributes:
    return self.rank(image, saliency, embeddings)


def check_model(ranker: Any, model: Model, params: Any) -> None:
  """Raises ValueError where a ranker's concepts are known to be of another model's embeddings.

  Args:
    ranker: any.
    model: that is explained, with its parameters on a device.
  """
  if not isinstance(ranker, RankerOf):
    return
  same_size = dataclasses.replace(model, image_size=ranker.image_size)
  moved = fingerprint.distance(ranker.model.given, fingerprint.what_it_gives(same_size, params))
  if moved > CONCEPTS:
    raise ValueError(
      f"the attributes are of the model {ranker.model.name}, and {model.name} is another or has"
      f" other weights: its embedding of a test picture is {moved:.2g} away. Load the model that"
      " the run explained, or run its jobs again from --config.job=build_index"
    )


# Image [h w 3] in [0, 1] -> confidence [a] and activation maps [i j a], not negative.
Predictor = Callable[[Any], tuple[np.ndarray, np.ndarray]]

# How far a test picture's embedding may be from what it was, on other devices or in bfloat16.
CONCEPTS = 0.05
MOST = 3  # attributes that a sentence names
CANDIDATES = 6  # of the first ranked, from which those are chosen
LITTLE = 0.1  # share of the map, beyond an even map's, below which an attribute does not explain it
AGAINST = 0.25  # share of the map's mass that is worth a sentence


def make_ranker(
  names: Sequence[str], predict: Predictor, concepts: tuple[np.ndarray, np.ndarray],
  phi: Sequence[float], calibration: ranking.Calibration, thresholds: np.ndarray | None = None,
  patterns: np.ndarray | None = None,
) -> Ranker:  # fmt: skip
  """Ranks attributes by what is known of them.

  Args:
    names: of the attributes.
    predict: what an attribute model says of an image, see `reader.make_predictor`.
    concepts: TCAV score of each attribute [a] in the pair's space, and its direction [a d].
    phi: weights of the terms.
    calibration: of the terms.
    thresholds: confidence [a] from which an image counts as having an attribute. Beside the first
      ranked, only what the query has may explain its map jointly; all may where this is None.
    patterns: [a d], for `attribute_regions`; see `ops.concepts.patterns`.

  Raises:
    ValueError: phi is not on the simplex.
  """
  ranking.check_weights(phi, len(ranking.TERMS))
  prior, vectors = concepts

  def ranker(
    image: np.ndarray, saliency: np.ndarray, embeddings: tuple[np.ndarray, np.ndarray] | None
  ) -> Attributes:
    confidence, maps = predict(image)
    saliency = np.nan_to_num(saliency)
    terms = terms_of(confidence, maps, saliency, prior, vectors, embeddings)
    order, shares = rank(terms, phi, calibration)
    totals = shares.sum(axis=0)
    large = resampling.enlarge(np.moveaxis(maps, -1, 0), image.shape[:2])
    ranked = tuple(
      RankedAttribute(
        str(names[a]), float(totals[a]),
        dict(zip(ranking.TERMS, (float(term[a]) for term in terms), strict=True)),
        dict(zip(ranking.TERMS, map(float, shares[:, a]), strict=True)), large[a], vectors[a],
        None if patterns is None else patterns[a],
      )
      for a in order
    )  # fmt: skip
    at_cells = np.asarray(
      jax.image.resize(maps[..., order], (*saliency.shape, len(order)), "linear")
    )
    has = None if thresholds is None else (confidence > thresholds)[order]
    together = joint(saliency, at_cells, has)
    against, share = opponent(saliency, maps, confidence, order)
    margin = float(totals[order[0]] - totals[order[1]]) if len(order) > 1 else float("nan")
    name = None if against is None else names[against]
    under = np.stack(ranking.mass_under(saliency, at_cells[..., list(together.chosen)]), axis=1)
    text = sentence(
      [r.name for r in ranked], at_cells, saliency, together.chosen, under, name, share
    )
    return Attributes(ranked, margin, together, under, name, share, text)

  return ranker


def terms_of(
  confidence: np.ndarray, maps: np.ndarray, saliency: np.ndarray, prior: np.ndarray,
  vectors: np.ndarray, embeddings: tuple[np.ndarray, np.ndarray] | None,
) -> ranking.Terms:  # fmt: skip
  """A pair's terms, each [a].

  Args:
    confidence: [a].
    maps: activation maps [i j a].
    saliency: [rows columns], signed; its positive part is what attributes fit.
    prior: [a].
    vectors: directions of the concepts [a d].
    embeddings: of query and reference [d]; without any the sensitivity is 0.
  """
  fit = _fit(saliency, maps)
  sensitivity = np.zeros_like(fit)
  if embeddings is not None:
    sensitivity = ranking.sensitivities(vectors, *embeddings)
  return ranking.Terms(confidence, fit, prior, np.asarray(sensitivity))


def rank(
  terms: ranking.Terms, phi: Sequence[float], calibration: ranking.Calibration
) -> tuple[np.ndarray, np.ndarray]:
  """Attributes best first [a], and what each term contributes to their totals, φ_i z_i [4 a]."""
  scores = ranking.normal_scores(np.stack(terms)[:, None], calibration)[:, 0]
  shares = np.asarray(phi, np.float64)[:, None] * scores
  return np.argsort(-shares.sum(axis=0), kind="stable"), shares


def joint(saliency: np.ndarray, maps: np.ndarray, has: np.ndarray | None) -> ranking.Joint:
  """The attributes that explain a saliency map together, the first ranked among them.

  Args:
    saliency: [rows columns].
    maps: activation maps at the same cells [rows columns a], best first.
    has: bool [a], which of them may stand beside the first; all where this is None.
  """
  candidates = np.arange(min(CANDIDATES, maps.shape[-1]))
  if has is not None:
    candidates = candidates[(candidates == 0) | has[candidates]]
  return ranking.explain_jointly(saliency, maps, most=MOST, first=0, candidates=candidates)


def opponent(
  saliency: np.ndarray, maps: np.ndarray, confidence: np.ndarray, order: np.ndarray
) -> tuple[int | None, float]:
  """The attribute whose map fits best what speaks against the match, and its share of the mass.

  None and 0 where nothing does. Of the first ranked, those count that the query most likely has.

  Args:
    saliency: [rows columns]; its negative part speaks against the match.
    maps: activation maps [i j a].
    confidence: [a].
    order: attributes best first [a].
  """
  mass = np.abs(saliency).sum()
  share = float(np.maximum(-saliency, 0).sum() / mass) if mass > 0 else 0.0
  if share == 0:
    return None, 0.0
  likely = order[: 4 * CANDIDATES]
  likely = likely[np.argsort(-confidence[likely], kind="stable")][:CANDIDATES]
  return int(likely[_fit(-saliency, maps)[likely].argmax()]), share


def _fit(saliency: np.ndarray, maps: np.ndarray) -> np.ndarray:
  """Cosine of a map's positive part with each activation map [a]."""
  return np.asarray(ranking.map_fit(jnp.asarray(np.maximum(saliency, 0)), jnp.asarray(maps)))


def sentence(
  names: list[str], maps: np.ndarray, saliency: np.ndarray, chosen: Sequence[int],
  under: np.ndarray, against: str | None, against_share: float,
) -> str:  # fmt: skip
  """What was measured of a pair, in words.

  Shares are of the map's positive mass: what lies under the first, and what each further one adds,
  beside what an even map has there (`ranking.mass_under`).

  Args:
    names: of attributes, best first.
    maps: their activation maps at the cells [rows columns a].
    saliency: [rows columns].
    chosen: attributes that explain it together.
    under: their shares, and an even map's [k 2].
    against: what fits the negative part best.
    against_share: its share of the mass.
  """
  if not len(chosen):
    return (
      f"“{names[0]}” is ranked first, but no region raises the score: the map has nothing that an"
      " attribute could explain."
    )
  shares = dict(zip(chosen, under.tolist(), strict=True))
  first, even = shares.pop(0, (0.0, 0.0))

  def told(a: int, share: float, even: float, of: str) -> str:
    at = place(maps[..., a] * np.maximum(saliency, 0))
    return f"({_percent(share)} {of}, {at}; of an even map {_percent(even)})"

  of = "of what speaks for the match"
  others = [f"“{names[a]}” {told(a, s, even, 'more')}" for a, (s, even) in shares.items()]
  if first - even >= LITTLE:
    how = "mainly on" if first >= 0.5 else "in part on"
    parts = [f"These match {how} “{names[0]}” {told(0, first, even, of)}"]
    if others:
      link = "then" if max(share for share, _ in shares.values()) <= first else "and more on"
      parts.append(f", {link} {' and '.join(others)}")
  else:
    parts = [
      f"“{names[0]}” is ranked first, though the map lies on it hardly more than an even one would"
      f" {told(0, first, even, of)}"
    ]
    if others:
      parts.append(f"; more of it lies on {' and '.join(others)}")
  left = 1 - float(under[:, 0].sum())
  parts.append(f"; the other {_percent(left)} lie on none of these." if left > 0.005 else ".")
  if against is not None and against_share >= AGAINST:
    parts.append(
      f" {_percent(against_share)} of the map speaks against the match, most like “{against}”."
    )
  return "".join(parts)


def _percent(share: float) -> str:
  return f"{100 * share:.0f} %"


def place(weights: np.ndarray) -> str:
  """Where on the image a map [rows columns] has its mass: 'all over', 'at the upper left', ..."""
  weights = np.maximum(weights, 0)
  total = weights.sum()
  if total <= 0:
    return "nowhere in particular"
  rows, columns = (np.arange(n) + 0.5 for n in weights.shape)
  share = np.sort(weights.ravel() / total)[::-1]
  half = np.searchsorted(np.cumsum(share), 0.5) + 1  # cells that hold half of it
  if half > 0.3 * share.size:
    return "all over"
  y = float(weights.sum(axis=1) @ rows / total / weights.shape[0])
  x = float(weights.sum(axis=0) @ columns / total / weights.shape[1])
  vertical = "upper" if y < 0.4 else "lower" if y > 0.6 else ""
  horizontal = "left" if x < 0.4 else "right" if x > 0.6 else ""
  if vertical and horizontal:
    return f"at the {vertical} {horizontal}"
  if vertical:
    return "at the top" if vertical == "upper" else "at the bottom"
  return f"on the {horizontal}" if horizontal else "in the middle"
