"""The documents name only what exists."""

import pathlib
import re

import pytest

import sane_jax

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_configs_and_names_exist(page):
  text = page.read_text()
  for config in re.findall(r"--config=(configs/\w+\.py)", text):
    assert (ROOT / config).is_file(), config
  for link in re.findall(r"\]\(([^)#:]+)\)", text):
    assert (page.parent / link).is_file(), link
  for name in re.findall(r"sane_jax\.([a-zA-Z_]+)\(", text):
    assert hasattr(sane_jax, name), name


def test_readme_names_every_design_and_the_explanations_attributes():
  text = (ROOT / "README.md").read_text()
  from sane_jax.maps import generators

  for name in generators.DESIGNS:
    assert f"`{name}`" in text
  for name in set(re.findall(r"\be\.(\w+)", text)):
    known = {*vars(sane_jax.Explanation), *sane_jax.Explanation.__dataclass_fields__}
    assert name in known, name
  for name in set(re.findall(r"explainer\.(\w+)\(", text)):
    assert hasattr(sane_jax.Explainer, name), name


def test_settings_named_on_the_command_line_are_fields():
  import runpy

  def get_config(path):
    return runpy.run_path(str(path))["get_config"]()

  configs = [get_config(path) for path in sorted((ROOT / "configs").glob("*.py"))]
  for page in PAGES:
    for name in re.findall(r"--config((?:\.\w+)+)=", page.read_text()):
      *sections, field = name[1:].split(".")
      holders = [c[sections[0]] for c in configs if sections[0] in c] if sections else configs
      assert any(field in holder for holder in holders), f"{page.name}: {name}"
