"""Every command of the documents is one that the program takes, and the Python blocks compile.

A command is a line of a fenced block (sh, bash, shell, console, or no language and a command in
it), or `python ...` between backquotes. Here each is read as the program reads it: its files,
modules, job and settings exist, and the jobs' own checks pass. One command runs of each job that
no other test starts as a process, made small by SMALLER, and so do the README's Python blocks. With
SANE_JAX_ALL_COMMANDS=1 (.ci/full) all commands run as they are printed, and all pages' blocks, in
one folder that holds what they speak of; what can't run anywhere says why (NOT_RUN). A new command
needs no entry.
"""

import importlib.util
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
import urllib.request
from typing import NamedTuple

import numpy as np
import pytest
import study_export
from absl import flags
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from test_study_results import people, write_database
from test_whole_pipeline import SMALL, small_awa2

from sane_jax import main
from sane_jax.study import results as results_lib
from sane_jax.study.server import questions as questions_lib

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL = {"", "sh", "bash", "shell", "console"}
COMMAND = re.compile(r"(\$ )?(\w+=\S+ )*(python|sane_jax|pip|git|docker|curl|launch/\S+|mkdocs)\s")
TOOLS = {"cd", "curl", "docker", "git", "ls", "mkdir", "source", "unzip", "wget", ".ci/bounds"}
ALL = bool(os.environ.get("SANE_JAX_ALL_COMMANDS"))

# The networks of the paper are too large for the gate; nor is its data at hand: outfits drawn in
# its format, and photos in AwA2's layout, stand in the same places.
NETWORKS = tuple(
  f"--config.{section}.{field}"
  for section in ("similarity", "attributes")
  for field in ("stage_sizes=(1,1,1)", "block=basic", "width=8", "stem=small", "image_size=32")
)
PAPER = (
  *(f"--config.{f}" for f in SMALL if not f.startswith(("outfits.", "evaluation.layers"))),
  *NETWORKS, "--config.index.design=hadamard",
  "--config.index.num_masks=128", "--config.num_threads=2",
)  # fmt: skip


# One of each job that no other test starts as a process, and what makes it small.
GATE = (
  r"photos\.py --config\.query", r"generators\.py", r"benchmark\.py", r"job=study$",
  r"job=study_results",
)  # fmt: skip

# They run until they are stopped: here until their link answers.
SERVERS = re.compile(r"--config\.job=(serve|study)\b(?!_)|sane_jax serve ")

ALWAYS = (  # any port that is free; nowhere as printed, where the data is not to be had
  (r"--config\.job=serve\b|sane_jax serve ", ("--config.serve.port=0",)),
  (r"--config\.job=study\b(?!_)", ("--config.study.port=0",)),
  (r"--config=configs/polyvore\.py(?!.*job=convert_weights)", PAPER),
  (r"--config=configs/awa2\.py", PAPER),
)  # fmt: skip
SMALLER = (
  (r"configs/photos\.py",
   ("--config.image_size=64", "--config.metrics=False", "--config.num_masks=128")),
  (r"configs/generators\.py",
   ("--config.generators=('random','hadamard:num_masks=128')", "--config.max_pairs=2",
    "--config.image_size=64", "--config.model=my_module:my_function")),
  (r"configs/benchmark\.py",
   ("--config.parts=('index',)", "--config.index_images=200", "--config.repeats=2")),
)  # fmt: skip
NOT_RUN = {
  "python -m pytest": "it is what runs this",
  "python -m mkdocs serve": "serves until it is stopped; the site is built by the gate",
  "python -m fuzz.run --count 10000 --out FILE": "runs in tests/; tests/fuzz/test_fuzz.py",
  "python -m fuzz.atheris_images": "runs in tests/, and needs the extra `fuzz`",
}

# Pages whose Python does not run here.
NO_PYTHON = {
  "text.md": "loads weights from a hub; docs/examples/text_reference.py is the same with its own",
}

# What makes Python blocks small enough for the gate, where they are not run as printed.
SMALLER_PYTHON = (
  'load_model("efficientnet_lite0")',
  'load_model("efficientnet_lite0", image_size=64)',
)

# What a page's Python blocks take for granted: names, by page.
GIVEN = {
  "README.md": """
import jax.numpy as jnp, numpy as np, torch
import sane_jax
gallery, vector = ["b.jpg", "c.jpg"], np.arange(1280.0)
other_model = sane_jax.load_model("efficientnet_lite0", image_size=112)
params = np.ones((3, 4), "float32")
def embed_fn(params, images): return images.mean((1, 2)) @ params + 1
fn = lambda images: images.mean(axis=(1, 2)) + 1
module = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten())
""",
}  # fmt: skip


class Command(NamedTuple):
  page: str
  line: int
  text: str  # as printed, on one line

  def __str__(self):
    return f"{self.page}:{self.line} {self.text[-60:]}"


def fenced(text):
  """(line, language, body) of each fenced block."""
  for match in re.finditer(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", text, re.M | re.S):
    yield text[: match.start()].count("\n") + 1, match[2], match[3]


def shell_commands(page):
  text = page.read_text()
  for line, language, body in fenced(text):
    lines = body.replace("\\\n", " ").splitlines()
    if language not in SHELL or not (language or any(COMMAND.match(s.strip()) for s in lines)):
      continue
    for one in lines:
      one = re.sub(r"\s+#\s.*$", "", one.strip())
      if language == "console" and not one.startswith("$ "):
        continue  # what the command answers
      for part in one.removeprefix("$ ").split(" && "):
        if part and not part.startswith("#"):
          yield Command(page.name, line, " ".join(part.split()))
  prose = re.sub(r"^( *)```.*?^\1```", lambda m: "\n" * m[0].count("\n"), text, flags=re.M | re.S)
  for match in re.finditer(r"`(python [^`]+)`", prose):
    yield Command(page.name, prose[: match.start()].count("\n") + 1, " ".join(match[1].split()))


COMMANDS = [command for page in PAGES for command in shell_commands(page)]
PIP = [c for c in COMMANDS if re.match(r"(python -m )?pip install ", c.text)]


# Once each: a command that two pages print is the same command.
DISTINCT = list({c.text: c for c in COMMANDS if c not in PIP}.values())


def chosen():
  """All that can run, with SANE_JAX_ALL_COMMANDS; else the first that a pattern of GATE finds."""
  if ALL:
    return [command for command in DISTINCT if command.text not in NOT_RUN]
  return [next(c for c in DISTINCT if re.search(pattern, c.text)) for pattern in GATE]


def needs(text):
  """Marks of what a text needs that is an extra."""
  found = [("onnx", r"\.onnx\b|from_onnx"), ("torch", r"\.pth\b|from_torch|import torch")]
  return [getattr(pytest.mark, name) for name, pattern in found if re.search(pattern, text)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder with a checkout's folders and the files that the documents speak of."""
  from skimage import data

  folder = tmp_path_factory.mktemp("reader")
  for name in ("configs", "docs", "benchmarks", "launch", "sane_jax", "tests"):
    (folder / name).symlink_to(ROOT / name)
  right, left, _ = data.stereo_motorcycle()
  pictures = {"a": right, "b": left, "c": data.chelsea(), "d": data.coffee(), "e": data.astronaut()}
  (folder / "photos").mkdir()
  for name, pixels in pictures.items():
    image = Image.fromarray(pixels)
    image.thumbnail((320, 320))
    image.save(folder / f"{name}.jpg")
    image.save(folder / f"photos/{name}.jpg")
    # Six more like each: attributes are learned from three with and three without, or more.
    for i in range(3):
      image.crop((4 * i + 4, 4, image.width - 4, image.height - 4 * i - 4)).save(
        folder / f"photos/{name}{i}.jpg"
      )
  rows = ["file,motor,animal"]
  for path in sorted((folder / "photos").glob("*.jpg")):
    rows.append(f"{path.name},{int(path.name[0] in 'ab')},{int(path.name[0] == 'c')}")
  (folder / "photos/attributes.csv").write_text("\n".join(rows) + "\n")
  (folder / "pairs.txt").write_text("a.jpg b.jpg\nc.jpg d.jpg 0\n")
  (folder / "FOLDER").symlink_to(folder / "photos")
  (folder / "clothing").symlink_to(folder / "photos")
  (folder / "clothing_pairs.txt").write_text("a.jpg b.jpg 1\nc.jpg d.jpg 0\n")
  (folder / "my_module.py").write_text(
    "import sane_jax\n\n"
    "def my_function(image_size):\n"
    "  return sane_jax.from_numpy(lambda x: x.mean(axis=(1, 2)) + 1, image_size=image_size)\n"
  )
  return folder


def onnx_model(path):
  """Mean colours of 4 x 4 regions of 64 x 64 pixels, as an ONNX file."""
  onnx = pytest.importorskip("onnx")
  helper, kind = onnx.helper, onnx.TensorProto.FLOAT
  nodes = [
    helper.make_node(
      "AveragePool", ["images"], ["pooled"], kernel_shape=[16, 16], strides=[16, 16]
    ),
    helper.make_node("Flatten", ["pooled"], ["embeddings"]),
  ]
  graph = helper.make_graph(
    nodes, "colours", [helper.make_tensor_value_info("images", kind, ["b", 3, 64, 64])],
    [helper.make_tensor_value_info("embeddings", kind, ["b", 48])],
  )  # fmt: skip
  model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
  path.write_bytes(model.SerializeToString())


def torch_checkpoint(path):
  """torchvision's ResNet-50, its names and shapes, with random values."""
  torch = pytest.importorskip("torch")
  rng, state = np.random.default_rng(0), {}

  def conv(name, cout, cin, k):
    state[f"{name}.weight"] = torch.tensor(
      rng.normal(0, (2 / (cin * k * k)) ** 0.5, (cout, cin, k, k)).astype(np.float32)
    )

  def norm(name, c):
    for part, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
      state[f"{name}.{part}"] = torch.full((c,), float(value))

  conv("conv1", 64, 3, 7)
  norm("bn1", 64)
  cin = 64
  for stage, (blocks, c) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True), 1):
    for block in range(blocks):
      name = f"layer{stage}.{block}"
      for i, (cout, c0, k) in enumerate(((c, cin, 1), (c, c, 3), (4 * c, c, 1)), 1):
        conv(f"{name}.conv{i}", cout, c0, k)
        norm(f"{name}.bn{i}", cout)
      if block == 0:
        conv(f"{name}.downsample.0", 4 * c, cin, 1)
        norm(f"{name}.downsample.1", 4 * c)
      cin = 4 * c
  state["fc.weight"], state["fc.bias"] = torch.zeros(1000, 2048), torch.zeros(1000)
  torch.save(state, path)


@pytest.fixture(scope="module")
def prepared(place, request):
  """Makes, once and when a command needs it, what other commands left."""
  done = set()

  def prepare(text):
    if ALL and re.search(r"configs/(polyvore|demo)\.py|runs/demo", text) and "demo" not in done:
      done.add("demo")
      run(place, "python -m sane_jax.main --config=configs/demo.py")
      # The drawn outfits, in the data set's own format, in the place of the download.
      (place / "data").mkdir(exist_ok=True)
      (place / "data/polyvore_outfits").symlink_to(place / "runs/demo/drawn/polyvore_outfits")
    if "runs/demo/similarity" in text and "demo" not in done:
      done.add("demo")
      demo = place / "runs/demo"
      demo.mkdir(parents=True, exist_ok=True)
      for part in ("similarity", "attributes", "concepts", "ranking"):
        (demo / part).symlink_to(request.getfixturevalue("whole") / "runs/synthetic" / part)
    if "model.onnx" in text and "onnx" not in done:
      done.add("onnx")
      onnx_model(place / "model.onnx")
    if "resnet50.pth" in text and "torch" not in done:
      done.add("torch")
      torch_checkpoint(place / "resnet50.pth")
    if "job=serve" in text and "index" not in done:
      done.add("index")
      build = "python -m sane_jax.main --config=configs/photos.py --config.photos=photos"
      run(place, f"{build} --config.job=build_index")
    if re.search(r"job=study(_results)?\b", text):
      folder = place / "runs/demo/study"
      if "study" not in done:
        done.add("study")  # as simulate_study leaves it
        study_export.export(folder / "export")
      for path in folder.glob("answers.sqlite*"):  # each has its own
        path.unlink()
      if "job=study_results" in text:
        answered(folder)
    if "configs/awa2.py" in text and "awa2" not in done:
      done.add("awa2")
      small_awa2(place)

  return prepare


def answered(folder):
  """As people leave it."""
  asked = questions_lib.read_export(folder / "export")
  kinds = {item: kind for kind, items in asked.items.items() for item in items}
  subjects, rows = people(results_lib.read_key(folder / "export/key"), kinds, 25)
  write_database(folder / "answers.sqlite", subjects, rows, asked.fingerprint)


def quoted(fields):
  return " ".join(f'"{field}"' for field in fields)


def surroundings(folder):
  """What a reader's shell has: python, the package, the folder's own modules."""
  tools = folder / ".bin"
  tools.mkdir(exist_ok=True)
  for name, options in (("python", ""), ("sane_jax", "-m sane_jax ")):
    (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {options}"$@"\n')
    (tools / name).chmod(0o755)
  environment = os.environ | {
    "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}",
    "MPLBACKEND": "agg",
  }  # fmt: skip
  return environment


def run_server(folder, text):
  """Runs a line until it prints a link, and the link answers; then stops it as Ctrl-C does."""
  child = subprocess.Popen(
    ["bash", "-euo", "pipefail", "-c", f"exec {text}"], cwd=folder, env=surroundings(folder),
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
  )  # fmt: skip
  said = []
  try:
    for line in child.stdout:
      said.append(line)
      if link := re.search(r"https?://\S+", line):
        if "//127." in link[0]:  # not a name that only what stands before the server has
          with urllib.request.urlopen(link[0], timeout=60) as page:
            assert page.status == 200
        child.send_signal(signal.SIGINT)
        break
    said.append(child.communicate(timeout=60)[0])
  finally:
    child.kill()
  assert re.search(r"https?://", "".join(said)), "".join(said)[-3000:]
  assert "Traceback" not in "".join(said), "".join(said)[-3000:]


def run(folder, text, timeout=290):
  """Runs a line in a shell there; its output. Fails with what it said."""
  done = subprocess.run(
    ["bash", "-euo", "pipefail", "-c", text], cwd=folder, env=surroundings(folder),
    capture_output=True, text=True, timeout=3600 if ALL else timeout,
  )  # fmt: skip
  assert done.returncode == 0, f"{text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
  return done.stdout


def as_run(text):
  """A command with what lets it run here, and makes it small enough for the gate."""
  for pattern, fields in ALWAYS if ALL else (*ALWAYS, *SMALLER):
    if re.search(pattern, text):
      return f"{text} {quoted(fields)}"
  return text


@pytest.mark.timeout(4000 if ALL else 300)
@pytest.mark.parametrize(
  "command", [pytest.param(c, id=str(c), marks=needs(c.text)) for c in chosen()]
)
def test_a_documented_command_runs(place, prepared, command):
  prepared(command.text)
  (run_server if SERVERS.search(command.text) else run)(place, as_run(command.text))


@pytest.mark.parametrize("command", DISTINCT, ids=str)
def test_a_documented_command_is_one_that_the_program_takes(place, monkeypatch, command):
  monkeypatch.chdir(place)
  words = [word for word in shlex.split(command.text) if not re.fullmatch(r"[A-Z_]+=.*", word)]
  if words[0] == "sane_jax":
    words = ["python", "-m", *words]
  if words[0] != "python":
    assert words[0] in TOOLS or (ROOT / words[0]).is_file(), words[0]
  elif words[1] != "-m":
    assert (ROOT / words[1]).is_file(), words[1]
  elif words[2] not in ("sane_jax.main", "sane_jax"):
    monkeypatch.syspath_prepend(ROOT / "tests")
    # mkdocs is in the extra `docs`, which not all that run the tests have.
    assert words[2] == "mkdocs" or importlib.util.find_spec(words[2]), words[2]
  else:
    config = as_parsed(words[2:])
    for job in config.jobs if config.job == "all" else config.job.split(","):
      assert job in main.JOBS
      importlib.import_module(f"sane_jax.jobs.{job}").check(config)


def as_parsed(argv):
  """The config that a command line makes; whoever parses next finds no flag of it."""
  try:
    main._parse(argv)
    return flags.FLAGS["config"].value
  finally:
    for name in [name for name in flags.FLAGS if re.match(r"config\b", name)]:
      delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()


@pytest.mark.parametrize("command", PIP, ids=str)
def test_a_documented_installation_names_what_exists(command):
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  extras = project["optional-dependencies"]
  known = {
    canonicalize_name(Requirement(line).name)
    for lines in (project["dependencies"], *extras.values())
    for line in lines
  }
  for word in re.sub(r"^(python -m )?pip install ", "", command.text).split():
    word = word.strip("'\"")
    if word.startswith("-"):
      continue
    if match := re.fullmatch(r"(?:\.|sane_jax)(?:\[([\w,]+)\])?", word):
      for extra in filter(None, (match[1] or "").split(",")):
        assert extra in extras, f"no extra {extra!r} in pyproject.toml"
    else:
      assert canonicalize_name(Requirement(word).name) in known, f"{word}: in no extra"


PYTHON = [page for page in PAGES if "```python" in page.read_text()]


@pytest.mark.parametrize("page", PYTHON, ids=lambda p: p.name)
def test_the_python_of_a_page_is_python(page):
  for line, language, body in fenced(page.read_text()):
    if language == "python":
      compile(body, f"{page.name}, line {line}", "exec")


@pytest.mark.timeout(4000 if ALL else 300)
@pytest.mark.parametrize(
  "page",
  [
    pytest.param(p, id=p.name, marks=needs(p.read_text()))
    for p in PYTHON
    if p.name not in NO_PYTHON and (ALL or p.name == "README.md")
  ],
)
def test_the_python_of_a_page_runs_from_top_to_bottom(place, prepared, page):
  blocks = [
    (line, body) for line, language, body in fenced(page.read_text()) if language == "python"
  ]
  prepared("".join(body for _, body in blocks))
  script = place / f"{page.stem}_blocks.py"
  parts = [GIVEN.get(page.name, "")]
  parts += [f"\n# {page.name}, line {line}\n{body}" for line, body in blocks]
  source = "".join(parts)
  if not ALL:
    assert SMALLER_PYTHON[0] in source
    source = source.replace(*SMALLER_PYTHON)
  script.write_text(source)
  run(place, f"python {script.name}")


NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.py"))


@pytest.mark.full  # as building the site does
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs_as_a_script(place, notebook):
  run(place, f"python docs/notebooks/{notebook.name}")


# --- the harness itself ---------------------------------------------------------------------------


def test_a_command_is_found_wherever_it_stands(tmp_path):
  page = tmp_path / "page.md"
  page.write_text(
    "Text with `python -m one`.\n\n```\npython -m two --a=b \\\n    --c=d  # why\n```\n\n"
    "```sh\nls && python three.py\n```\n\n```\nno command\n```\n\n```text\npython no.py\n```\n\n"
    "1. In a list:\n   ```console\n   $ python four.py\n   its answer\n   ```\n"
  )
  assert [c.text for c in shell_commands(page)] == [
    "python -m two --a=b --c=d", "ls", "python three.py", "python four.py", "python -m one",
  ]  # fmt: skip


def test_a_command_that_fails_fails(place):
  with pytest.raises(AssertionError, match="why"):
    run(place, "echo why && false")
  with pytest.raises(SystemExit, match="desing"):
    as_parsed(["main", f"--config={ROOT / 'configs/photos.py'}", "--config.desing=rise"])
  assert "config" not in flags.FLAGS


def test_exceptions_are_of_commands_that_are_documented():
  texts = {c.text for c in COMMANDS}
  assert {*NOT_RUN} <= texts
  for pattern in (*GATE, *(pattern for pattern, _ in (*ALWAYS, *SMALLER))):
    assert any(re.search(pattern, text) for text in texts), pattern
  assert {*GIVEN, *NO_PYTHON} <= {page.name for page in PAGES}
  assert shutil.which("bash")
