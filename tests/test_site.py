"""docs/hooks.py: what the site shows of settings, jobs, links and equations is what is there."""

import pathlib
import re
import runpy
import types

import pytest

from sane_jax import main
from sane_jax.runs import settings

pytest.importorskip("mkdocs", reason="the site needs the extra `docs`")
pytest.importorskip("latex2mathml", reason="the site needs the extra `docs`")

ROOT = pathlib.Path(__file__).parents[1]
HOOKS = types.SimpleNamespace(**runpy.run_path(str(ROOT / "docs/hooks.py")))


def test_the_page_of_settings_is_up_to_date():
  page = runpy.run_path(str(ROOT / "docs/make_settings.py"))["page"]()
  assert (ROOT / "docs/settings.md").read_text() == page, "run python docs/make_settings.py"


def test_the_page_of_settings_has_all_configs_and_jobs():
  page = (ROOT / "docs/settings.md").read_text()
  assert all(f"## {path.name}" in page for path in (ROOT / "configs").glob("*.py"))
  jobs = re.findall(r"^\| `(\w+)` \| (.*) \|$", page.split("##")[0], re.M)
  assert [job for job, _ in jobs] == list(main.JOBS)
  assert all(len(says) > 20 for _, says in jobs)


def test_comments_are_taken_from_beside_a_field_and_from_above():
  assert settings.parse_comments(
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
    "  config.other = other = _OTHER['get_config']().other\n"
    "  rest = config.b\n"
    "  rest.e = 3  # of e\n"
    "  other.f = 4\n"
    "  elsewhere.g = 5  # no field\n"
  ) == {"a": "of a", "b.c": "Over two lines.", "b.d": "of d", "b.e": "of e", "other.f": ""}


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
