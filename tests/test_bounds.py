"""The locked set is one that pyproject.toml allows, and says where nothing comes from."""

import pathlib
import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parents[1]
LOCK = (ROOT / ".ci/locked.txt").read_text()


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_the_lock_satisfies_the_project(python):
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  locked = {}
  for line in re.findall(r"^[a-zA-Z0-9].*?(?= \\$)", LOCK, re.MULTILINE):
    pinned = Requirement(line.strip())
    environment = {"python_version": python, "python_full_version": f"{python}.5"}
    if pinned.marker is None or pinned.marker.evaluate(environment):
      locked[canonicalize_name(pinned.name)] = str(pinned.specifier).removeprefix("==")
  for text in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
    wanted = Requirement(text)
    found = locked.get(canonicalize_name(wanted.name))
    assert found is not None, f"{wanted.name} is not locked: run .ci/lock"
    assert wanted.specifier.contains(found, prereleases=True), f"{text} and {found}: run .ci/lock"


def test_every_package_has_hashes_and_no_place():
  assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}", LOCK)) > 500
  for block in re.split(r"\n(?=[a-zA-Z0-9])", LOCK.strip()):
    assert "--hash=sha256:" in block, block[:80]
  assert not re.search(r"https?://|file:|index-url| @ ", LOCK)
