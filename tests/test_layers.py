"""Who may import whom: structs < ops < models, datasets, report < shared < web < jobs < main."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "sane_jax"
JOBS = {
  "explain",
  "evaluate",
  "benchmark",
  "benchmark_input",
  "draw_outfits",
  "convert_weights",
  "train_similarity",
  "build_index",
  "train_attributes",
  "discover_attributes",
  "fit_concepts",
  "tune_ranking",
  "explain_matches",
  "compare_generators",
  "compare_models",
  "simulate_study",
  "study",
  "serve",
  "plan_study",
  "study_results",
}
SHARED = {
  "engine", "explanation", "explainer", "metrics", "checkpoint", "retrieval", "training",
  "sharding", "recognition", "effect_index", "attribute_reader", "attribute_effects", "pair_terms",
  "concept_prior", "clustering", "forward_simulation", "ranker", "spaces", "sanity_checks",
  "photo_attributes", "explanation_index", "processes", "comparison", "study_statistics",
}  # fmt: skip
LAYERS = [
  {"hosts", "files"},
  {"ops"},
  {"models", "datasets", "report"},
  SHARED,
  {"web"},
  JOBS,
  {"main"},
]
# Two folders of one layer, and two jobs, do not know each other; but a job may use another's
# public pieces where they were made for it.
ALLOWED = {
  ("benchmark", "compare_generators"),
  ("build_index", "explain"),
  ("compare_models", "explain"),
  ("serve", "explain"),
  ("evaluate", "compare_generators"),
  ("benchmark_input", "train_similarity"),
}


def imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer_of(name):
  return next(i for i, layer in enumerate(LAYERS) if name in layer)


def modules():
  return [p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
  own = path.relative_to(PACKAGE).with_suffix("").parts[0]
  for name in imports(path):
    if not name.startswith("sane_jax."):
      continue
    other = name.split(".")[1]
    if other == own or (own, other) in ALLOWED:
      continue
    assert layer_of(other) <= layer_of(own), f"{own} imports {other}"
    if own not in SHARED:
      assert layer_of(other) < layer_of(own), f"{own} imports {other}, of its own layer"


def test_config_stops_at_the_jobs():
  for path in modules():
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if own not in JOBS | {"main"}:
      assert not re.search(r"(?<!jax\.)(?<!--)\bconfig\.|ml_collections", path.read_text()), path


def test_where_a_path_leads_is_decided_in_files():
  """A setting taken for a path of this machine would make a folder 's3:'; `files.at` asks first."""
  local = re.compile(
    r"(?<![.\w])(pathlib\.)?Path\((?!__file__)|os\.(path\.(exists|isfile)|walk|scandir|listdir)\("
    r"|np\.(load|savez?(_compressed)?)\((path|folder|file)\b"
  )
  # Those ask themselves, or their files are of this machine whatever the settings say.
  but = {
    "files", "benchmark", "records", "efficientnet_lite0", "explanation_index", "effect_index",
    "simulate_study", "model",
  }  # fmt: skip
  found = [
    f"{path.name}: {line.strip()}"
    for path in modules()
    for line in path.read_text().splitlines()
    if path.stem not in but and local.search(line)
  ]
  assert not found


def test_there_is_no_heap_of_odds_and_ends():
  assert not [p for p in ROOT.rglob("*util*.py") if ".venv" not in p.parts]


@pytest.mark.parametrize("module", ["sane_jax", "sane_jax.explain", "sane_jax.build_index"])
def test_what_is_slow_to_start_and_seldom_needed_is_not_imported(module):
  slow = "grain sklearn scipy.stats skimage matplotlib pandas torch tensorflow"
  code = f"import sys, {module}; print([n for n in {slow.split()} if n in sys.modules])"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == "[]"
