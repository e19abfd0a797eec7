"""What a stranger gets: the wheel, installed where there is no checkout, explains two photos."""

import os
import pathlib
import subprocess
import sys
import sysconfig
import zipfile

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("hatchling", reason="the wheel is built by the extra `test`")

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  folder = tmp_path_factory.mktemp("wheel")
  command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
  subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
  return next(folder.glob("*.whl"))


def test_the_wheel_has_all_files_of_the_package(wheel):
  names = set(zipfile.ZipFile(wheel).namelist())
  package = {
    str(path.relative_to(ROOT))
    for path in (ROOT / "sane_jax").rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
  }
  configs = {f"sane_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
  assert {"sane_jax/py.typed", "sane_jax/web/base.css", *configs} <= names
  assert package <= names


def test_installed_from_the_wheel_two_photos_are_explained(wheel, tmp_path):
  """In a folder that holds two photos and nothing else, with nothing on PYTHONPATH."""
  subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, timeout=120)
  binaries = tmp_path / "venv/bin"
  install = [binaries / "pip", "install", "-q", "--no-deps", "--no-index", wheel]
  environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
  subprocess.run(install, check=True, timeout=120, env=environment)
  # The libraries of this environment, behind what was installed; an editable sane_jax is not seen.
  (site,) = (tmp_path / "venv/lib").glob("python*/site-packages")
  (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
  photos = tmp_path / "photos"
  photos.mkdir()
  rng = np.random.default_rng(0)
  for name in ("a.jpg", "b.jpg"):
    coarse = Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8))
    coarse.resize((80, 60)).save(photos / name)

  def sane_jax(*args):
    return subprocess.run(
      [binaries / "sane_jax", *args], cwd=photos, env=environment, capture_output=True, text=True,
      timeout=250,
    )  # fmt: skip

  done = sane_jax(
    "explain", "a.jpg", "b.jpg", "--config.image_size=64", "--config.num_masks=128",
    "--config.metrics=False",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert "why" in (photos / "runs/photos/explain/index.html").read_text().lower()
  (photos / "none").mkdir()
  done = sane_jax("build_index", "--config=configs/photos.py", "--config.photos=none")
  assert done.returncode == 0, done.stderr
  assert "nothing to measure: none: no photos in it" in done.stderr
  done = sane_jax("plan_study", "--config=configs/demo.py")  # a config that inherits from others
  assert done.returncode == 0, done.stderr
  assert "ask" in done.stdout
