"""Job: explains pairs of a data set with the attribute that explains each best; one page of all."""

import contextlib
import hashlib
import json
import pathlib
from typing import Any

import tqdm

from sane_jax import report
from sane_jax.attributes import pairs as pairs_lib
from sane_jax.attributes import reader as attribute_reader
from sane_jax.attributes import spaces, trained
from sane_jax.datasets import load
from sane_jax.datasets.collection import Collection, Pair
from sane_jax.maps import measure
from sane_jax.maps.explainer import Explainer
from sane_jax.maps.explanation import Photo
from sane_jax.maps.tasks import check_design
from sane_jax.ops import streams
from sane_jax.report import saved as saved_views
from sane_jax.report import tables as tables_lib
from sane_jax.runs import files, processes
from sane_jax.runs import folder as run_folder
from sane_jax.runs.settings import check_range


def check(config: Any) -> None:
  """Raises ValueError for settings that can't be; reads no data and writes nothing."""
  load.check_data(config.data)
  settings = config.explain_matches
  check_range("explain_matches.num_pairs", settings.num_pairs, 1)
  check_design(settings.design, settings.num_masks, config.index.fill)


def run(config: Any) -> None:
  """Explains test pairs that match, drawn by the seed; no query twice.

  Writes WORKDIR/explain: index.html (the explanations, then the tables of evaluate where they are
  there), a PNG a pair, explanations.json. A pair that can't be explained is listed and the others
  are. Finished pairs are kept; the same command goes on from there. Several processes share the
  pairs; the first then writes the page of what all of them left on disk.
  """
  check(config)
  settings, workdir = config.explain_matches, files.at(config.workdir)
  test, pairs = pairs_lib.load_pairs(
    config.data, workdir, "test", limit=config.pairs.num_test, seed=config.seed
  )
  chosen = draw(pairs, settings.num_pairs, config.seed)
  folder = run_folder.writable_folder(workdir / settings.folder)
  ranking = config.ranking
  model = pairs_lib.check_model(workdir, config.index, ["train"])
  trained.check_chain(workdir, ranking.concepts, ranking.folder, ranking.attributes)
  attributes = trained.read_trained(
    workdir, test, attributes=ranking.attributes, concepts=ranking.concepts, tuned=ranking.folder
  )
  source = spaces.model_source(workdir, config.index.model)
  model_of = spaces.model_in_space(source, config.index.image_size, test)
  sources = hashlib.sha256(model.encode())
  for path in (
    workdir / ranking.attributes / attribute_reader.MODEL, workdir / ranking.folder / "ranking.npz",
    workdir / ranking.concepts / "concepts.npz",
  ):  # fmt: skip
    sources.update(run_folder.hash_file(path).encode())

  explainers: dict[tuple[int, int], Explainer] = {}

  def explained(pair: Pair) -> tuple[report.PairView, dict[str, Any]]:
    kinds = (int(test.types[pair.query]), int(test.types[pair.reference]))
    if kinds not in explainers:
      explainers[kinds] = Explainer(
        model_of(*kinds), design=settings.design, num_masks=settings.num_masks,
        fill=config.index.fill or None, key=config.seed,
        attributes=attributes.ranker(int(test.conditions[kinds])),
      )  # fmt: skip
    return _explained(test, pair, explainers[kinds], folder, sources.hexdigest())

  if processes.count() > 1:
    for pair in processes.share(chosen, "explain_matches"):
      with contextlib.suppress(Exception):  # the first process meets it again, and lists it
        explained(pair)
    if not processes.is_first():
      return
  views, records, failures = [], [], []
  for number, pair in enumerate(tqdm.tqdm(chosen, desc="explaining", unit="pair", disable=None), 1):
    names = (test.ids[pair.query], test.ids[pair.reference])
    try:
      view, record = explained(pair)
    except Exception as error:  # whatever it is, it costs this pair alone
      known = isinstance(error, ValueError | OSError)
      why = str(error) if known else f"{type(error).__name__}: {error}"
      failures.append((" and ".join(names), why))
      continue
    stem = f"{number:03d}_{names[0]}_{names[1]}"
    files.write_bytes(folder / f"{stem}.png", report.figure_png(view))
    views.append(view)
    records.append({"id": stem, **record})
  document = {
    "pairs": len(chosen),
    "explanations": records,
    "failures": [{"what": what, "why": why} for what, why in failures],
  }
  text = json.dumps(document, indent=1, allow_nan=False) + "\n"
  files.write_bytes(folder / "explanations.json", text.encode())
  evaluation = workdir / config.evaluation.folder / "tables.json"
  tables = []
  if evaluation.exists():
    tables = [tables_lib.from_json(table) for table in run_folder.read_json(evaluation)]
  html = report.render_page(
    views, title="Why do these match?",
    subtitle=f"{test.name}: {len(views)} pairs that match, drawn at random",
    failures=failures, tables=tables,
  )  # fmt: skip
  files.write_bytes(folder / "index.html", html.encode())
  for what, why in failures:
    print(f"  not explained: {what}: {why}")
  if not views:
    raise ValueError(f"no pair could be explained. {'; '.join(why for _, why in failures[:3])}")
  print(f"explain_matches: {len(views)} pairs. Open {folder / 'index.html'}")


def draw(pairs: tuple[Pair, ...], count: int, seed: int) -> list[Pair]:
  """`count` of the pairs that match, no query twice, in the order of a draw by the seed."""
  matching = [pair for pair in pairs if pair.label]
  out: dict[int, Pair] = {}
  for index in streams.rng(seed, streams.EXPLAINED).permutation(len(matching)):
    out.setdefault(matching[index].query, matching[index])
  return list(out.values())[:count]


def _explained(
  test: Collection, pair: Pair, explainer: Explainer, folder: pathlib.Path, sources: str
) -> tuple[report.PairView, dict[str, Any]]:
  """A pair's view and record: from disk if it was finished before, else measured and kept."""
  query, reference = (
    Photo(test.ids[row], spaces.read_pixels(explainer.model, test, row))
    for row in (pair.query, pair.reference)
  )
  identity = {
    "settings": explainer.settings,
    "version": measure.VERSION,
    "sources": sources,
    "photos": [hashlib.sha256(p.pixels.tobytes()).hexdigest() for p in (query, reference)],
    "names": [query.name, reference.name],
    "sentence": "shares of mass",
  }
  text = json.dumps(identity, sort_keys=True)
  path = folder / "pairs" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"
  view = saved_views.load_view(path)
  record_path = path.with_suffix(".json")
  if view is not None and record_path.exists():
    return view, run_folder.read_json(record_path)
  explanation = explainer.explain(query, reference)
  kinds = sorted({test.type_names[test.types[row]] for row in (pair.query, pair.reference)})
  titles = [test.titles[row] for row in (pair.query, pair.reference)]
  view = explanation.view()._replace(
    kind=f"{' and '.join(kinds)}{': ' if any(titles) else ''}{' · '.join(filter(None, titles))}"
  )
  record = {k: v for k, v in explanation.record().items() if k not in ("seconds", "settings")}
  # `share` and `unexplained` are of squared length, as ever; `mass` is what the sentence says.
  joint, under = explanation.explained_by.joint, explanation.explained_by.under.tolist()
  record["joint"] = [
    {"name": explanation.attributes[i].name, "share": share, "mass": mass, "mass_even_map": even}
    for i, share, (mass, even) in zip(joint.chosen, joint.shares, under, strict=True)
  ]
  record["unexplained"] = 1 - joint.explained
  record["mass_elsewhere"] = 1 - sum(mass for mass, _ in under)
  saved_views.save_view(path, view)
  files.write_bytes(record_path, json.dumps(record).encode())
  return view, record
