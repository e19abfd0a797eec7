"""Who may import whom, by folder: total, and without exceptions."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "sane_jax"
# Each room may import those of the rows above its own, and itself; nothing beside it in its row.
LAYERS = (
  {"ops"},
  {"runs"},
  {"report", "models", "datasets"},
  {"training", "maps"},
  {"attributes"},
  {"web"},
  {"viewer", "study"},
  {"jobs"},
  {"main"},
)
ROOMS = set().union(*LAYERS)


def imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer_of(name):
  return next(i for i, layer in enumerate(LAYERS) if name in layer)


def modules():
  return [p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.name == "main.py"]


def room_of(path):
  return path.relative_to(PACKAGE).with_suffix("").parts[0]


def test_every_file_is_in_a_room():
  assert {room_of(path) for path in modules()} == ROOMS
  assert {p.name for p in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py", "main.py"}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
  own = room_of(path)
  for name in imports(path):
    if not name.startswith("sane_jax."):
      continue
    other = name.split(".")[1]
    if other == own and own != "jobs":  # jobs never import each other
      continue
    assert layer_of(other) < layer_of(own), f"{path.relative_to(PACKAGE)} imports {name}"


def test_config_stops_at_the_jobs():
  for path in modules():
    if room_of(path) not in ("jobs", "main"):
      assert not re.search(r"(?<!jax\.)(?<!--)\bconfig\.|ml_collections", path.read_text()), path


def test_where_a_path_leads_is_decided_in_files():
  """A setting taken for a path of this machine would make a folder 's3:'; `files.at` asks first."""
  local = re.compile(
    r"(?<![.\w])(pathlib\.)?Path\((?!__file__)|os\.(path\.(exists|isfile)|walk|scandir|listdir)\("
    r"|np\.(load|savez?(_compressed)?)\((path|folder|file)\b"
  )
  # Those ask themselves, or their files are of this machine whatever the settings say.
  but = {
    "files", "benchmark", "records", "efficientnet_lite0", "index_arrays",
    "export", "onnx_file",
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


@pytest.mark.parametrize(
  "module", ["sane_jax", "sane_jax.jobs.explain", "sane_jax.jobs.build_index"]
)
def test_what_is_slow_to_start_and_seldom_needed_is_not_imported(module):
  slow = "grain sklearn scipy.stats skimage matplotlib pandas torch tensorflow"
  code = f"import sys, {module}; print([n for n in {slow.split()} if n in sys.modules])"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == "[]"
