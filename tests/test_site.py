"""docs/hooks.py: what the site shows of settings, jobs, links and equations is what is there."""

import pathlib
import runpy
import types

import pytest

pytest.importorskip("mkdocs", reason="the site needs the extra `docs`")
pytest.importorskip("latex2mathml", reason="the site needs the extra `docs`")

ROOT = pathlib.Path(__file__).parents[1]
HOOKS = types.SimpleNamespace(**runpy.run_path(str(ROOT / "docs/hooks.py")))


def leaves(config, prefix=""):
  for name, value in config.items():
    if hasattr(value, "items"):
      yield from leaves(value, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}"


@pytest.mark.parametrize("name", ["photos", "polyvore", "generators", "benchmark"])
def test_each_field_of_a_config_is_shown_with_its_comment(name):
  path = ROOT / f"configs/{name}.py"
  shown = HOOKS.config_fields(path.read_text())
  assert sorted(field for field, _ in shown) == sorted(leaves(runpy.run_path(path)["get_config"]()))
  assert all(len(comment) > 3 for _, comment in shown)


@pytest.mark.parametrize("name", ["synthetic", "demo", "awa2"])
def test_a_config_that_changes_another_shows_its_changes(name):
  path = ROOT / f"configs/{name}.py"
  fields = [field for field, _ in HOOKS.config_fields(path.read_text())]
  assert "workdir" in fields
  assert set(fields) <= set(leaves(runpy.run_path(path)["get_config"]()))


def test_all_configs_are_shown():
  assert set(HOOKS.CONFIGS) == {path.stem for path in (ROOT / "configs").glob("*.py")}


def test_comments_are_taken_from_beside_a_field_and_from_above():
  fields = HOOKS.config_fields(
    "def get_config():\n"
    "  config = ConfigDict()\n"
    "  config.a = 1  # of a\n"
    "  config.b = b = ConfigDict()\n"
    "  # Over two\n"
    "  # lines.\n"
    "  b.c = 2\n"
    "  # Of the section.\n"
    "  b.d = (  # of d\n"
    "    1,\n"
    "  )\n"
    "  rest = config.b\n"
    "  rest.e = 3  # of e\n"
  )
  assert fields == [
    ("a", "of a"), ("b.c", "Over two lines."), ("b.d", "of d"), ("b.e", "of e"),
  ]  # fmt: skip


def test_a_field_without_a_comment_is_an_error():
  with pytest.raises(ValueError, match="field a has no comment"):
    HOOKS.config_fields("def get_config():\n  config = ConfigDict()\n  config.a = 1\n")


def test_the_table_of_jobs_has_all_jobs():
  from sane_jax import main

  rows = HOOKS.jobs_table().splitlines()[2:]
  assert [row.split("`")[1] for row in rows] == list(main.JOBS)
  assert all(len(row.split("|")[2].strip()) > 20 for row in rows)


@pytest.mark.parametrize(
  ("link", "source", "page", "leads"),
  [
    ("../configs/awa2.py", "docs/explanations.md", "explanations.md", "settings.md#awa2py"),
    ("docs/reliability.md", "CHANGELOG.md", "changelog.md", "reliability.md"),
    ("../launch/README.md", "docs/tour.md", "tour.md", "launch.md"),
    ("notebooks/own_model.py", "docs/index.md", "index.md", "notebooks/own_model.md"),
    ("scale.md", "docs/tour.md", "tour.md", "scale.md"),
    ("../nothing.py", "docs/tour.md", "tour.md", "../nothing.py"),
  ],
)
def test_links_of_the_repository_lead_to_pages_of_the_site(link, source, page, leads):
  assert HOOKS._target(link, source, page) == leads


def test_equations_become_mathml():
  html = (
    '<p>Of <span class="arithmatex">\\(a &lt; b\\)</span>:</p>'
    '<div class="arithmatex">\\[\nx^2\n\\]</div>'
  )
  out = HOOKS.on_page_content(html, None, None, None)
  assert out.count("<math") == 2
  assert "<mi>a</mi><mo>&#x0003C;</mo><mi>b</mi>" in out
  assert 'display="block"' in out
  assert "arithmatex" not in out


@pytest.mark.parametrize(
  ("html", "fetched"),
  [
    ('<script src="https://cdn.example/x.js"></script>', True),
    ('<img alt="" src="//cdn.example/x.png">', True),
    ('<link rel="stylesheet" href="https://fonts.example/x.css">', True),
    ("<link href=https://fonts.example rel=preconnect>", True),
    ('<a href="https://example.org">there</a>', False),
    ('<link rel="canonical" href="https://example.org/">', False),
    ('<script src="assets/x.js"></script>', False),
  ],
)
def test_what_a_page_would_fetch_from_elsewhere_is_found(tmp_path, html, fetched):
  (tmp_path / "index.html").write_text(html)
  if fetched:
    with pytest.raises(Exception, match="from elsewhere"):
      HOOKS.on_post_build({"site_dir": str(tmp_path)})
  else:
    HOOKS.on_post_build({"site_dir": str(tmp_path)})
