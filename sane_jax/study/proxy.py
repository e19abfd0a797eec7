"""A user study without people: a PROXY, in which a small fixed student stands in for a person.

In the study a person sees two pairs of images, each with an explanation or none, and says which of
the two the model scores higher. Good explanations make that easier. The student sees the same: both
images of a pair by features that know no model (colours, edges and energy of 8 x 8 cells), where
the saliency map and the activation map point, and which attribute is named. It is a ridge
regression on the difference of two pairs, and the same under each condition: of a map that is not
shown it gets an even one. It learns from items of one half of the images and answers items of the
other: no image is in both.

Any map, a random one too, makes it look at the images once more, and that may help by itself. So
every explanation is also compared with a control: the explanations of other pairs.

What it finds hard a person may find easy, and the other way round. Its accuracy says whether an
explanation holds information about the score that such features can use, and nothing of people.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from sane_jax.ops import resampling, streams
from sane_jax.ops.statistics import Mean, mean

PIXELS = 32  # to which the student's images are averaged
CELLS = 8  # a side
MIN_ITEMS = 24  # in each half: fewer teach nothing
MIN_BLOCKS = 6  # of queries, in each half: intervals come from drawing them
_LEVELS = 3  # of each colour in a histogram
_CHUNK = 128  # images, or pairs, at a time
_FOLDS = 4
PENALTIES = 10.0 ** np.arange(-3, 1.5, 0.5)
_MAP_WEIGHTS = (0.0, 0.3, 1.0)
_NAME_WEIGHTS = (0.0, 1.0)
_NAME_SCALE = 3.0  # a name is one of many columns, most of them 0
_FAR = 4.0  # standard deviations beyond which a feature is cut


class Condition(NamedTuple):
  """What a subject is shown with a pair."""

  title: str
  map: bool  # the saliency map
  attribute: str  # key of Material.attributes; '' for none


CONDITIONS: Mapping[str, Condition] = {
  "nothing": Condition("nothing", False, ""),
  "map": Condition("saliency map", True, ""),
  "random": Condition("map + random attribute", True, "random"),
  "predicted": Condition("map + predicted attribute", True, "predicted"),
  "sane": Condition("map + SANE attribute", True, "sane"),
}
# Sources of the attribute that is named.
ATTRIBUTES = tuple(c.attribute for c in CONDITIONS.values() if c.attribute)


class Material(NamedTuple):
  """Explained pairs: p pairs of n images.

  Attributes:
    saliency: signed; only its shape counts, for a subject sees it relative to its largest value.
    attributes: which attribute is named, by key of `Condition.attribute`.
    activations: where the query shows it, at least 0, by the same keys.
  """

  images: np.ndarray  # [n s s 3] uint8
  queries: np.ndarray  # [p] into images
  references: np.ndarray  # [p]
  scores: np.ndarray  # [p]
  saliency: np.ndarray  # [p h w]
  attributes: Mapping[str, np.ndarray]  # [p] each
  activations: Mapping[str, np.ndarray]  # [p h2 w2] each
  attribute_names: tuple[str, ...]  # [a]


class Items(NamedTuple):
  """m questions: which of two pairs does the model score higher?"""

  pairs: np.ndarray  # [m 2] the left and the right one
  answers: np.ndarray  # [m] 0 the left, 1 the right
  halves: np.ndarray  # [m] 0 or 1; no image is in items of both
  blocks: np.ndarray  # [m] items that share a query are of one block
  min_gap: float  # between the two scores


class Weights(NamedTuple):
  """How much a student goes by the explanation, from 0 for not at all to 1 as by the images."""

  map_weight: float
  name_weight: float


class Result(NamedTuple):
  """What the student answered: a PROXY, see the module's text.

  Attributes:
    correct: 1 where the student was right, 0 where wrong, 1/2 where it could not tell.
    control: the same with explanations exchanged among pairs, in e ways drawn at random.
    weights: of the maps and the names to either half's student.
    balance: what `by_balance` has right [m]: how far the maps alone give the answer away.
  """

  items: Items
  correct: Mapping[str, np.ndarray]  # condition -> [m]
  control: Mapping[str, np.ndarray]  # condition with an explanation -> [e m]
  weights: Mapping[str, tuple[Weights, ...]]  # condition -> of each half
  balance: np.ndarray


# --- items ----------------------------------------------------------------------------------------


def draw_items(
  key: int,
  queries: np.ndarray,
  references: np.ndarray,
  scores: np.ndarray,
  *,
  num_items: int,
  min_gap: float,
  queries_per_block: int = 6,
) -> Items:
  """Draws questions whose answers are left and right equally often, in either half of the images.

  Images are parted into halves so that few pairs lie across them; those are left out. Queries of a
  half are parted into blocks, and the two pairs of an item are of one block: so blocks can be drawn
  as clusters. Pairs are used equally often, as far as it goes, and the four images of an item are
  four.

  Args:
    key: seed.
    queries: [p] rows of images.
    references: [p] rows of images.
    scores: [p]; pairs without a finite one are left out.
    num_items: wanted; there are fewer where the pairs do not give as many.
    min_gap: at least so far are the two scores apart, in the scores' unit.
    queries_per_block: more give more items of few pairs, and fewer clusters.

  Raises:
    ValueError: a setting out of range; too few pairs; no two scores so far apart.
  """
  if num_items < 2 * MIN_ITEMS:
    raise ValueError(f"--config.study.num_items is {2 * MIN_ITEMS} or more; given {num_items}")
  if not min_gap > 0:
    raise ValueError(f"--config.study.min_gap is above 0; given {min_gap:g}")
  if queries_per_block < 2:
    raise ValueError(f"queries_per_block is 2 or more; given {queries_per_block}")
  rng = streams.rng(key, streams.STUDY_ITEMS)
  usable = np.isfinite(scores) & (queries != references)
  if usable.any() and np.ptp(scores[usable]) < min_gap:
    raise ValueError(
      f"no two of {usable.sum()} pairs have scores that are {min_gap:.3g} apart, from"
      f" {scores[usable].min():.3g} to {scores[usable].max():.3g} as they are; lower"
      " --config.study.min_gap, or give the model more training with --config.job=train_similarity"
    )
  sides = halve_images(rng, queries[usable], references[usable])
  side = np.full(len(scores), -1)
  both = np.stack([queries[usable], references[usable]])
  of = np.vectorize(sides.__getitem__, otypes=[int])(both) if usable.any() else both
  side[usable] = np.where(of[0] == of[1], of[0], -1)

  found = []
  for half in (0, 1):
    pairs = np.flatnonzero(side == half)
    made = _couple(rng, pairs, queries, references, scores, num_items // 2, min_gap,
                   queries_per_block)  # fmt: skip
    found.append(made)
  count = min(len(couples) for couples, _ in found)
  clusters = min(len(np.unique(blocks)) for _, blocks in found)
  if count < MIN_ITEMS or clusters < MIN_BLOCKS:
    kept = [int((side == half).sum()) for half in (0, 1)]
    raise ValueError(
      f"too few pairs: {usable.sum()} pairs, of which {kept[0]} and {kept[1]} lie within either"
      f" half of the images, give {count} items a half whose scores are {min_gap:.3g} apart, in"
      f" {clusters} blocks of queries; {MIN_ITEMS} items in {MIN_BLOCKS} blocks are the least."
      " Raise --config.pairs.num_test and run --config.job=evaluate again, or lower"
      " --config.study.min_gap"
    )
  parts = []
  for half, (pairs, blocks) in enumerate(found):
    answers = rng.permutation(np.arange(len(pairs)) % 2)
    higher_first = np.argsort(-scores[pairs], axis=1)
    pairs = np.take_along_axis(pairs, higher_first, axis=1)
    pairs = np.where(answers[:, None] == 0, pairs, pairs[:, ::-1])
    parts.append((pairs, answers, np.full(len(pairs), half), blocks * 2 + half))
  pairs, answers, halves, blocks = (np.concatenate(part) for part in zip(*parts, strict=True))
  return Items(pairs, answers, halves, np.unique(blocks, return_inverse=True)[1], float(min_gap))


def halve_images(
  rng: np.random.Generator, queries: np.ndarray, references: np.ndarray, sweeps: int = 10
) -> dict[int, int]:
  """Half (0 or 1) of each image: from random ones, each moves to where most of its partners are.

  Either half keeps 45 % of the ends of pairs at least.
  """
  ids, ends = np.unique(np.concatenate([queries, references]), return_inverse=True)
  partners: list[list[int]] = [[] for _ in ids]
  for a, b in ends.reshape(2, -1).T:
    partners[a].append(b)
    partners[b].append(a)
  degree = np.bincount(ends, minlength=len(ids))
  side = rng.permutation(len(ids)) % 2
  weight = np.bincount(side, degree, minlength=2)
  for _ in range(sweeps):
    moved = 0
    for image in rng.permutation(len(ids)):
      away = 1 - side[image]
      pull = 2 * np.count_nonzero(side[partners[image]] == away) - degree[image]
      if pull > 0 and weight[away] + degree[image] <= 0.55 * weight.sum():
        weight[away] += degree[image]
        weight[1 - away] -= degree[image]
        side[image] = away
        moved += 1
    if not moved:
      break
  return dict(zip(ids.tolist(), side.tolist(), strict=True))


def _couple(
  rng: np.random.Generator,
  pairs: np.ndarray,
  queries: np.ndarray,
  references: np.ndarray,
  scores: np.ndarray,
  count: int,
  min_gap: float,
  queries_per_block: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Couples [m 2] of pairs of one block, at most `count`, and their blocks [m].

  Round after round, each of which uses a pair once at most, until there is no new couple.
  """
  order = rng.permutation(np.unique(queries[pairs]))
  block_of = {int(q): index // queries_per_block for index, q in enumerate(order)}
  members: dict[int, list[int]] = {}
  for pair in pairs:
    members.setdefault(block_of[int(queries[pair])], []).append(int(pair))

  def fits(a: int, b: int) -> bool:
    images = {int(rows[p]) for rows in (queries, references) for p in (a, b)}
    return len(images) == 4 and abs(scores[a] - scores[b]) >= min_gap

  made: dict[tuple[int, int], int] = {}
  while len(made) < count:
    new = []
    for block, inside in members.items():
      free = rng.permutation(inside).tolist()
      while free:
        a = free.pop()
        for b in free:
          couple = (min(a, b), max(a, b))
          if couple not in made and fits(a, b):
            new.append((couple, block))
            free.remove(b)
            break
    if not new:
      break
    # The last round is cut at random, not after some blocks.
    made.update(new[index] for index in rng.permutation(len(new)))
  couples = np.array(list(made), int).reshape(-1, 2)[:count]
  return couples, np.array(list(made.values()), int)[:count]


# --- what the student sees ------------------------------------------------------------------------


class Sight(NamedTuple):
  """Images by cell, c of them."""

  histogram: np.ndarray  # [n c 27] shares of soft colour bins
  color: np.ndarray  # [n c 3] brightness, and two differences of colours
  edges: np.ndarray  # [n c 4] energy across, down and on both diagonals
  figure: np.ndarray  # [n c] sums to 1: more where a cell differs from the image's border


def look(images: np.ndarray) -> Sight:
  """Features of images [n s s 3] uint8 that know no model."""
  parts = [_look(images[i : i + _CHUNK]) for i in range(0, len(images), _CHUNK)]
  return Sight(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _look(images: np.ndarray) -> Sight:
  small = _average(images.astype(np.float32) / 255, PIXELS)
  histogram = np.ones((*small.shape[:3], 1), np.float32)
  for channel in range(3):
    # Weights of the nearest two levels, which sum to 1.
    at = small[..., channel, None] * (_LEVELS - 1)
    soft = np.maximum(1 - np.abs(at - np.arange(_LEVELS)), 0)
    histogram = (histogram[..., :, None] * soft[..., None, :]).reshape(*small.shape[:3], -1)
  red, green, blue = np.moveaxis(small, -1, 0)
  grey = (red + green + blue) / 3
  color = np.stack([grey, red - green, (red + green) / 2 - blue], axis=-1)
  padded = np.pad(grey, ((0, 0), (1, 1), (1, 1)), mode="edge")
  middle = slice(1, -1)
  edges = np.stack([
    np.abs(padded[:, middle, 2:] - padded[:, middle, :-2]),
    np.abs(padded[:, 2:, middle] - padded[:, :-2, middle]),
    np.abs(padded[:, 2:, 2:] - padded[:, :-2, :-2]),
    np.abs(padded[:, 2:, :-2] - padded[:, :-2, 2:]),
  ], axis=-1)  # fmt: skip
  border = np.concatenate(
    [color[:, 0], color[:, -1], color[:, 1:-1, 0], color[:, 1:-1, -1]], axis=1
  )
  ground = np.median(border, axis=1)[:, None, None]
  figure = np.linalg.norm(color - ground, axis=-1) + 0.02
  cells = [_cells(_average(x, CELLS)) for x in (histogram, color, edges)]
  weight = _cells(_average(figure[..., None], CELLS))[..., 0]
  return Sight(cells[0], cells[1], cells[2], weight / weight.sum(axis=1, keepdims=True))


def _average(images: np.ndarray, size: int) -> np.ndarray:
  """Images [n h w k] averaged over areas to [n size size k]."""
  new = np.linspace(0, 1, size + 1)
  rows, columns = (
    (size * resampling.overlaps(new, np.linspace(0, 1, length + 1))).astype(np.float32)
    for length in images.shape[1:3]
  )
  return np.einsum("ih,nhwk,jw->nijk", rows, images, columns, optimize=True)


def _cells(images: np.ndarray) -> np.ndarray:
  return images.reshape(len(images), CELLS * CELLS, -1)


class Match(NamedTuple):
  """Distances of a query's cells to a reference's, for p pairs."""

  best: np.ndarray  # [p c] to the nearest cell
  same: np.ndarray  # [p c] to the one in the same place


def match_cells(sight: Sight, queries: np.ndarray, references: np.ndarray) -> Match:
  """Colours and edges of every cell of the query against every cell of the reference."""
  cells = np.concatenate([sight.color, 2 * sight.edges], axis=-1)
  best, same = [], []
  for start in range(0, len(queries), _CHUNK):
    q, r = (cells[rows[start : start + _CHUNK]] for rows in (queries, references))
    squared = (q**2).sum(-1)[:, :, None] + (r**2).sum(-1)[:, None] - 2 * q @ r.transpose(0, 2, 1)
    best.append(np.sqrt(np.maximum(squared.min(axis=2), 0)))
    same.append(np.linalg.norm(q - r, axis=-1))
  return Match(np.concatenate(best), np.concatenate(same))


def _compare(
  sight: Sight, match: Match, queries: np.ndarray, references: np.ndarray, weights: np.ndarray
) -> np.ndarray:
  """How alike the pairs are where the weights [p c] are on the query [p 10], and what is there."""
  total = weights.sum(axis=1, keepdims=True)
  weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)

  def seen(cells: np.ndarray, rows: np.ndarray, by: np.ndarray) -> np.ndarray:
    parts = [
      (by[i : i + _CHUNK, None] @ cells[rows[i : i + _CHUNK]])[:, 0]
      for i in range(0, len(rows), _CHUNK)
    ]
    return np.concatenate(parts)

  figure = sight.figure[references]
  q = [seen(x, queries, weights) for x in (sight.histogram, sight.color, sight.edges)]
  r = [seen(x, references, figure) for x in (sight.histogram, sight.color, sight.edges)]
  lengths = np.linalg.norm(q[2], axis=1) * np.linalg.norm(r[2], axis=1)
  return np.column_stack([
    np.minimum(q[0], r[0]).sum(axis=1),
    np.linalg.norm(q[1] - r[1], axis=1),
    (q[2] * r[2]).sum(axis=1) / np.maximum(lengths, 1e-6),
    np.abs(q[2].sum(axis=1) - r[2].sum(axis=1)),
    (weights * match.best).sum(axis=1),
    (weights * match.same).sum(axis=1),
    q[1],
    q[2].sum(axis=1),
  ])  # fmt: skip


def _to_cells(maps: np.ndarray) -> np.ndarray:
  """Maps [p h w] as [p c], relative to each one's largest magnitude; 0 for what is unknown."""
  maps = np.nan_to_num(np.asarray(maps, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
  largest = np.abs(maps).max(axis=(1, 2), keepdims=True)
  maps = np.divide(maps, largest, out=np.zeros_like(maps), where=largest > 0)
  return _cells(_average(maps[..., None], CELLS))[..., 0]


def _concentration(weights: np.ndarray) -> np.ndarray:
  """Σ w² / (Σ w)² [p]: from 1 / c for an even map to 1 for a single cell; 0 for an empty one."""
  total = weights.sum(axis=1) ** 2
  return np.divide((weights**2).sum(axis=1), total, out=np.zeros_like(total), where=total > 0)


class Features(NamedTuple):
  """What the student knows of p pairs, in three parts that weigh more or less."""

  base: np.ndarray  # [p f1] of the images
  explanation: np.ndarray  # [p f2] of the maps; of even ones where none is shown
  name: np.ndarray  # [p a] which attribute is named; 0 where none is


class Eyes:
  """What is seen of pairs under any condition; what does not depend on it is worked out once."""

  def __init__(self, sight: Sight, material: Material):
    q, r = material.queries, material.references
    self._sight, self._material, self._match = sight, material, match_cells(sight, q, r)
    self._even = np.ones_like(sight.figure[q])
    self._base = np.hstack(
      [
        self._compare(sight.figure[q]),
        self._compare(self._even),
        (sight.figure[r][:, None] @ sight.color[r])[:, 0],
        (sight.figure[r] * sight.edges[r].sum(axis=2)).sum(axis=1, keepdims=True),
      ]
    )

  def see(self, condition: Condition, own: np.ndarray) -> Features:
    """Features of all pairs; the explanation is that of pair own[i] in place of pair i's."""
    material = self._material
    pairs, names = len(material.queries), len(material.attribute_names)
    # What is not shown is an even map, not a missing one: any weighing of the cells, a random one
    # too, looks at the images once more, and that alone must not count as an explanation.
    raises, lowers, activation = self._even, self._even, self._even
    balance = np.zeros(pairs)
    name = np.zeros((pairs, names), np.float32)
    if condition.map:
      signed = _to_cells(material.saliency[own])
      raises, lowers = np.maximum(signed, 0), np.maximum(-signed, 0)
      magnitude = np.abs(signed).sum(axis=1)
      balance = np.divide(signed.sum(axis=1), magnitude, out=balance, where=magnitude > 0)
    if condition.attribute:
      activation = np.maximum(_to_cells(material.activations[condition.attribute][own]), 0)
      name[np.arange(pairs), material.attributes[condition.attribute][own]] = 1
    lengths = np.linalg.norm(raises, axis=1) * np.linalg.norm(activation, axis=1)
    overlap = (raises * activation).sum(axis=1) / np.maximum(lengths, 1e-12)
    explanation = np.hstack(
      [
        *(self._compare(weights) for weights in (raises, lowers, activation)),
        *(_concentration(weights)[:, None] for weights in (raises, lowers, activation)),
        balance[:, None],
        overlap[:, None],
      ]
    )
    return Features(self._base, explanation, name)

  def _compare(self, weights: np.ndarray) -> np.ndarray:
    rows = self._material.queries, self._material.references
    return _compare(self._sight, self._match, *rows, weights)


# --- the student ----------------------------------------------------------------------------------


class Student(NamedTuple):
  weights: np.ndarray  # [f] of features in their own units
  cut: np.ndarray  # [f] magnitude at which differences are cut; inf: not cut
  chosen: Weights


def teach(
  features: Features, pairs: np.ndarray, answers: np.ndarray, blocks: np.ndarray
) -> Student:
  """The student that these items make.

  Least squares on ±1 with a ridge, without intercept, so that left and right are alike. The ridge,
  and the weights of the explanation and the name, are chosen by cross-validation over blocks.
  """
  # By hand: RidgeCV's penalty does not grow with a fold's rows, and other choices would come out.
  x, parts = _differences(features, pairs)
  spread = np.sqrt((x**2).mean(axis=0))
  spread[parts == 2] = 0.0  # names keep their unit: most are rare
  cut = np.where(spread > 0, _FAR * spread, np.inf)
  x = np.clip(x, -cut, cut)
  unit = np.where(parts == 2, _NAME_SCALE, 1 / np.where(spread > 0, spread, 1.0))
  x = x * unit
  y = 1.0 - 2.0 * answers
  folds = np.unique(blocks, return_inverse=True)[1] % _FOLDS
  grams = [x[folds == f].T @ x[folds == f] for f in range(_FOLDS)]
  moments = [x[folds == f].T @ y[folds == f] for f in range(_FOLDS)]
  gram, moment = np.sum(grams, axis=0), np.sum(moments, axis=0)

  def solve(a: np.ndarray, b: np.ndarray, scale: np.ndarray, count: int) -> np.ndarray:
    """Weights [f penalties]."""
    values, vectors = np.linalg.eigh(a * np.outer(scale, scale))
    inverse = 1 / (np.maximum(values, 0)[:, None] + count * PENALTIES)
    return scale[:, None] * (vectors @ (inverse * (vectors.T @ (scale * b))[:, None]))

  losses = {}
  for chosen in itertools.starmap(Weights, itertools.product(
    *(options if np.any(x[:, parts == part]) else (0.0,)
      for part, options in ((1, _MAP_WEIGHTS), (2, _NAME_WEIGHTS)))
  )):  # fmt: skip
    scale = np.array([1.0, *chosen])[parts]
    loss = np.zeros(len(PENALTIES))
    for f in range(_FOLDS):
      inside = folds == f
      found = solve(gram - grams[f], moment - moments[f], scale, int((~inside).sum()))
      loss += ((y[inside, None] - x[inside] @ found) ** 2).sum(axis=0)
    losses[chosen] = loss
  chosen = min(losses, key=lambda one: losses[one].min())
  weights = solve(gram, moment, np.array([1.0, *chosen])[parts], len(y))
  return Student(weights[:, losses[chosen].argmin()] * unit, cut, chosen)


def _differences(features: Features, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Left less right [m f], and which part each column is of [f]."""
  x = np.hstack([part[pairs[:, 0]] - part[pairs[:, 1]] for part in features]).astype(np.float64)
  return x, np.repeat(np.arange(3), [part.shape[1] for part in features])


def _answer(student: Student, features: Features, pairs: np.ndarray) -> np.ndarray:
  """For the left above 0, for the right below [m]."""
  x, _ = _differences(features, pairs)
  return np.clip(x, -student.cut, student.cut) @ student.weights


def simulate(
  key: int,
  material: Material,
  items: Items,
  *,
  exchanges: int = 19,
  on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Result:
  """Lets the student answer all items under every condition: a PROXY, see the module's text.

  Each half's items are answered by the student that learned from the other half's. The student has
  the same inputs, ridges and choices under each condition.

  Args:
    key: seed of the exchanges.
    material: the pairs that the items are of.
    items: as `draw_items` gives them.
    exchanges: e, how often each condition is simulated with explanations exchanged among the pairs
      of a half, map and name together; 19 can show p = 0.05.
    on_progress: called with how many of all simulations are done.

  Raises:
    ValueError: the material does not fit together; says which part.
  """
  check(material)
  if exchanges < 0:
    raise ValueError(f"--config.study.exchanges is 0 or more; given {exchanges}")
  eyes = Eyes(look(material.images), material)
  orders = [np.arange(len(material.queries))]
  for index in range(exchanges):
    order = orders[0].copy()
    for half in (0, 1):
      rows = np.unique(items.pairs[items.halves == half])
      rng = streams.rng(key, streams.STUDY_EXCHANGES, half, index)
      order[rows] = rng.permutation(rows)
    orders.append(order)
  explained = [name for name, c in CONDITIONS.items() if c.map or c.attribute]
  total, done = len(CONDITIONS) + exchanges * len(explained), 0

  correct: dict[str, np.ndarray] = {}
  control: dict[str, np.ndarray] = {}
  weights: dict[str, tuple[Weights, ...]] = {}
  for name, condition in CONDITIONS.items():
    answered = []
    for order in orders if name in explained else orders[:1]:
      answered.append(_cross(eyes.see(condition, order), items))
      done += 1
      on_progress(done, total)
    correct[name], weights[name] = answered[0]
    if name in explained and exchanges:
      control[name] = np.stack([right for right, _ in answered[1:]])
  return Result(items, correct, control, weights, by_balance(material.saliency, items))


def by_balance(saliency: np.ndarray, items: Items) -> np.ndarray:
  """Whether the pair with the warmer map scores higher [m]; 1/2 where the maps are alike.

  Of signed maps [p h w], each relative to its largest value, the mean is compared. A map's sum is
  about the score less that of the image with all hidden, so part of the answer shows in it to
  somebody who sees neither image nor place: a gain of maps means something beyond that.
  """
  maps = np.nan_to_num(saliency)
  largest = np.abs(maps).max(axis=(1, 2))
  warmth = maps.mean(axis=(1, 2)) / np.where(largest > 0, largest, 1)
  says = np.sign(warmth[items.pairs[:, 0]] - warmth[items.pairs[:, 1]])
  return 0.5 * (1 + says * (1 - 2 * items.answers))


def _cross(features: Features, items: Items) -> tuple[np.ndarray, tuple[Weights, ...]]:
  """Whether the student of the other half is right [m], and the weights of the two."""
  out, chosen = np.zeros(len(items.answers)), []
  for half in (0, 1):
    test = items.halves == half
    student = teach(features, items.pairs[~test], items.answers[~test], items.blocks[~test])
    says = np.sign(_answer(student, features, items.pairs[test]))
    truth = 1 - 2 * items.answers[test]
    out[test] = 0.5 * (1 + says * truth)
    chosen.append(student.chosen)
  return out, tuple(chosen)


def check(material: Material) -> None:
  """Raises ValueError, naming the part, where the material does not fit together."""
  images, pairs = material.images, len(material.queries)
  if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
    raise ValueError(f"images are uint8 [n s s 3]; given {images.dtype} {list(images.shape)}")
  rows = {"queries": material.queries, "references": material.references}
  for name, values in rows.items():
    if values.shape != (pairs,) or (pairs and not 0 <= values.min() <= values.max() < len(images)):
      raise ValueError(f"{name} are {pairs} rows of the {len(images)} images")
  if material.scores.shape != (pairs,):
    raise ValueError(f"scores are one a pair, {pairs}; given {list(material.scores.shape)}")
  maps = {"saliency": material.saliency}
  for name in filter(None, (c.attribute for c in CONDITIONS.values())):
    if name not in material.attributes or name not in material.activations:
      raise ValueError(f"the attributes or activations of condition {name!r} are missing")
    chosen, count = material.attributes[name], len(material.attribute_names)
    if chosen.shape != (pairs,) or (pairs and not 0 <= chosen.min() <= chosen.max() < count):
      raise ValueError(f"attributes of {name!r} are {pairs} indices of the {count} names")
    maps[f"activations of {name!r}"] = material.activations[name]
  for name, array in maps.items():
    if array.ndim != 3 or len(array) != pairs or not array[:1].size == np.prod(array.shape[1:]):
      raise ValueError(f"{name} is [{pairs} h w]; given {list(array.shape)}")


# --- figures --------------------------------------------------------------------------------------
# Intervals draw blocks of queries together.


def balance_accuracy(result: Result) -> Mean:
  """Share of items that the balance of the maps alone has right."""
  return mean(result.balance, result.items.blocks)


def gain_over_balance(result: Result, condition: str) -> Mean:
  """How much more often the student is right than the balance of the maps alone, item by item."""
  return mean(result.correct[condition] - result.balance, result.items.blocks)


def accuracy(result: Result, condition: str, *, control: bool = False) -> Mean:
  """Share of right answers; with `control`, of those with exchanged explanations."""
  values = result.control[condition].mean(axis=0) if control else result.correct[condition]
  return mean(values, result.items.blocks)


def gain(result: Result, condition: str, than: str) -> Mean:
  """How much more often the student is right than under another condition, item by item."""
  return mean(result.correct[condition] - result.correct[than], result.items.blocks)


def own_gain(result: Result, condition: str) -> Mean:
  """How much more often the student is right than with exchanged explanations, item by item."""
  exchanged = result.control[condition].mean(axis=0)
  return mean(result.correct[condition] - exchanged, result.items.blocks)


def p_value(result: Result, condition: str) -> float:
  """Of the hypothesis that a pair's own explanation is worth no more than another's, one-sided.

  p = (1 + how many exchanges did as well) / (1 + e). It holds whatever the student learned by
  chance, which the intervals do not cover.
  """
  own = result.correct[condition].mean()
  exchanged = result.control[condition].mean(axis=1)
  return float((1 + np.count_nonzero(exchanged >= own - 1e-12)) / (1 + len(exchanged)))
