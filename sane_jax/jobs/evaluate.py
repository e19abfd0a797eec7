"""Job: the tables that say how good explanations are."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tqdm

from sane_jax.attributes import effects as attribute_effects
from sane_jax.attributes import pairs as pairs_lib
from sane_jax.attributes import quality, spaces, trained
from sane_jax.datasets import collection as collection_lib
from sane_jax.datasets import load, outfits_drawn
from sane_jax.datasets.collection import Collection
from sane_jax.maps import index_arrays, measure, sanity_checks
from sane_jax.maps.curves import DRAWINGS, insertion_deletion
from sane_jax.maps.explainer import MODES, Explainer
from sane_jax.maps.explanation import Photo
from sane_jax.maps.generators import parse_generator
from sane_jax.maps.tasks import check_design, check_generator
from sane_jax.models.model import Model
from sane_jax.ops import fills, ranking, resampling, statistics, streams
from sane_jax.ops.insertion_deletion import areas
from sane_jax.report import tables as tables_lib
from sane_jax.report.tables import Interval, Table
from sane_jax.runs import files, npz, processes
from sane_jax.runs import folder as run_folder
from sane_jax.runs.folder import CONTENT
from sane_jax.runs.settings import check_choice, check_range

_DRAWN = {
  "smooth": "drawn smoothly",
  "cells": "judged as they are, and deletion favours hard edges",
}
FLOOR = "random"
BASELINE = "confidence"


class Case(NamedTuple):
  """A generator of saliency maps, such as 'rise:num_masks=500', and what it perturbs."""

  spec: str
  mode: str

  @property
  def is_random(self) -> bool:
    """Whether its maps say nothing: what the others are held against."""
    return parse_generator(self.spec)[0] == "random"

  @property
  def file(self) -> str:
    return f"{self.spec}_{self.mode}.npz".replace(":", "_").replace("=", "_")


class Evaluation(NamedTuple):
  """What all tables are made from."""

  test: Collection
  terms: pairs_lib.PairTerms
  tuned: trained.Ranking
  present: np.ndarray  # bool [n a]
  named: dict[str, np.ndarray]  # method -> attribute of each pair [p]

  @property
  def matching(self) -> np.ndarray:
    """Indices of the pairs that match."""
    return np.flatnonzero(self.terms.labels == 1)

  def interval(self, pairs: np.ndarray, values: np.ndarray, digits: int = 1) -> Interval | str:
    """Mean over pairs with its 95 % interval, queries drawn together; NaN left out."""
    values = np.asarray(values, np.float64)
    known = np.isfinite(values)
    clusters = self.terms.queries[pairs][known]
    if len(np.unique(clusters)) < 2:
      return "–"
    return Interval(*statistics.mean(values[known], clusters), digits)


def check(config: Any) -> None:
  """Raises ValueError for settings that can't be; reads no data and writes nothing."""
  load.check_data(config.data)
  settings = config.evaluation
  for spec in settings.generators:
    check_generator(spec, config.index.fill)
  for mode in settings.modes:
    check_choice("evaluation.modes", mode, MODES)
  fills.check_fill(settings.background)
  check_choice("evaluation.drawing", settings.drawing, DRAWINGS)
  check_design(config.index.design, config.index.num_masks, config.index.fill)
  for name in ("saliency_pairs", "sanity_pairs"):
    check_range(f"evaluation.{name}", settings[name], 0)
  check_range("ranking.representatives", config.ranking.representatives, 1)


def run(config: Any) -> None:
  """Evaluates explanations of the test pairs; every table as Markdown, CSV and LaTeX.

  Attribute insertion and deletion for every way to rank, agreement with the truth where it is
  known, recognition with and without supervision by maps, insertion and deletion of pixels for
  every generator, and sanity checks. Writes WORKDIR/evaluation: tables, tables.json, and
  material.npz for simulate_study. What costs passes is kept as soon as it is done, and shared by
  the processes.
  """
  check(config)
  settings, workdir = config.evaluation, files.at(config.workdir)
  test, pairs = pairs_lib.load_pairs(
    config.data, workdir, "test", limit=config.pairs.num_test, seed=config.seed
  )
  index = pairs_lib.index_folder(workdir, "test")
  identity = run_folder.identity(
    collection_lib.fingerprint(test), evaluation=settings, key=config.seed, pairs=len(pairs)
  )
  identity["version of the maps"] = measure.VERSION
  for name, folder, job in (
    ("index", index, "build_index"),
    ("ranking", workdir / config.ranking.folder, "tune_ranking"),
    (f"attributes{CONTENT}", workdir / config.ranking.attributes, "train_attributes"),
    (f"concepts{CONTENT}", workdir / config.ranking.concepts, "fit_concepts"),
  ):
    identity[name] = run_folder.hash_finished(folder, job)
  pairs_lib.check_model(workdir, config.index, ["train", "test"])
  ranking_folders = config.ranking.concepts, config.ranking.folder, config.ranking.attributes
  trained.check_chain(workdir, *ranking_folders)
  folder = run_folder.claim_folder(workdir / settings.folder, identity)
  if run_folder.up_to_date(folder, "evaluate"):
    return

  terms = pairs_lib.read_terms(
    test, pairs, workdir, "test", attributes=config.ranking.attributes,
    concepts=config.ranking.concepts, num_threads=config.num_threads,
  )  # fmt: skip
  tuned = trained.read_ranking(workdir / config.ranking.folder)
  labels = collection_lib.label_matrix(test)
  present = attribute_effects.presence(labels, terms.confidence, tuned.thresholds)
  e = Evaluation(test, terms, tuned, present, name_attributes(terms, tuned, config.seed))
  seen = draw_pairs(terms.labels, settings.saliency_pairs, config.seed)
  sane = e.matching[:: max(1, len(e.matching) // max(1, settings.sanity_pairs))]
  sane = sane[: settings.sanity_pairs]
  parts = folder / "parts"
  cases = {case: parts / case.file for case in _cases(settings)}
  layers = ["", *settings.layers] if len(sane) else []  # '': as the model is
  broken = {layer: parts / f"sanity_{number:02d}.npz" for number, layer in enumerate(layers)}

  source = spaces.model_source(workdir, config.index.model)
  model_of = spaces.model_in_space(source, config.index.image_size, test)
  fill = config.index.fill or None
  work: list[tuple[pathlib.Path, Callable[[], dict[str, np.ndarray]]]] = []
  for case, path in cases.items():
    make = functools.partial(_make_generator, case, fill, config.seed)
    work.append(
      (
        path,
        functools.partial(
          measure_curves, e, seen, model_of, make, settings.background, settings.drawing
        ),
      )
    )
  variables = destroyed_variables(e, sane, model_of, settings.layers)
  make = functools.partial(
    Explainer, design=config.index.design, num_masks=config.index.num_masks, fill=fill,
    key=config.seed,
  )  # fmt: skip
  for layer, path in broken.items():
    work.append((path, functools.partial(measure_maps, e, sane, model_of, make, variables[layer])))
  _measure(work)
  if not processes.is_first():
    return
  models = {
    "with saliency maps": config.ranking.attributes, "without": settings.baseline,
  }  # fmt: skip
  made = [
    _attribute_table(e, config.ranking.representatives),
    *_truth_tables(e, config.attributes.truth, config.ranking.representatives),
    _recognition_table({what: workdir / name for what, name in models.items() if name}),
    _saliency_table(e, seen, cases, settings.background, settings.drawing),
    *_sanity_tables(e, sane, broken, index, config.seed),
  ]
  made = [table for table in made if table is not None]
  _write_material(e, folder)
  named = {table.title.lower().replace(" ", "_").replace(",", ""): table for table in made}
  tables_lib.write(folder, named)
  for name, table in named.items():
    files.write_bytes(folder / f"{name}.md", tables_lib.to_markdown(table).encode())
  document = [tables_lib.to_json(table) for table in made]
  files.write_bytes(folder / "tables.json", (json.dumps(document, indent=1) + "\n").encode())
  run_folder.finish(folder, {"tables": [table.title for table in made], "pairs": len(pairs)})
  print(f"evaluate: {len(made)} tables of {len(pairs)} pairs. Open {folder / 'tables.md'}")


def name_attributes(
  terms: pairs_lib.PairTerms, tuned: trained.Ranking, seed: int
) -> dict[str, np.ndarray]:
  """The attribute [p] that each way to rank names."""
  rng = streams.rng(seed, streams.RANDOM_ATTRIBUTES)
  confidence = terms.terms.confidence
  pairs, count = confidence.shape
  recognised = confidence > tuned.thresholds
  recognised[np.arange(pairs), confidence.argmax(axis=1)] = True  # one at least
  out = {
    FLOOR: rng.integers(count, size=pairs),
    "random of those recognised": np.where(recognised, rng.random(recognised.shape), -1).argmax(1),
  }
  scores = ranking.normal_scores(terms.terms, tuned.calibration)
  return out | {name: ranking.totals(scores, phi).argmax(axis=1) for name, phi in tuned.phi.items()}


def draw_pairs(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
  """Pairs drawn by the seed, half of them matching as far as there are; ascending."""
  rng = streams.rng(seed, streams.SALIENCY_PAIRS)
  parts = [np.flatnonzero(labels == label) for label in (1, 0)]
  half = [rng.permutation(part)[: count // 2 or 1] for part in parts]
  return np.sort(np.concatenate(half))


def _cases(settings: Any) -> list[Case]:
  """Generators and what they perturb; maps at random are the same in all modes."""
  if settings.saliency_pairs < 2:
    return []
  every = [Case(spec, mode) for spec in settings.generators for mode in settings.modes]
  return [case for case in every if case.mode == "fixed" or not case.is_random]


# --- attributes -----------------------------------------------------------------------------------


def _attribute_table(e: Evaluation, representatives: int) -> Table:
  """Insertion and deletion of the attribute that is named."""
  pairs = e.matching
  scale = 100 / abs(float(e.terms.scores[pairs].mean()))
  worth = {}
  for name in tqdm.tqdm(e.named, desc="attributes", unit="ranking", disable=None):
    deletion, insertion = attribute_effects.measure(
      pairs, e.named[name][pairs], e.terms, e.present, e.test.types,
      count=representatives,
    )  # fmt: skip
    worth[name] = np.stack([deletion, insertion]) * scale
  base = worth[BASELINE].mean(axis=0)
  rows = []
  for name, (deletion, insertion) in worth.items():
    phi = e.tuned.phi.get(name)
    both = (deletion + insertion) / 2
    rows.append((
      name,
      "–" if phi is None else " ".join(f"{weight:.2f}" for weight in phi),
      e.interval(pairs, deletion),
      e.interval(pairs, insertion),
      "–" if name == BASELINE else e.interval(pairs, both - base),
      e.interval(pairs, 100 * e.present[e.terms.queries[pairs], e.named[name][pairs]]),
    ))  # fmt: skip
  return Table(
    title="Attribute insertion and deletion",
    note=(
      f"The attribute ranked first for {len(pairs)} pairs that match. Deletion: how much of the"
      " score is lost with the images most like the query that lack the attribute, in % of the mean"
      " score; insertion: how much is gained from those that lack it to those that have it, none of"
      " them the query; both 0 where the query lacks it. Higher is better for both. 95 % bootstrap"
      " intervals over queries; the comparison is paired. φ weighs confidence, map fit, prior and"
      " sensitivity; chosen on validation pairs."
    ),
    columns=(
      "ranked by", "φ", "deletion ↑", "insertion ↑", "mean of both, more than by confidence",
      "query has it, %",
    ),
    rows=tuple(rows),
    best=("", "", "high", "high", "high", ""),
  )  # fmt: skip


def _true_reasons(e: Evaluation, truth: pathlib.Path) -> tuple[np.ndarray, list[set[int]]]:
  """Matching pairs whose query shows why the outfit was drawn to match, and those attributes."""
  rules = json.loads((truth / "rules.json").read_text())
  full = json.loads((truth / "attributes.json").read_text())
  names = {name: index for index, name in enumerate(e.test.attribute_names)}
  groups = collection_lib.groups_of(e.test)
  pairs, reason = [], []
  for pair in e.matching:
    q, r = int(e.terms.queries[pair]), int(e.terms.references[pair])
    shared = set(groups[q]) & set(groups[r])
    rule = {a for g in shared for a in rules[e.test.group_names[g]]["attributes"]}
    both = set(full[e.test.ids[q]]) & {names[a] for a in rule if a in names}
    if both:
      pairs.append(pair)
      reason.append(both)
  return np.asarray(pairs, int), reason


def ceilings_table(
  e: Evaluation, pairs: np.ndarray, reason: Sequence[set[int]], representatives: int
) -> Table:
  """Insertion and deletion of what a ranking could name at best, beside what it names.

  Args:
    pairs: that match, whose true reasons are known.
    reason: attributes of each pair.
    representatives: images that stand in.
  """
  measure = functools.partial(
    attribute_effects.measure, terms=e.terms, present=e.present, kinds=e.test.types,
    count=representatives,
  )  # fmt: skip
  scale = 100 / abs(float(e.terms.scores[e.matching].mean()))

  def of(candidates: Sequence[Sequence[int]], best: bool) -> np.ndarray:
    """Deletion and insertion [2 p], of the best of each pair's candidates or their mean."""
    out = np.full((2, len(pairs)), np.nan)
    for index, (pair, attributes) in enumerate(zip(pairs, candidates, strict=True)):
      found = np.stack(measure(np.full(len(attributes), pair), np.asarray(attributes, int)))
      found = found[:, np.isfinite(found).all(axis=0)]
      if found.size:
        out[:, index] = found[:, found.sum(axis=0).argmax()] if best else found.mean(axis=1)
    return scale * out

  has = [np.flatnonzero(e.present[q]).tolist() for q in e.terms.queries[pairs]]
  worth = {
    name: of(e.named[name][pairs, None].tolist(), best=True) for name in (BASELINE, trained.WHOLE)
  }
  worth["the true reason"] = of([sorted(attributes) for attributes in reason], best=False)
  worth["the best of those that the query has"] = of(has, best=True)
  base = worth[BASELINE].mean(axis=0)
  rows = [
    (
      name, e.interval(pairs, deletion), e.interval(pairs, insertion),
      "–" if name == BASELINE else e.interval(pairs, (deletion + insertion) / 2 - base),
    )
    for name, (deletion, insertion) in worth.items()
  ]  # fmt: skip
  return Table(
    title="What attribute insertion and deletion could be",
    note=(
      f"As above, for {len(pairs)} pairs whose reason is known. The true reason: of the attributes"
      " by which the outfit was drawn and that the query has, their mean. The best: chosen by the"
      " same measure, so that part of it is luck. What lies between them and a ranking is the"
      " ranking's."
    ),
    columns=("named", "deletion ↑", "insertion ↑", "mean of both, more than by confidence"),
    rows=tuple(rows),
  )


def _truth_tables(e: Evaluation, folder: str, representatives: int) -> list[Table]:
  """Agreement with what is known of outfits that were drawn."""
  truth = files.at(folder) if folder else None
  if truth is None or not (truth / "rules.json").exists():
    return []
  full = json.loads((truth / "attributes.json").read_text())
  pairs, reason = _true_reasons(e, truth)
  if not len(pairs):
    return []
  masks = {
    q: outfits_drawn.read_truth(truth, e.test.ids[q]) for q in np.unique(e.terms.queries[pairs])
  }
  rows = []

  def right(attributes: np.ndarray) -> np.ndarray:
    return 100.0 * np.array([a in why for a, why in zip(attributes[pairs], reason, strict=True)])

  base = right(e.named[BASELINE])
  for name, attributes in e.named.items():
    chosen, hits = attributes[pairs], right(attributes)
    has = 100.0 * np.array([
      a in full[e.test.ids[q]] for a, q in zip(chosen, e.terms.queries[pairs], strict=True)
    ])  # fmt: skip
    places = np.full((2, len(pairs)), np.nan)
    for index, (pair, a) in enumerate(zip(pairs, chosen, strict=True)):
      found = masks[int(e.terms.queries[pair])]
      if a in found:
        places[:, index] = _place(e.terms.activation(pair, a), found[a])
    rows.append((
      name, e.interval(pairs, hits), "–" if name == BASELINE else e.interval(pairs, hits - base),
      e.interval(pairs, has), e.interval(pairs, 100 * places[0]),
      e.interval(pairs, 100 * places[1]),
    ))  # fmt: skip
  named = Table(
    title="Agreement with the true reason",
    note=(
      f"{len(pairs)} pairs that match for a reason which the query shows: an attribute that all of"
      " the outfit has. How often the attribute ranked first is one of the reason's, and is the"
      " query's at all; and whether its activation map lies on its true pixels, where the query has"
      " it. The reason is what the outfit was drawn by: what the model goes by may be another."
    ),
    columns=(
      "ranked by",
      "is the reason, %",
      "more than by confidence",
      "query truly has it, %",
      "pointing game, %",
      "mass inside, %",
    ),
    rows=tuple(rows),
    best=("", "high", "high", "", "", ""),
  )
  rows = []
  seen = {
    "saliency map": e.terms.saliency[pairs],
    "an even map": np.ones_like(e.terms.saliency[pairs]),
  }
  for name, maps in seen.items():
    values = np.full((2, len(pairs)), np.nan)
    for index, (pair, why) in enumerate(zip(pairs, reason, strict=True)):
      found = masks[int(e.terms.queries[pair])]
      union = [found[a] for a in why if a in found]
      if union:
        values[:, index] = _place(maps[index], np.any(union, axis=0))
    rows.append((name, e.interval(pairs, 100 * values[0]), e.interval(pairs, 100 * values[1])))
  where = Table(
    title="Saliency maps on the true pixels",
    note="Of the same pairs, the pixels of the reason's attributes in the query.",
    columns=("map", "pointing game, %", "mass inside, %"),
    rows=tuple(rows),
  )
  return [ceilings_table(e, pairs, reason, representatives), named, where]


def _place(map_: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
  """Pointing game and mass inside of a map on a mask [h w]."""
  mask = quality.middle_square(mask)[None]
  large = resampling.enlarge(np.asarray(map_, np.float32)[None], mask.shape[1:])
  return quality.pointing_game(large, mask)[0], quality.mass_inside(large, mask)[0]


def _recognition_table(models: dict[str, pathlib.Path]) -> Table | None:
  """What the attribute models in folders know, as their own job measured it."""
  found = {
    name: run_folder.read_json(folder / "finished.json")
    for name, folder in models.items()
    if run_folder.is_finished(folder)
  }
  if not found:
    return None
  columns, rows = list(next(iter(found.values()))["test"]), []
  for name, figures in found.items():
    values = [figures["test"].get(c, float("nan")) for c in columns]
    rows.append((name, *(Interval(value, digits=3) for value in values)))
  chance = next(iter(found.values()))["test_chance"]
  rows.append(("chance", *(Interval(chance[c], digits=3) for c in columns)))
  return Table(
    title="Attribute recognition",
    note="The attribute model on the test split, means over attributes.",
    columns=("attribute model", *(c.replace("_", " ") for c in columns)),
    rows=tuple(rows),
  )


# --- what costs passes ----------------------------------------------------------------------------


def _measure(work: Sequence[tuple[pathlib.Path, Callable[[], dict[str, np.ndarray]]]]) -> None:
  """Leaves on disk what needs passes of a model, a file each, unless it is there."""
  for path, function in tqdm.tqdm(
    processes.share(work, "evaluate"), total=-(-len(work) // processes.count()),
    desc="evaluating", unit="part", disable=None if processes.is_first() else True,
  ):  # fmt: skip
    if npz.read_arrays(path) is None:
      npz.write_arrays(path, function())


def _read_part(path: pathlib.Path) -> dict[str, np.ndarray]:
  found = npz.read_arrays(path)
  if found is None:
    raise OSError(f"{path} is gone; run the same again")
  return found


def _by_types(e: Evaluation, pairs: np.ndarray) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
  """Types of query and reference, and which of the pairs are of them: one model's."""
  ends = e.terms.queries[pairs], e.terms.references[pairs]
  types = np.stack([e.test.types[rows] for rows in ends], axis=1)
  for query, reference in np.unique(types, axis=0):
    yield (int(query), int(reference)), np.flatnonzero((types == (query, reference)).all(axis=1))


def _photos(e: Evaluation, explainer: Explainer, pair: int) -> tuple[Photo, Photo]:
  query, reference = (
    Photo(e.test.ids[row], spaces.read_pixels(explainer.model, e.test, int(row)))
    for row in (e.terms.queries[pair], e.terms.references[pair])
  )
  return query, reference


# --- saliency maps --------------------------------------------------------------------------------


def _saliency_table(
  e: Evaluation, pairs: np.ndarray, cases: dict[Case, pathlib.Path], background: str, drawing: str
) -> Table | None:
  """Insertion and deletion of pixels, for every generator and both modes."""
  if not cases:
    return None
  rows, results = [], {case: _read_part(path) for case, path in cases.items()}
  floor = next((found for case, found in results.items() if case.is_random), None)
  for (spec, mode), found in results.items():
    difference = found["insertion"] - found["deletion"]
    above: Any = "–"
    if floor is not None and found is not floor:
      above = e.interval(pairs, difference - (floor["insertion"] - floor["deletion"]))
    rows.append((
      spec, {"fixed": "query", "both": "both"}[mode], round(float(found["passes"].mean())),
      e.interval(pairs, found["insertion"]), e.interval(pairs, found["deletion"]),
      e.interval(pairs, difference), above,
    ))  # fmt: skip
  return Table(
    title="Saliency insertion and deletion",
    note=(
      f"{len(pairs)} pairs, half of them matching. AUC × 100 of the score while pixels are shown or"
      f" hidden by saliency, on a {background} background, each curve from 0 to 1; the"
      f" last column is paired. Maps of hard-edged cells are {_DRAWN[drawing]}."
    ),
    columns=(
      "generator", "perturbed", "passes", "insertion ↑", "deletion ↓", "difference ↑",
      "more than random",
    ),
    rows=tuple(rows),
    best=("", "", "", "high", "low", "high", "high"),
  )  # fmt: skip


def _make_generator(case: Case, fill: str | None, key: int, model: Model) -> Explainer:
  name, options = parse_generator(case.spec)
  return Explainer(model, design=name, mode=case.mode, key=key, **{"fill": fill, **options})


def measure_curves(
  e: Evaluation, pairs: np.ndarray, model_of: Callable[[int, int], Model],
  make: Callable[[Model], Explainer], background: str, drawing: str,
) -> dict[str, np.ndarray]:  # fmt: skip
  """AUCs and passes of one generator, each [p]."""
  out: dict[str, np.ndarray] = {
    k: np.zeros(len(pairs)) for k in ("insertion", "deletion", "passes")
  }
  for types, chosen in _by_types(e, pairs):
    explainer = make(model_of(*types))
    photos = [_photos(e, explainer, pair) for pair in pairs[chosen]]
    explanations = explainer.explain_pairs(photos)
    curves = insertion_deletion(explainer, explanations, background=background, drawing=drawing)
    for kind, values in areas(curves).items():
      out[kind][chosen] = values
    out["passes"][chosen] = [x.encoder_passes for x in explanations]
  return out


# --- sanity ---------------------------------------------------------------------------------------


def _sanity_tables(
  e: Evaluation, pairs: np.ndarray, layers: dict[str, pathlib.Path], index_folder: pathlib.Path,
  seed: int,
) -> list[Table]:  # fmt: skip
  """What becomes of maps and attributes when model, reference or labels are replaced."""
  if not len(pairs):
    return []
  terms, phi = e.terms.terms.at(pairs), e.tuned.weights
  rows = []

  def compare(what: str, maps: np.ndarray, replaced: ranking.Terms) -> None:
    correlation = sanity_checks.rank_correlations(e.terms.saliency[pairs], maps)
    named = ranking.totals(replaced, phi, e.tuned.calibration).argmax(axis=1)
    changed = 100.0 * (named != e.named[trained.WHOLE][pairs])
    rows.append((what, e.interval(pairs, correlation, 2), e.interval(pairs, changed, 0)))

  def with_maps(maps: np.ndarray, queries: np.ndarray, references: np.ndarray) -> ranking.Terms:
    """The terms with other maps and embeddings; concepts as they were."""
    positions = e.terms.positions[pairs]
    return terms._replace(
      map_fit=pairs_lib.fits(maps, e.terms.activations, positions, e.terms.covered),
      sensitivity=pairs_lib.sensitivities(
        e.terms.concepts, e.terms.spaces[pairs], queries, references
      ),
    )

  for layer, path in layers.items():
    found = _read_part(path)
    what = f"model destroyed from the output to {layer}" if layer else "nothing, measured again"
    replaced = with_maps(found["maps"], found["queries"], found["references"])
    compare(what, found["maps"], replaced)
  # The same query against the reference of another pair, from the index.
  index = index_arrays.read_index(index_folder)
  maps, others = e.terms.saliency[pairs].copy(), e.terms.references[pairs].copy()
  kinds = e.test.types
  for i, pair in enumerate(pairs):
    query, reference = int(e.terms.queries[pair]), int(e.terms.references[pair])
    same = (kinds[e.terms.references] == kinds[reference]) & (e.terms.references != reference)
    if same.any():
      others[i] = e.terms.references[np.flatnonzero(same)[pair % same.sum()]]
      position = int(np.searchsorted(index.queries, query))
      maps[i] = index_arrays.read_maps(index, position, [int(others[i])], e.terms.embeddings)[0]
  if (others != e.terms.references[pairs]).any():
    seen = e.terms.embedded(e.terms.queries[pairs], others)
    compare("another reference of its type", maps, with_maps(maps, *seen))
  # What the attribute model knows, under another attribute's name.
  order = np.random.default_rng(seed).permutation(terms.confidence.shape[1])
  shuffled = terms._replace(confidence=terms.confidence[:, order])
  compare("labels shuffled among attributes", e.terms.saliency[pairs], shuffled)
  table = Table(
    title="Sanity checks",
    note=(
      f"{len(pairs)} pairs that match. Spearman's correlation over cells of the saliency map with"
      " that of the model and pair as they are, and how often another attribute comes first. Layers"
      " are destroyed by putting their weights in random places."
    ),
    columns=("what is replaced", "correlation of maps", "other attribute, %"),
    rows=tuple(rows),
  )
  return [table]


def destroyed_variables(
  e: Evaluation, pairs: np.ndarray, model_of: Callable[[int, int], Model], layers: Sequence[str]
) -> dict[str, Any]:
  """Variables of the model as it is, '', and destroyed to each layer; nothing without pairs.

  Raises:
    ValueError: the model has no such layer.
  """
  for types, _ in _by_types(e, pairs):  # any: spaces share the variables
    params = model_of(*types).params
    start = params[0] if isinstance(params, tuple) else params  # see `spaces.model_in_space`
    return {"": start, **dict(sanity_checks.randomized(start, layers))}
  return {}


def measure_maps(
  e: Evaluation, pairs: np.ndarray, model_of: Callable[[int, int], Model],
  make: Callable[[Model], Explainer], variables: Any,
) -> dict[str, np.ndarray]:  # fmt: skip
  """Maps [p h w], embeddings [p d] of queries and references; of the model with other variables."""
  shape = e.terms.saliency.shape[1:]
  out: list[tuple[np.ndarray, ...]] = [()] * len(pairs)
  for types, chosen in _by_types(e, pairs):
    model = model_of(*types)
    params = (variables, *model.params[1:]) if isinstance(model.params, tuple) else variables
    explainer = make(dataclasses.replace(model, params=params))
    for index in chosen:
      explanation = explainer.explain(*_photos(e, explainer, int(pairs[index])))
      out[index] = (explanation.saliency.cells.reshape(shape), *(explanation.embeddings or ()))
  parts = (np.stack(part) for part in zip(*out, strict=True))
  return dict(zip(("maps", "queries", "references"), parts, strict=False))


# --- material for a study -------------------------------------------------------------------------


def _write_material(e: Evaluation, folder: pathlib.Path) -> None:
  """What simulate_study shows its subjects: maps and attributes under each condition."""
  conditions = {"random": FLOOR, "predicted": BASELINE, "sane": trained.WHOLE}
  arrays: dict[str, np.ndarray] = {
    "query_rows": e.terms.queries,
    "reference_rows": e.terms.references,
    "scores": e.terms.scores,
    "labels": e.terms.labels,
    "saliency": e.terms.saliency,
    "attribute_names": np.array(e.test.attribute_names),
  }
  for condition, method in conditions.items():
    chosen = e.named[method]
    arrays[f"attribute_{condition}"] = chosen
    arrays[f"activation_{condition}"] = e.terms.activations[e.terms.positions, :, :, chosen]
  npz.write_arrays(folder / "material.npz", arrays)
