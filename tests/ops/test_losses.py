"""Losses against brute force over their definitions, with limits where the answer is known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from sane_jax.ops import losses

KEY = jax.random.key(3)
CONDITIONS = np.array([[0, 1], [1, 2]])


@pytest.fixture
def batch(rng):
  """Nine images of two types in four groups, one of them in two groups, one row of padding."""
  rows = np.array([0, 1, 2, 3, 4, 5, 0, 6, 7])
  return {
    "embeddings": rng.normal(size=(9, 5)).astype(np.float32)[rows % 9],
    "types": np.array([0, 1, 0, 1, 1, 0, 1, 1, 0])[rows % 9],
    "rows": rows,
    "groups": np.array([0, 0, 0, 1, 1, 2, 2, 3, -1]),
    "masks": rng.uniform(0.1, 1, size=(3, 5)).astype(np.float32),
  }


def distance(batch, i, j):
  mask = batch["masks"][CONDITIONS[batch["types"][i], batch["types"][j]]]
  x, y = (batch["embeddings"][k] * mask for k in (i, j))
  return np.linalg.norm(x / np.linalg.norm(x) - y / np.linalg.norm(y))


def candidates(batch, a, p):
  """Images of p's type that are not in a's group, nor are one of its members' other copies."""
  own = {batch["rows"][m] for m in range(9) if batch["groups"][m] == batch["groups"][a]}
  return [
    n
    for n in range(9)
    if batch["groups"][n] >= 0
    and batch["groups"][n] != batch["groups"][a]
    and batch["types"][n] == batch["types"][p]
    and batch["rows"][n] not in own
  ]


def pairs(batch):
  for a, p in itertools.permutations(range(9), 2):
    same = batch["groups"][a] == batch["groups"][p] >= 0
    if same and batch["rows"][a] != batch["rows"][p] and candidates(batch, a, p):
      yield a, p


def test_hard_triplets_are_those_of_brute_force(batch):
  hinges, order = [], []
  for a, p in pairs(batch):
    nearest = min(distance(batch, a, n) for n in candidates(batch, a, p))
    hinges.append(max(0, distance(batch, a, p) - nearest + 0.3))
    order.append(distance(batch, a, p) < nearest)
  out = losses.triplet_loss(KEY, *arrays(batch), margin=0.3)
  assert out.count == len(hinges) > 4
  np.testing.assert_allclose(out.loss, np.mean(hinges), rtol=1e-5)
  np.testing.assert_allclose(out.in_order, np.mean(order), rtol=1e-6)


def arrays(batch):
  names = ("embeddings", "types", "rows", "groups", "masks")
  return (*(jnp.asarray(batch[name]) for name in names), jnp.asarray(CONDITIONS))


def test_random_triplets_average_to_all_of_them(batch):
  """Over many keys the loss tends to the mean over pairs of the mean over their candidates."""
  expected = np.mean(
    [
      np.mean(
        [
          max(0, distance(batch, a, p) - distance(batch, a, n) + 0.3)
          for n in candidates(batch, a, p)
        ]
      )
      for a, p in pairs(batch)
    ]
  )
  keys = jax.random.split(KEY, 4000)
  draw = jax.vmap(
    lambda key: losses.triplet_loss(key, *arrays(batch), negatives="random", margin=0.3).loss
  )
  found = np.asarray(draw(keys))
  assert abs(found.mean() - expected) < 5 * found.std() / np.sqrt(len(found))
  assert found.std() > 0


def test_no_triplet_no_loss_and_no_nan(batch):
  batch["groups"] = np.arange(9)
  value, grad = jax.value_and_grad(lambda e: losses.triplet_loss(KEY, e, *arrays(batch)[1:]).loss)(
    jnp.asarray(batch["embeddings"])
  )
  assert value == 0
  assert np.all(np.asarray(grad) == 0)


def test_gradients_are_finite_for_equal_and_zero_embeddings(batch):
  for embeddings in (np.zeros((9, 5)), np.ones((9, 5))):
    grad = jax.grad(lambda e: losses.triplet_loss(KEY, e, *arrays(batch)[1:]).loss)(
      jnp.asarray(embeddings, jnp.float32)
    )
    assert np.isfinite(np.asarray(grad)).all()


@pytest.mark.parametrize("spread", [1.0, 1e-2, 1e-4])
def test_images_that_have_come_close_are_told_apart(rng, spread):
  """Loss and slope are those of 64 bits, in which the distances are taken as they are defined."""
  count, size, margin = 24, 16, 0.1 * spread
  embeddings = (rng.normal(size=size) + spread * rng.normal(size=(count, size))).astype(np.float32)
  types, groups = np.arange(count) % 2, np.arange(count) // 4
  masks = rng.uniform(0.2, 1, size=(3, size)).astype(np.float32)

  def definition(e):
    x = e.astype(np.float64) * masks[:, None]  # [3 count size]
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    hinges = []
    for a, p in itertools.permutations(range(count), 2):
      if groups[a] == groups[p]:
        space = x[CONDITIONS[types[a], types[p]]]
        others = (groups != groups[a]) & (types == types[p])
        nearest = np.linalg.norm(space[a] - space[others], axis=-1).min()
        hinges.append(max(0, np.linalg.norm(space[a] - space[p]) - nearest + margin))
    return np.mean(hinges)

  value, grad = jax.value_and_grad(
    lambda e: (
      losses.triplet_loss(
        KEY,
        e,
        *map(jnp.asarray, (types, np.arange(count), groups, masks, CONDITIONS)),
        margin=margin,
      ).loss
    )
  )(jnp.asarray(embeddings))
  np.testing.assert_allclose(value, definition(embeddings), rtol=1e-2)
  step = 1e-5 * spread * rng.normal(size=embeddings.shape)
  e = embeddings.astype(np.float64)
  slope = (definition(e + step) - definition(e - step)) / 2
  np.testing.assert_allclose(np.sum(np.asarray(grad) * step), slope, rtol=2e-2)


def test_other_negatives_are_refused(batch):
  with pytest.raises(ValueError, match="random or hard"):
    losses.triplet_loss(KEY, *arrays(batch), negatives="soft")


def test_titles(rng):
  images, titles = (rng.normal(size=(4, 6)).astype(np.float32) for _ in range(2))
  groups, has = np.array([0, 0, 1, 1]), np.array([True, False, True, False])

  def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)

  def d(i, t):
    return np.linalg.norm(unit(images[i]) - unit(titles[t]))

  # Of each image with a title the only title of another group is the other one's.
  expected = np.mean([max(0, d(0, 0) - d(0, 2) + 0.2), max(0, d(2, 2) - d(2, 0) + 0.2)])
  found = losses.title_loss(KEY, *map(jnp.asarray, (images, titles, groups, has)), margin=0.2)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  nothing = losses.title_loss(
    KEY, jnp.asarray(images), jnp.asarray(titles), jnp.asarray(groups), jnp.zeros(4, bool)
  )
  assert nothing == 0


def test_regularisers():
  masks = jnp.array([[1.0, -2.0], [3.0, 0.0]])
  assert losses.mask_l1(masks) == 1.5
  assert losses.embedding_l2(masks, jnp.array([True, False])) == 5
  assert losses.embedding_l2(masks, jnp.array([False, False])) == 0


def test_labels():
  labels = np.array([True, False, True, False])
  np.testing.assert_allclose(losses.label_target(jnp.asarray(labels)), [0.5, 0, 0.5, 0])
  scores = np.array([2.0, -1.0, 0.5, 0.0], np.float32)
  difference = special.softmax(scores) - [0.5, 0, 0.5, 0]
  huber = np.where(np.abs(difference) < 1, 0.5 * difference**2, np.abs(difference) - 0.5)
  np.testing.assert_allclose(
    losses.label_loss(jnp.asarray(scores), jnp.asarray(labels)), huber.mean(), rtol=1e-6
  )
  perfect = np.log(np.array([0.5, 1e-30, 0.5, 1e-30], np.float32))
  assert losses.label_loss(jnp.asarray(perfect), jnp.asarray(labels)) < 1e-12
  assert losses.label_loss(jnp.asarray(scores), jnp.zeros(4, bool)) == 0


def test_saliency_targets(rng):
  maps = rng.normal(size=(3, 8, 8)).astype(np.float32)
  same = np.asarray(losses.saliency_target(jnp.asarray(maps), (8, 8)))
  np.testing.assert_allclose(
    same, special.softmax(maps.reshape(3, -1), axis=1).reshape(3, 8, 8), rtol=1e-5
  )
  half = np.asarray(losses.saliency_target(jnp.asarray(maps), (4, 4), sharpness=2.0))
  np.testing.assert_allclose(half.sum((1, 2)), 1, rtol=1e-6)
  logits = np.log(half.reshape(3, -1))  # the standardised map times 2, up to a constant
  np.testing.assert_allclose(logits.std(axis=1), 2, rtol=1e-4)
  scaled = losses.saliency_target(jnp.asarray(maps * 50 + 7), (4, 4), sharpness=2.0)
  np.testing.assert_allclose(scaled, half, rtol=1e-3)
  flat = losses.saliency_target(jnp.full((1, 8, 8), 0.3), (4, 4), sharpness=2.0)
  np.testing.assert_allclose(flat, 1 / 16, rtol=1e-6)


def test_maps_are_matched_to_the_best_true_attribute(rng):
  activations = rng.normal(size=(4, 4, 5)).astype(np.float32)
  maps = rng.normal(size=(6, 8, 8)).astype(np.float32)
  valid = np.array([True, True, False, True, False, True])
  labels = np.array([True, False, True, True, False])
  targets = losses.saliency_target(jnp.asarray(maps), (4, 4), sharpness=1.0)
  n = special.softmax(activations.reshape(16, 5), axis=0)
  expected = np.mean(
    [
      min(np.linalg.norm(n[:, a] - np.asarray(targets)[m].ravel()) for a in np.flatnonzero(labels))
      for m in np.flatnonzero(valid)
    ]
  )
  found = losses.map_loss(
    jnp.asarray(activations), targets, jnp.asarray(valid), jnp.asarray(labels)
  )
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
  ("valid", "labels"),
  [(np.zeros(2, bool), np.ones(3, bool)), (np.ones(2, bool), np.zeros(3, bool))],
)
def test_without_maps_or_labels_there_is_no_map_loss(rng, valid, labels):
  activations = jnp.asarray(rng.normal(size=(2, 2, 3)), jnp.float32)
  targets = losses.saliency_target(jnp.asarray(rng.normal(size=(2, 4, 4)), jnp.float32), (2, 2))
  value, grad = jax.value_and_grad(losses.map_loss)(
    activations, targets, jnp.asarray(valid), jnp.asarray(labels)
  )
  assert value == 0
  assert np.all(np.asarray(grad) == 0)


def test_maps_that_are_not_there_may_hold_anything(rng):
  activations = jnp.asarray(rng.normal(size=(2, 2, 3)), jnp.float32)
  targets = losses.saliency_target(jnp.asarray(rng.normal(size=(2, 4, 4)), jnp.float32), (2, 2))
  valid, labels = jnp.array([True, False]), jnp.array([True, True, False])
  expected = jax.value_and_grad(losses.map_loss)(activations, targets[:1], valid[:1], labels)
  found = jax.value_and_grad(losses.map_loss)(
    activations, targets.at[1].set(jnp.nan), valid, labels
  )
  assert np.any(np.asarray(expected[1]) != 0)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


def test_a_perfect_map_has_a_finite_gradient():
  activations = jnp.zeros((2, 2, 1))
  targets = jnp.full((1, 2, 2), 0.25)
  grad = jax.grad(losses.map_loss)(activations, targets, jnp.ones(1, bool), jnp.ones(1, bool))
  assert np.isfinite(np.asarray(grad)).all()
