"""What an attribute does to a score: insertion and deletion of attributes by representative images.

An image can't have an attribute taken away, but there are images like it that lack it. With q₋ the
images most like q that lack attribute a, and q₊ those most like q that have it (never q itself):

    deletion(q, r, a)  = s(q, r) − mean s(q₋, r)
    insertion(q, r, a) = mean s(q₊, r) − mean s(q₋, r)

where q has a, and 0 where it does not: what a query lacks is no reason for its match, however much
having it would move the score.

Likeness is in attributes: the number of other attributes in which two images differ, then the
distance of the attribute model's confidences. Higher is better for both: the attribute that is
named moves the score. Images are of one type: a shoe stands in for no top. Insertion compares
images of which none was matched, so it is free of what else made q match.

Plummer et al., Why do These Match?, ECCV 2020, section 4.
"""

import numpy as np

from sane_jax.attributes.pairs import PairTerms


def presence_thresholds(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Score above which an image counts as having each attribute without being annotated [a].

  The median score of the images that are annotated with it, as in the paper's released code; but
  no lower than where half of the images above it are annotated: a weak model's medians alone would
  call most images of rare attributes wrongly present. Infinite where there is no such score.

  Args:
    scores: [n a] of images with annotations.
    labels: bool [n a].
  """
  out = np.full(scores.shape[1], np.inf)
  for a in np.flatnonzero(labels.any(axis=0)):
    order = np.argsort(-scores[:, a], kind="stable")
    precision = np.cumsum(labels[order, a]) / np.arange(1, len(order) + 1)
    enough = np.flatnonzero(precision >= 0.5)
    if len(enough):
      out[a] = max(np.median(scores[labels[:, a], a]), scores[order[enough[-1]], a])
  return out


def presence(labels: np.ndarray, scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
  """Which images have which attributes, bool [n a], where annotations may be missing.

  An image has those it is annotated with, and those that it scores above `presence_thresholds`.
  """
  return np.asarray(labels, bool) | (scores > thresholds)


def representatives(
  row: int, attribute: int, *, has: bool, present: np.ndarray, confidence: np.ndarray,
  types: np.ndarray, count: int,
) -> np.ndarray:  # fmt: skip
  """Rows of the `count` images most like `row` with (or without) an attribute, best first.

  Fewer where there are fewer; never `row` itself.

  Args:
    present: bool [n a].
    confidence: [n a], each row's sum is 1.
    types: [n]; only images of the row's type are taken.
  """
  pool = np.flatnonzero((types == types[row]) & (present[:, attribute] == has))
  pool = pool[pool != row]
  differ = (present[pool] != present[row]).sum(axis=1)
  differ -= present[pool, attribute] != present[row, attribute]
  # A distance of two rows that each sum to 1 is below √2: it decides ties alone.
  apart = np.linalg.norm(confidence[pool] - confidence[row], axis=1)
  return pool[np.lexsort((apart, differ))[:count]]


def measure(
  pairs: np.ndarray, attributes: np.ndarray, terms: PairTerms, present: np.ndarray,
  kinds: np.ndarray, *, count: int = 3,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
  """Deletion and insertion [m] of attribute attributes[i] in pair pairs[i].

  NaN where no image of the query's type has, or none lacks, the attribute.

  Args:
    pairs: indices into `terms` [m].
    attributes: [m].
    present: bool [n a], of all rows.
    kinds: type of each row [n]; `terms.slots` may hold less, where the model has one space.
    count: representatives that scores are averaged over.
  """
  kept: dict[tuple[int, int, bool], np.ndarray] = {}

  def like(row: int, attribute: int, has: bool) -> np.ndarray:
    key = (row, attribute, has)
    if key not in kept:
      kept[key] = representatives(
        row, attribute, has=has, present=present, confidence=terms.confidence, types=kinds,
        count=count,
      )  # fmt: skip
    return kept[key]

  deletion, insertion = np.full((2, len(pairs)), np.nan)
  for index, (pair, attribute) in enumerate(zip(pairs, attributes, strict=True)):
    query, reference = int(terms.queries[pair]), int(terms.references[pair])
    if not present[query, attribute]:
      deletion[index] = insertion[index] = 0.0
      continue
    without, having = (like(query, int(attribute), has)[:count] for has in (False, True))
    # The reference itself would have score 1: no stand-in for the query.
    without, having = without[without != reference], having[having != reference]
    if not len(without) or not len(having):
      continue
    low = terms.score(without, np.full_like(without, reference)).mean()
    high = terms.score(having, np.full_like(having, reference)).mean()
    insertion[index] = high - low
    deletion[index] = terms.scores[pair] - low
  return deletion, insertion
