"""A student in place of people: planted reasons are found, nothing is found where nothing is."""

import numpy as np
import pytest

from sane_jax.study import proxy as simulation
from sane_jax.study.proxy import CONDITIONS, Items, Material, Result

NAMES = 6


def plant(rng, pairs=300, *, images_a_query=1):
  """Patchwork images, maps and attributes of noise, scores of noise; every image in one pair."""
  queries = np.arange(pairs) // images_a_query
  references = queries[-1] + 1 + np.arange(pairs)
  patches = rng.integers(0, 256, (int(references[-1]) + 1, 4, 4, 3)).astype(np.uint8)
  return Material(
    images=patches.repeat(8, axis=1).repeat(8, axis=2),
    queries=queries,
    references=references,
    scores=rng.normal(size=pairs),
    saliency=rng.normal(size=(pairs, 8, 8)).astype(np.float32),
    attributes={name: rng.integers(NAMES, size=pairs) for name in ("random", "predicted", "sane")},
    activations={
      name: rng.random((pairs, 8, 8)).astype(np.float16)
      for name in ("random", "predicted", "sane")
    },
    attribute_names=tuple(f"name {a}" for a in range(NAMES)),
  )  # fmt: skip


def draw(material, num_items=200, *, key=0, min_gap=0.5, **options):
  return simulation.draw_items(
    key, material.queries, material.references, material.scores,
    num_items=num_items, min_gap=min_gap * float(material.scores.std()), **options,
  )  # fmt: skip


def closeness(material):
  """How near the mean colours of a pair are, standardised: what anyone can see."""
  means = material.images.mean(axis=(1, 2))
  far = np.linalg.norm(means[material.queries] - means[material.references], axis=1)
  return (far.mean() - far) / far.std()


# --- items ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("images_a_query", [1, 3])
def test_items_keep_their_promises(rng, images_a_query):
  material = plant(rng, images_a_query=images_a_query)
  # References that several queries share, within and beyond the halves.
  material = material._replace(references=rng.permutation(material.references // 2 * 2))
  items = draw(material)
  gap = 0.5 * material.scores.std()
  assert items.min_gap == pytest.approx(gap)
  left, right = material.scores[items.pairs].T
  assert (np.abs(left - right) >= gap).all()
  np.testing.assert_array_equal(items.answers, (right > left).astype(int))
  images = [set(), set()]
  for half, pairs in zip(items.halves, items.pairs, strict=True):
    four = {*material.queries[pairs], *material.references[pairs]}
    assert len(four) == 4
    images[half] |= four
  assert not images[0] & images[1]
  for half in (0, 1):
    inside = items.halves == half
    assert abs(items.answers[inside].mean() - 0.5) <= 0.5 / inside.sum()
  of = {}
  for block, pairs in zip(items.blocks, items.pairs, strict=True):
    for query in material.queries[pairs]:
      assert of.setdefault(query, block) == block
  assert len({tuple(sorted(pairs)) for pairs in items.pairs}) == len(items.pairs)


def test_no_pair_is_used_twice_before_all_are_used(rng):
  material = plant(rng, 400)
  used = np.bincount(draw(material, 80).pairs.ravel(), minlength=400)
  assert used.max() == 1
  few = draw(material, 10_000)
  assert len(few.answers) < 10_000  # as many as there are


def test_items_are_a_function_of_the_key(rng):
  material = plant(rng)
  first, again, other = draw(material), draw(material), draw(material, key=1)
  for a, b in zip(first, again, strict=True):
    np.testing.assert_array_equal(a, b)
  assert not np.array_equal(first.pairs, other.pairs)


def test_halves_are_parted_where_few_pairs_lie_across(rng):
  """Forty clusters of images whose pairs stay within them, but for one pair in twenty."""
  cluster = np.repeat(np.arange(40), 20)
  queries, references = [], []
  for pair in range(1200):
    q = rng.integers(800)
    inside = np.flatnonzero((cluster == cluster[q]) & (np.arange(800) != q))
    queries.append(q)
    references.append(rng.integers(800) if pair % 20 == 0 else rng.choice(inside))
  queries, references = np.array(queries), np.array(references)
  side = simulation.halve_images(rng, queries, references)
  across = np.mean([side[q] != side[r] for q, r in zip(queries, references, strict=True)])
  assert across < 0.2  # a random halving: one half
  ends = np.array([side[row] for row in (*queries, *references)])
  assert 0.44 <= ends.mean() <= 0.56


@pytest.mark.parametrize(
  ("fields", "options", "message"),
  [
    ({}, {"num_items": 10}, "--config.study.num_items is 48 or more; given 10"),
    ({}, {"min_gap": 0.0}, "--config.study.min_gap is above 0"),
    ({}, {"min_gap": 100.0}, "lower --config.study.min_gap"),
    ({"scores": np.full(300, np.nan)}, {"min_gap": 1.0}, "too few pairs: 0 pairs"),
    ({"queries": np.arange(300), "references": np.arange(300)}, {}, "too few pairs: 0 pairs"),
    ({"queries": np.zeros(300, int)}, {}, "run --config.job=evaluate again"),
  ],
)  # fmt: skip
def test_what_does_not_do_is_named(rng, fields, options, message):
  m = plant(rng)._replace(**fields)
  options = {"num_items": 200, "min_gap": 0.5, **options}
  with pytest.raises(ValueError, match=message.replace(".", r"\.")):
    simulation.draw_items(0, m.queries, m.references, m.scores, **options)


# --- what is seen ---------------------------------------------------------------------------------


def test_features_of_plain_images_are_known():
  colours = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0], [127.5, 127.5, 127.5]])
  images = np.broadcast_to(colours[:, None, None], (4, 48, 48, 3)).astype(np.uint8)
  sight = simulation.look(images)
  np.testing.assert_allclose(sight.histogram.sum(axis=-1), 1, rtol=1e-5)
  np.testing.assert_array_equal(sight.histogram[:3].argmax(axis=-1)[:, 0], [0, 26, 18])
  np.testing.assert_allclose(sight.color[2, 0], [1 / 3, 1, 0.5], atol=1e-6)
  np.testing.assert_allclose(sight.edges, 0, atol=1e-6)
  np.testing.assert_allclose(sight.figure, 1 / 64, rtol=1e-4)  # nothing stands out


def test_a_figure_and_its_edges_are_where_they_are():
  image = np.full((1, 64, 64, 3), 255, np.uint8)
  image[0, 16:48, 24:40] = (200, 0, 0)
  sight = simulation.look(image)
  figure = sight.figure.reshape(8, 8)
  assert figure[2:6, 3:5].min() > 10 * figure[0].max()
  across, down = sight.edges.reshape(8, 8, 4)[..., 0], sight.edges.reshape(8, 8, 4)[..., 1]
  assert across[4, 3] > 0.1 > down[4, 3]
  assert down[2, 3] > 0.1


def test_size_does_not_matter(rng):
  images = rng.integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
  for a, b in zip(
    simulation.look(images), simulation.look(images.repeat(3, 1).repeat(3, 2)), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_matches_are_brute_force(rng):
  sight = simulation.look(rng.integers(0, 256, (5, 32, 32, 3)).astype(np.uint8))
  q, r = np.array([0, 1, 4]), np.array([2, 3, 0])
  match = simulation.match_cells(sight, q, r)
  cells = np.concatenate([sight.color, 2 * sight.edges], axis=-1)
  for pair in range(3):
    far = np.linalg.norm(cells[q[pair]][:, None] - cells[r[pair]][None], axis=-1)
    np.testing.assert_allclose(match.best[pair], far.min(axis=1), atol=1e-3)
    np.testing.assert_allclose(match.same[pair], np.diag(far), atol=1e-5)


# --- the student ----------------------------------------------------------------------------------


def test_a_planted_attribute_is_found_by_those_who_are_told_it(rng):
  """The score is the named attribute's: SANE names it, the prediction half of the time."""
  material = plant(rng, 400)
  true = material.attributes["sane"]
  half = np.where(rng.random(400) < 0.5, true, material.attributes["predicted"])
  material = material._replace(
    scores=np.linspace(-2, 2, NAMES)[true] + 0.3 * rng.normal(size=400),
    attributes={**material.attributes, "predicted": half},
  )
  result = simulation.simulate(0, material, draw(material, 300), exchanges=4)
  right = {name: simulation.accuracy(result, name) for name in CONDITIONS}
  assert right["sane"].value > 0.9
  assert 0.55 < right["predicted"].value < 0.85
  for name in ("nothing", "map", "random"):
    assert right[name].low < 0.5 < right[name].high, name
  for name in ("nothing", "map", "random", "predicted"):
    assert simulation.gain(result, "sane", name).low > 0.1
  assert simulation.gain(result, "random", "nothing").low < 0
  assert simulation.own_gain(result, "sane").low > 0.3
  assert simulation.p_value(result, "sane") == 0.2
  assert result.weights["sane"] == ((0, 1), (0, 1))


def test_a_map_that_points_to_what_matches_is_of_use(rng):
  """Of a query's sixteen patches the reference has one, alike in the degree of the score."""
  pairs = 400
  material = plant(rng, pairs)
  patches = material.images[:, ::8, ::8].astype(float)
  saliency = 0.05 * rng.normal(size=(pairs, 4, 4))
  scores = rng.uniform(size=pairs)
  for pair, (y, x, v, w) in enumerate(rng.integers(4, size=(pairs, 4))):
    q, r = patches[material.queries[pair]], patches[material.references[pair]]
    r[:] = (150, 150, 150)
    r[v, w] = scores[pair] * q[y, x] + (1 - scores[pair]) * (255 - q[y, x])
    saliency[pair, y, x] = 1
  images = np.rint(patches).astype(np.uint8).repeat(8, axis=1).repeat(8, axis=2)
  material = material._replace(images=images, scores=scores, saliency=saliency)
  result = simulation.simulate(0, material, draw(material, 300), exchanges=4)
  assert simulation.gain(result, "map", "nothing").low > 0.02
  assert simulation.own_gain(result, "map").low > 0.02
  assert simulation.p_value(result, "map") == 0.2


@pytest.mark.full
def test_explanations_that_say_nothing_help_no_more_than_chance_has_it():
  """Thirty studies whose score everybody can see in part, and whose explanations are noise."""
  studies, exchanges = 30, 3
  wins, p = dict.fromkeys(CONDITIONS, 0), []
  for seed in range(studies):
    rng = np.random.default_rng((7, seed))
    material = plant(rng, 120)
    material = material._replace(scores=closeness(material) + rng.normal(size=120))
    result = simulation.simulate(seed, material, draw(material, 120), exchanges=exchanges)
    for name in CONDITIONS:
      if name != "nothing":
        wins[name] += simulation.gain(result, name, "nothing").low > 0
    p.append(simulation.p_value(result, "sane"))
  # Nominal: 0.75 of 30; four or more have a probability of 0.007.
  assert max(wins.values()) <= 3, wins
  # p is 1/4 in a quarter of them at most: 7.5, and 14 within three standard deviations.
  assert sum(x <= 0.25 for x in p) <= 14
  assert np.mean(p) > 0.45


def test_left_and_right_are_alike_to_the_student(rng):
  material = plant(rng, 200)
  material = material._replace(scores=closeness(material))
  items = draw(material, 100)
  swapped = items._replace(pairs=items.pairs[:, ::-1], answers=1 - items.answers)
  results = [simulation.simulate(0, material, each, exchanges=0) for each in (items, swapped)]
  for name in CONDITIONS:
    np.testing.assert_array_equal(results[0].correct[name], results[1].correct[name])
  assert results[0].correct["nothing"].mean() > 0.7


def test_answers_of_a_half_teach_its_own_student_nothing(rng):
  """Wrong answers in one half change what is said of the other half alone."""
  material = plant(rng, 200)
  material = material._replace(scores=closeness(material))
  items = draw(material, 100)
  lies = items._replace(answers=np.where(items.halves == 0, 1 - items.answers, items.answers))
  true, false = (simulation.simulate(0, material, x, exchanges=0) for x in (items, lies))
  mine = items.halves == 0
  said = {name: x.correct["nothing"] for name, x in (("true", true), ("false", false))}
  np.testing.assert_array_equal(said["true"][mine], 1 - said["false"][mine])
  assert said["true"][~mine].mean() > 0.7
  assert said["false"][~mine].mean() < 0.3


def test_a_condition_sees_what_it_shows_and_no_more(rng):
  material = plant(rng, 200)
  items = draw(material, 100)
  first = simulation.simulate(0, material, items, exchanges=0).correct
  other = plant(np.random.default_rng(9), 200)
  maps = simulation.simulate(
    0, material._replace(saliency=other.saliency), items, exchanges=0
  ).correct
  named = simulation.simulate(
    0, material._replace(attributes=other.attributes, activations=other.activations), items,
    exchanges=0,
  ).correct  # fmt: skip
  np.testing.assert_array_equal(first["nothing"], maps["nothing"])
  np.testing.assert_array_equal(first["nothing"], named["nothing"])
  np.testing.assert_array_equal(first["map"], named["map"])
  assert not np.array_equal(first["sane"], named["sane"])


def test_what_is_not_shown_is_an_even_map_to_the_student(rng):
  """So that another look at the images, by whatever weights, is not what an explanation gives."""
  material = plant(rng, 50)
  eyes = simulation.Eyes(simulation.look(material.images), material)
  seen = eyes.see(CONDITIONS["nothing"], np.arange(50))
  even = seen.base[:, 10:20]
  np.testing.assert_array_equal(seen.explanation[:, :30], np.hstack([even, even, even]))
  assert (np.ptp(seen.explanation[:, 30:], axis=0) < 1e-6).all()
  assert not seen.name.any()
  shown = eyes.see(CONDITIONS["map"], np.arange(50))
  np.testing.assert_array_equal(shown.base, seen.base)
  np.testing.assert_array_equal(shown.explanation[:, 20:30], even)
  assert shown.explanation.shape == seen.explanation.shape


def test_of_a_map_its_shape_alone_counts(rng):
  """A subject sees colours relative to the strongest: no magnitude, which might be the score's."""
  material = plant(rng, 200)
  items = draw(material, 100)
  size = np.exp(material.scores)[:, None, None]
  scaled = material._replace(
    saliency=material.saliency.astype(float) * size,
    activations={k: v.astype(float) * size for k, v in material.activations.items()},
  )
  first, second = (simulation.simulate(0, m, items, exchanges=0) for m in (material, scaled))
  for name in CONDITIONS:
    assert np.mean(first.correct[name] != second.correct[name]) < 0.02  # but for rounding


def test_maps_with_holes_and_empty_ones_are_read(rng):
  material = plant(rng, 200)
  material.saliency[:50, :4] = np.nan
  material.saliency[50:60] = 0
  result = simulation.simulate(0, material, draw(material, 100), exchanges=1)
  assert np.isin(result.correct["map"], [0, 0.5, 1]).all()


def test_ridges_are_those_of_the_closed_form(rng):
  """With nothing else to go by the student is a ridge regression on standardised differences."""
  base = rng.normal(size=(300, 4)) * [1, 10, 0.1, 1]
  features = simulation.Features(base, np.zeros((300, 2)), np.zeros((300, 3)))
  pairs = rng.permutation(300).reshape(-1, 2)
  x = base[pairs[:, 0]] - base[pairs[:, 1]]
  answers = (x @ [1, 0.05, 0, -1] + rng.normal(size=150) < 0).astype(int)
  student = simulation.teach(features, pairs, answers, np.arange(150))
  spread = np.sqrt((x**2).mean(axis=0))
  z = np.clip(x, -4 * spread, 4 * spread) / spread
  y = 1.0 - 2 * answers
  found = [
    np.linalg.solve(z.T @ z + 150 * penalty * np.eye(4), z.T @ y) / spread
    for penalty in simulation.PENALTIES
  ]
  assert any(np.allclose(student.weights[:4], weights) for weights in found)
  assert not student.weights[4:].any()
  assert student.chosen == (0, 0)


# --- figures --------------------------------------------------------------------------------------


def test_figures_are_by_hand():
  items = Items(
    np.zeros((6, 2), int), np.zeros(6, int), np.zeros(6, int), np.array([0, 0, 1, 1, 2, 2]), 0.1
  )
  right = {"nothing": np.array([0, 1, 0, 1, 0, 1.0]), "map": np.array([1, 1, 1, 1, 0, 1.0])}
  control = {"map": np.array([[1, 1, 1, 1, 0, 1.0], [0, 0, 0, 0, 0, 1.0], [1, 1, 1, 1, 1, 1.0]])}
  result = Result(items, right, control, {}, np.zeros(0))
  assert simulation.accuracy(result, "map").value == pytest.approx(5 / 6)
  # Every block is half right: there is nothing to draw.
  assert simulation.accuracy(result, "nothing") == (0.5, 0.5, 0.5)
  gain = simulation.gain(result, "map", "nothing")
  assert gain.value == pytest.approx(1 / 3)
  assert (gain.low, gain.high) == (pytest.approx(0), pytest.approx(0.5))
  assert simulation.accuracy(result, "map", control=True).value == pytest.approx(12 / 18)
  assert simulation.own_gain(result, "map").value == pytest.approx(5 / 6 - 12 / 18)
  assert simulation.p_value(result, "map") == pytest.approx(3 / 4)  # a tie counts


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"images": np.zeros((4, 8, 8, 3))}, "images are uint8"),
    ({"references": np.full(60, 10_000)}, "references are 60 rows"),
    ({"scores": np.zeros(3)}, "scores are one a pair"),
    ({"saliency": np.zeros((60, 64))}, "saliency is"),
    ({"attributes": {}}, "of condition 'random' are missing"),
    ({"attribute_names": ("one",)}, "of 'random' are 60 indices of the 1 names"),
  ],
)  # fmt: skip
def test_material_that_does_not_fit_is_named(rng, fields, message):
  with pytest.raises(ValueError, match=message):
    simulation.check(plant(rng, 60)._replace(**fields))


def test_progress_counts_every_simulation(rng):
  seen = []
  material = plant(rng, 120)
  simulation.simulate(
    0, material, draw(material, 100), exchanges=2, on_progress=lambda *at: seen.append(at)
  )
  assert seen == [(n, 13) for n in range(1, 14)]


def test_the_balance_of_maps_answers_without_an_image():
  """Signed maps leak the score; one that is shifted to a sum of 0 does not."""
  rng = np.random.default_rng(0)
  scores = rng.uniform(0.1, 1, size=40)
  maps = rng.normal(size=(40, 4, 4))
  maps += (scores - 0.5)[:, None, None] * 20
  pairs = rng.choice(40, (60, 2))
  pairs = pairs[scores[pairs[:, 0]] != scores[pairs[:, 1]]]
  answers = (scores[pairs[:, 1]] > scores[pairs[:, 0]]).astype(int)
  items = Items(pairs, answers, np.zeros(len(pairs), int), np.arange(len(pairs)), 0.0)
  assert simulation.by_balance(maps, items).mean() > 0.9
  even = maps - maps.mean(axis=(1, 2), keepdims=True)
  assert abs(simulation.by_balance(even, items).mean() - 0.5) < 0.25
  assert (simulation.by_balance(np.zeros_like(maps), items) == 0.5).all()
