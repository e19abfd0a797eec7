"""Tests of the page in a real browser: what a reader points at, and what then shows."""

import contextlib
import io
import shutil

import numpy as np
import pytest
from fuzz import mutate
from PIL import Image

from sane_jax.report import (
  AttributeView,
  ComparisonView,
  Interval,
  PairView,
  RegionMatch,
  Table,
  render_comparisons,
  render_page,
)

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
  pytest.mark.browser,
  pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path"),
]

SIDE = 4
SIZE = 64
# No cell matches itself, nor the cell that its match matches: a transposed matrix would show.
MATCH = (np.arange(SIDE * SIDE) * 3 + 5) % (SIDE * SIDE)
NASTY = "\"'><script>window.pwned=1</script><img src=x onerror='window.pwned=1'>.png"

# The veil's darkness at the middle of each cell of an image's marks, in rows; null when not lit.
VEIL = """(stage) => {
  const marks = stage.querySelector('[data-role="marks"]');
  if (!marks.width || !stage.classList.contains("lit")) return null;
  const context = marks.getContext("2d");
  const alphas = [];
  for (let row = 0; row < 4; row++)
    for (let column = 0; column < 4; column++) {
      const x = Math.round((column + 0.5) * marks.width / 4);
      const y = Math.round((row + 0.5) * marks.height / 4);
      alphas.push(context.getImageData(x, y, 1, 1).data[3]);
    }
  return alphas;
}"""
OVERLAY = """(stage, [x, y]) => {
  const canvas = stage.querySelector('[data-role="overlay"]');
  return [...canvas.getContext("2d").getImageData(x, y, 1, 1).data];
}"""


def make_pair(**changes):
  """A 4x4 grid on both images; the query's map raises the score above and lowers it below."""
  y, x = np.mgrid[:SIZE, :SIZE]
  cells = (y * SIDE // SIZE) * SIDE + x * SIDE // SIZE
  saliency_map = np.where(y < SIZE // 2, 0.02, -0.01)
  correspondence = np.full((SIDE**2, SIDE**2), -0.2)
  correspondence[np.arange(SIDE**2), MATCH] = 0.8
  fields = {
    "query_name": "query.png",
    "reference_name": "reference.png",
    "query": np.full((SIZE, SIZE, 3), 128, np.uint8),
    "reference": np.full((SIZE, SIZE, 3), 200, np.uint8),
    "score": 0.75,
    "saliency_map": saliency_map,
    "standard_error": np.where(x < SIZE // 2, 0.004, 0.04),
    "reference_saliency_map": 0.03 * (cells + 1.0) / SIDE**2,
    "reference_standard_error": np.full((SIZE, SIZE), 0.001),
    "query_cells": cells,
    "reference_cells": cells,
    "correspondence": correspondence,
    "encoder_passes": 2030,
    "seconds": 1.5,
    "metrics": {"insertion AUC": 71.2},
    "settings": {"num_masks": 2000},
    "command": "python -m sane_jax.main --job=explain",
    "warnings": [],
  }
  if "query" not in changes:
    fields["sure"] = x < SIZE // 2
  return PairView(**{**fields, **changes})


def make_attributes(*names):
  """Each attribute is where one cell of the grid is, the first in cell 0."""
  cells = make_pair().query_cells
  return [
    AttributeView(
      name,
      1.0 - i,
      {"confidence": 0.3, "map fit": 0.8, "prior": 0.5},
      {"confidence": 0.9, "map fit": 0.35 - i, "prior": -0.25},
      np.where(cells == i, 0.004, 0.0),
    )
    for i, name in enumerate(names)
  ]


def make_table(name="all three"):
  rows = ((name, "1.0", Interval(1.5, -1, 2)), ("random", "–", Interval(0.5, 0, 1)))
  return Table(name, name, ("ranked by", name, "deletion"), rows, ("", "", "high"))


@pytest.fixture(scope="module")
def browser():
  arguments = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
  arguments += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
  with sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
    yield browser
    browser.close()


@pytest.fixture
def open_page(browser, tmp_path):
  """Opens pairs as a page from a file, and holds it to silence: no errors, no requests."""
  with contextlib.ExitStack() as stack:
    troubles = []

    def open_pairs(pairs, *, title="A title", failures=(), tables=(), **context_options):
      path = tmp_path / "page.html"
      html = render_page(pairs, title=title, failures=failures, tables=tables)
      path.write_text(html, encoding="utf-8")
      context = browser.new_context(
        **{"viewport": {"width": 1280, "height": 900}, **context_options}
      )
      stack.callback(context.close)
      page = context.new_page()
      page.set_default_timeout(10_000)
      # These tests read canvases back, which a reader's page does not, and Chromium remarks on it.
      page.on(
        "console",
        lambda message: (
          "getImageData" in message.text or troubles.append(f"console: {message.text}")
        ),
      )
      page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
      page.on("dialog", lambda dialog: (troubles.append("dialog"), dialog.dismiss()))

      def on_request(request):
        if request.url != path.as_uri() and not request.url.startswith("data:"):
          troubles.append(f"request: {request.url}")

      page.on("request", on_request)
      page.goto(path.as_uri())
      if pairs and context_options.get("java_script_enabled", True):
        page.wait_for_selector("#pair-0[data-drawn]")
      return page

    open_pairs.troubles = troubles
    yield open_pairs
    assert not troubles


def stage(page, side, pair=0):
  return page.locator(f'#pair-{pair} [data-role="stage"][data-side="{side}"]')


def hover(page, locator, cell):
  locator.scroll_into_view_if_needed()
  box = locator.bounding_box()
  row, column = divmod(cell, SIDE)
  page.mouse.move(
    box["x"] + (column + 0.5) * box["width"] / SIDE, box["y"] + (row + 0.5) * box["height"] / SIDE
  )


def readout(page, pair=0):
  return page.locator(f'#pair-{pair} [data-role="readout"]').inner_text()


def assert_lit(locator, cell):
  """Exactly this cell is left bright, as bright as its cosine of 0.8, and outlined as the match."""
  alphas = np.array(locator.evaluate(VEIL))
  assert alphas[cell] == pytest.approx(0.2 * 178, abs=1)
  assert (np.delete(alphas, cell) > 150).all()
  assert locator.get_attribute("data-match") == str(cell)


@pytest.mark.parametrize("cell", [1, 6, 15])
def test_pointing_at_the_query_lights_up_its_match_in_the_reference(open_page, cell):
  page = open_page([make_pair()])
  hover(page, stage(page, "query"), cell)
  assert stage(page, "query").get_attribute("data-cell") == str(cell)
  assert stage(page, "query").evaluate(VEIL) is None
  assert_lit(stage(page, "reference"), int(MATCH[cell]))
  value = "+0.02" if cell < 8 else "−0.01"
  error = "0.004" if cell % SIDE < 2 else "0.04, not sure"
  assert readout(page) == (
    f"Query region {cell}: effect {value} ± {error}. Best match: reference region "
    f"{MATCH[cell]}, cosine 0.8, and each is the other’s best."
  )


@pytest.mark.parametrize("cell", [0, 9])
def test_pointing_at_the_reference_lights_up_its_match_in_the_query(open_page, cell):
  page = open_page([make_pair()])
  hover(page, stage(page, "reference"), cell)
  back = MATCH.tolist().index(cell)
  assert_lit(stage(page, "query"), back)
  assert f"Reference region {cell}: effect +0.0" in readout(page)
  assert f"query region {back}, cosine 0.8" in readout(page)


def activation(page, pair=0):
  return page.locator(f'#pair-{pair} [data-role="activation-stage"]')


def shown_cells(page, pair=0):
  """The cells that the attribute's picture paints, all of them green."""
  found = []
  for cell in range(SIDE**2):
    at = [(cell % SIDE) * 16 + 8, (cell // SIDE) * 16 + 8]
    red, green, blue, alpha = activation(page, pair).evaluate(OVERLAY, at)
    if alpha:
      assert green > max(red, blue) + 30
      found.append((cell, alpha))
  return found


def test_picking_a_runner_up_shows_where_it_is(open_page):
  page = open_page([make_pair(attributes=make_attributes("striped", "floral", "$& “x”"))])
  caption = page.locator('#pair-0 [data-role="activation"] figcaption')
  image = activation(page).locator("img")
  assert caption.inner_text() == "Explained by: striped"
  assert shown_cells(page) == [(0, 204)]
  page.get_by_text("floral", exact=True).click()
  assert caption.inner_text() == "Runner-up: floral"
  assert shown_cells(page) == [(1, 204)]
  assert image.get_attribute("alt") == "Query query.png, green where it shows “floral”"
  page.keyboard.press("ArrowDown")
  assert caption.inner_text() == "Runner-up: $& “x”"
  assert image.get_attribute("alt").endswith("“$& “x””")
  assert shown_cells(page) == [(2, 204)]
  page.locator('#pair-0 [data-role="attribute"] td').first.click()  # anywhere in its row
  assert caption.inner_text() == "Explained by: striped"
  assert shown_cells(page) == [(0, 204)]


def test_runners_up_are_reached_by_keyboard_alone(open_page):
  page = open_page([make_pair(attributes=make_attributes("striped", "floral"))])
  page.locator('#pair-0 [data-role="opacity"]').focus()
  page.keyboard.press("Tab")
  name = "document.activeElement.getAttribute('aria-label')"
  assert page.evaluate(name) == "Show where the query shows striped"
  page.keyboard.press("ArrowDown")
  assert page.evaluate(name) == "Show where the query shows floral"
  assert shown_cells(page) == [(1, 204)]


def test_overlay_and_opacity_hold_for_the_attribute_too(open_page):
  page = open_page([make_pair(attributes=make_attributes("striped"))])
  page.locator('#pair-0 [data-role="opacity"]').fill("40")
  assert shown_cells(page) == [(0, 102)]
  page.get_by_role("switch", name="Overlay").press("Space")
  assert shown_cells(page) == []
  # The picture is the query itself, which the overlay is painted on.
  sources = [
    locator.locator("img").get_attribute("src")
    for locator in (stage(page, "query"), activation(page))
  ]
  assert sources[0] == sources[1]


def test_a_region_of_the_query_is_outlined_on_the_attribute_too(open_page):
  page = open_page([make_pair(attributes=make_attributes("striped"))])
  marked = """(stage) => {
    const marks = stage.querySelector('[data-role="marks"]');
    if (!marks.width) return false;
    const data = marks.getContext("2d").getImageData(0, 0, marks.width, marks.height).data;
    return data.some((value) => value > 0);
  }"""
  assert not activation(page).evaluate(marked)
  hover(page, stage(page, "query"), 5)
  assert activation(page).evaluate(marked)
  page.mouse.move(2, 2)
  assert not activation(page).evaluate(marked)
  hover(page, stage(page, "reference"), 5)  # its match in the query
  assert activation(page).evaluate(marked)


def test_without_a_script_the_first_attribute_is_still_a_picture(open_page):
  page = open_page(
    [make_pair(attributes=make_attributes("striped", "floral"))], java_script_enabled=False
  )
  shown = Image.open(io.BytesIO(activation(page).screenshot())).convert("RGB")
  pixels = np.asarray(shown.resize((SIZE, SIZE), Image.Resampling.BOX)).astype(int)
  assert (pixels[4:12, 4:12, 1] - pixels[4:12, 4:12, 0] > 40).all()
  assert (np.abs(pixels[20:60, 20:60] - 128) < 6).all()
  assert not page.locator('[data-role="pick"]').first.is_visible()
  assert "striped" in page.locator('[data-role="ranking"]').inner_text()


def test_search_finds_pairs_by_their_attributes(open_page):
  pairs = [
    make_pair(attributes=make_attributes("striped", "floral")),
    make_pair(query_name="a floral dress.png"),
    make_pair(attributes=make_attributes("lace"), kind="tops and bags"),
  ]
  page = open_page(pairs)
  box = page.get_by_label("Filter by name or attribute")
  for text, expected in (("FLORAL", [0, 1]), ("lace", [2]), ("bags", [2]), ("silk", [])):
    box.fill(text)
    assert visible_order(page, "card") == visible_order(page, "index-item") == expected
  assert "attributes" in page.locator('[data-role="no-matches"]').inner_text()


def test_cards_that_leave_and_come_back_show_the_attribute_that_was_picked(open_page):
  page = open_page([make_pair(attributes=make_attributes("a", "b"))] + [make_pair()] * 40)
  page.locator('#pair-0 [data-role="attribute"] th').nth(1).click()
  page.locator('[data-role="index-item"][data-pair="40"] a').click()
  page.wait_for_selector("#pair-0:not([data-drawn])", state="attached")
  page.locator('[data-role="index-item"][data-pair="0"] a').click()
  page.wait_for_selector("#pair-0[data-drawn]")
  assert shown_cells(page) == [(1, 204)]


def test_leaving_puts_everything_back(open_page):
  page = open_page([make_pair()])
  before = readout(page)
  hover(page, stage(page, "query"), 5)
  assert readout(page) != before
  page.mouse.move(2, 2)
  assert readout(page) == before
  assert stage(page, "reference").evaluate(VEIL) is None
  assert stage(page, "reference").get_attribute("data-match") is None


def test_weak_matches_are_dimmer_and_no_match_is_said(open_page):
  correspondence = make_pair().correspondence.copy()
  correspondence[0] = -0.1
  correspondence[1] = 0.0
  correspondence[1, 7] = 0.4
  correspondence[1, 8] = 0.34  # what unrelated photos reach
  page = open_page([make_pair(correspondence=correspondence)])
  hover(page, stage(page, "query"), 0)
  assert "Matches no reference region: no cosine reaches 0.35." in readout(page)
  assert min(stage(page, "reference").evaluate(VEIL)) > 150
  hover(page, stage(page, "query"), 1)
  alphas = stage(page, "reference").evaluate(VEIL)
  assert alphas[7] == pytest.approx(0.6 * 178, abs=2)
  assert alphas[8] == 178


def test_unrelated_photos_do_not_look_like_a_match(open_page):
  """Where nothing is alike beyond chance no region is lit, and a sentence says so."""
  rng = np.random.default_rng(0)
  chance = np.clip(rng.normal(0, 0.1, (SIDE**2, SIDE**2)), -0.3, 0.3)
  page = open_page([make_pair(correspondence=chance)])
  hover(page, stage(page, "query"), 3)
  assert "no cosine reaches 0.35" in readout(page)
  assert set(stage(page, "reference").evaluate(VEIL)) == {178}
  assert stage(page, "reference").get_attribute("data-match") is None
  page.mouse.move(2, 2)
  assert "No region matches one of the other image" in readout(page)


def test_arrow_keys_walk_over_regions(open_page):
  page = open_page([make_pair()])
  query = stage(page, "query")
  query.focus()
  page.keyboard.press("Tab")
  page.keyboard.press("Shift+Tab")  # back on the query, by keyboard
  start = int(query.get_attribute("data-cell"))
  assert start in (5, 6, 9, 10)
  for key in ("ArrowUp", "ArrowUp", "ArrowUp", "ArrowLeft", "ArrowLeft", "ArrowLeft"):
    page.keyboard.press(key)
  assert query.get_attribute("data-cell") == "0"  # and the edge holds
  page.keyboard.press("ArrowRight")
  page.keyboard.press("ArrowDown")
  assert query.get_attribute("data-cell") == "5"
  assert_lit(stage(page, "reference"), MATCH[5])
  assert page.evaluate("window.scrollY") == 0
  page.keyboard.press("Escape")
  assert query.get_attribute("data-cell") is None


def test_tapping_one_image_and_then_the_other(open_page):
  page = open_page([make_pair()], has_touch=True, viewport={"width": 390, "height": 800})
  for side, other, cell, match in (
    ("query", "reference", 6, MATCH[6]),
    ("reference", "query", 9, MATCH.tolist().index(9)),
  ):
    box = stage(page, side).bounding_box()
    row, column = divmod(cell, SIDE)
    stage(page, side).tap(
      position={"x": (column + 0.5) * box["width"] / SIDE, "y": (row + 0.5) * box["height"] / SIDE}
    )
    page.wait_for_timeout(100)  # for the focus to have moved, which must not clear what shows
    assert_lit(stage(page, other), match)


def test_without_correspondence_pointing_shows_values(open_page):
  bare = {"query_cells": None, "reference_cells": None, "correspondence": None}
  page = open_page([make_pair(**bare), make_pair(correspondence=None)])
  hover(page, stage(page, "query"), 0)
  assert readout(page) == "Query pixel 8, 8: effect +0.02 ± 0.0039."  # from 8 bits
  assert page.locator('#pair-0 [data-role="no-correspondence"]').is_visible()
  hover(page, stage(page, "query", pair=1), 1)
  assert readout(page, pair=1) == "Query region 1: effect +0.02 ± 0.004."
  assert stage(page, "reference", pair=1).evaluate(VEIL) is None


def test_overlay_colours_follow_the_map(open_page):
  page = open_page([make_pair()])
  query = stage(page, "query")
  # The larger of the maps, the reference's 0.03, sets the scale.
  red, _, blue, alpha = query.evaluate(OVERLAY, [8, 8])
  assert red > blue + 40
  assert alpha == pytest.approx(255 * 0.8 * 0.02 / 0.03, abs=2)
  red, _, blue, alpha = query.evaluate(OVERLAY, [8, 56])
  assert blue > red + 40
  assert alpha == pytest.approx(255 * 0.8 * 0.01 / 0.03, abs=2)
  bar = page.locator('#pair-0 [data-role="bar"]').inner_text().split("\n")
  assert bar[:3] == ["−0.03", "0", "+0.03"]


def test_opacity_and_toggle_change_the_canvas(open_page):
  page = open_page([make_pair()])
  query, opacity = stage(page, "query"), page.locator('#pair-0 [data-role="opacity"]')
  before = query.evaluate(OVERLAY, [8, 8])[3]
  opacity.fill("40")
  assert query.evaluate(OVERLAY, [8, 8])[3] == pytest.approx(before / 2, abs=1)
  opacity.press("ArrowRight")
  assert query.evaluate(OVERLAY, [8, 8])[3] == pytest.approx(before * 45 / 80, abs=1)
  # The image is muted under the overlay, and comes back in its own colours without it.
  assert query.locator("img").evaluate("(image) => getComputedStyle(image).filter") != "none"
  toggle = page.get_by_role("switch", name="Overlay")
  toggle.press("Space")
  assert query.evaluate(OVERLAY, [8, 8])[3] == 0
  page.wait_for_function(
    """() => getComputedStyle(document.querySelector('#pair-0 [data-side="query"] img')).filter
               === "none" """
  )
  toggle.press("Space")
  assert query.evaluate(OVERLAY, [8, 8])[3] > 0


def test_only_what_is_sure(open_page):
  sure = np.zeros(make_pair().saliency_map.shape, bool)
  sure[:32, :32] = True
  page = open_page([make_pair(sure=sure)])
  query = stage(page, "query")
  points = ([8, 8], [31, 31], [32, 31], [8, 56], [56, 8])
  assert all(query.evaluate(OVERLAY, point)[3] > 0 for point in points)
  page.get_by_role("radio", name="Sure cells").check(force=True)
  shown = [query.evaluate(OVERLAY, point)[3] > 0 for point in points]
  assert shown == [True, True, False, False, False]
  assert stage(page, "reference").evaluate(OVERLAY, [56, 56])[3] == 0  # nothing is known there


def test_standard_error_view(open_page):
  page = open_page([make_pair()])
  page.get_by_role("radio", name="Standard error").check(force=True)
  query = stage(page, "query")
  low, high = query.evaluate(OVERLAY, [8, 8])[3], query.evaluate(OVERLAY, [56, 8])[3]
  assert high == pytest.approx(204, abs=2)
  assert low == pytest.approx(20, abs=2)
  bar = page.locator('#pair-0 [data-role="bar"]').inner_text().split("\n")
  assert bar[:3] == ["0", "0.02", "0.04"]
  assert "Standard error" in bar[3]


def test_missing_map_and_unknown_values_are_drawn_as_nothing(open_page):
  nothing = np.full((SIZE, SIZE), np.nan)
  pair = make_pair(
    score=np.nan,
    saliency_map=nothing,
    standard_error=nothing,
    reference_saliency_map=None,
    reference_standard_error=None,
  )
  page = open_page([pair])
  for side in ("query", "reference"):
    assert stage(page, side).evaluate(OVERLAY, [8, 8]) == [0, 0, 0, 0]
  hover(page, stage(page, "reference"), 0)
  assert readout(page).startswith("Reference region 0: no value. Best match: query region")
  assert "NaN" not in page.inner_text("body")


def test_names_do_not_run_even_without_the_policy(open_page):
  pair = make_pair(
    query_name=NASTY,
    reference_name=NASTY,
    settings={NASTY: NASTY},
    metrics={NASTY: 1.0},
    command=NASTY,
    warnings=[NASTY],
    attributes=make_attributes(NASTY, NASTY),
    sentence=NASTY,
    kind=NASTY,
  )
  page = open_page(
    [pair, pair],
    title=NASTY,
    failures=[(NASTY, NASTY)],
    tables=[make_table(NASTY)],
    bypass_csp=True,
  )
  page.locator('#pair-0 [data-role="attribute"] td').last.click()
  hover(page, stage(page, "query"), 3)
  page.locator('[data-role="filter"]').fill("pwned")
  assert page.evaluate("window.pwned") is None
  assert page.title() == NASTY
  assert NASTY in page.locator('#pair-0 [data-role="title"]').inner_text()
  assert page.locator('#pair-0 [data-role="command"]').text_content() == NASTY


def test_the_policy_stops_requests(open_page):
  page = open_page([make_pair()])
  refused = page.evaluate(
    """() => new Promise((resolve) => {
        document.addEventListener("securitypolicyviolation", (e) => resolve(e.violatedDirective));
        const frame = document.createElement("iframe");
        frame.src = "data:text/html,hello";
        document.body.append(frame);
        setTimeout(() => resolve("nothing was refused"), 3000);
      })"""
  )
  assert refused == "frame-src"
  (remark,) = open_page.troubles  # Chromium says so on the console, here alone as it should
  assert "Content Security Policy" in remark
  open_page.troubles.clear()


def test_copying_the_command(open_page):
  page = open_page([make_pair()], permissions=["clipboard-read", "clipboard-write"])
  page.locator('#pair-0 [data-role="provenance"] summary').click()
  button = page.locator('#pair-0 [data-role="copy"]')
  button.click()
  sync_api.expect(button).to_have_text("Copied")
  assert page.evaluate("navigator.clipboard.readText()") == make_pair().command


@pytest.mark.parametrize("width", [320, 390, 800])
def test_narrow_windows_do_not_scroll_sideways(open_page, width):
  long_name = "a_file_name_without_any_space_" * 6 + ".png"
  pair = make_pair(
    query_name=long_name,
    reference_name=long_name,
    contrast_name=long_name,
    contrast=make_pair().query,
    settings={long_name: long_name},
    command=f"python {long_name}",
    warnings=[long_name],
    metrics={"a metric with a rather long name": 12.5},
    attributes=make_attributes(long_name, long_name[1:]),
    attribute_margin=1.0,
    sentence=long_name,
    kind=long_name,
  )
  page = open_page(
    [pair, make_pair()],
    failures=[(long_name, long_name)],
    tables=[make_table(), make_table(long_name)],
    viewport={"width": width, "height": 800},
  )
  page.locator('#pair-0 [data-role="provenance"] summary').click()
  assert page.evaluate("document.documentElement.scrollWidth") == width
  assert stage(page, "query").bounding_box()["width"] > width / 3 - 60


def visible_order(page, role):
  return page.locator(f'[data-role="{role}"]:visible').evaluate_all(
    "(elements) => elements.map((element) => Number(element.dataset.pair))"
  )


def test_filter_and_sort_the_index_and_the_cards(open_page):
  pairs = [
    make_pair(query_name="b10.png", score=0.5),
    make_pair(query_name="b9.png", score=np.nan),
    make_pair(query_name="A.png", score=-0.7),
    make_pair(query_name="c.png", score=0.9),
  ]
  page = open_page(pairs)
  for order, expected in (
    ("high", [3, 0, 2, 1]),
    ("low", [2, 0, 3, 1]),
    ("name", [2, 1, 0, 3]),
    ("given", [0, 1, 2, 3]),
  ):
    page.locator('[data-role="sort"]').select_option(order)
    assert visible_order(page, "index-item") == expected
    assert visible_order(page, "card") == expected
  box = page.get_by_label("Filter by name")
  box.fill("B")
  assert visible_order(page, "index-item") == visible_order(page, "card") == [0, 1]
  assert page.locator('[data-role="index-count"]').inner_text() == "2 of 4 pairs"
  box.fill("nowhere")
  assert visible_order(page, "card") == []
  assert page.locator('[data-role="no-matches"]').is_visible()
  box.fill("")
  assert visible_order(page, "card") == [0, 1, 2, 3]


def test_many_pairs_are_drawn_only_near_the_window(open_page):
  page = open_page([make_pair(query_name=f"query_{i}.png") for i in range(60)])
  assert page.locator('[data-role="card"]').count() == 60
  assert page.locator("[data-drawn]").count() < 20
  page.locator('[data-role="index-item"][data-pair="59"] a').click()
  page.wait_for_selector("#pair-59[data-drawn]")
  page.wait_for_selector("#pair-0:not([data-drawn])", state="attached")
  hover(page, stage(page, "query", pair=59), 6)
  assert_lit(stage(page, "reference", pair=59), MATCH[6])
  page.locator('[data-role="index-item"][data-pair="0"] a').click()
  page.wait_for_selector("#pair-0[data-drawn]")
  assert stage(page, "query").evaluate(OVERLAY, [8, 8])[3] > 0


def test_few_pairs_are_all_drawn_for_print(open_page):
  page = open_page([make_pair() for _ in range(12)])
  page.wait_for_function("() => document.querySelectorAll('[data-drawn]').length === 12")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_enough(open_page, scheme):
  """WCAG AA: 4.5 to 1, for every element that holds text of its own."""
  attributes = make_attributes("striped", "floral")
  explained = make_pair(attributes=attributes, attribute_margin=1.0, sentence="Why.", kind="A kind")
  page = open_page(
    [make_pair(warnings=["A warning."]), make_pair(correspondence=None), explained],
    failures=[("a.png", "broken")],
    tables=[make_table()],
    color_scheme=scheme,
  )
  page.evaluate("document.querySelectorAll('details').forEach((details) => (details.open = true))")
  found = page.evaluate("""() => {
    const channels = (text) => text.match(/[\\d.]+/g).map(Number);
    const luminance = (rgb) => {
      const [r, g, b] = rgb.map((v) => v / 255)
        .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (element) => {
      for (let at = element; at; at = at.parentElement) {
        const [r, g, b, a = 1] = channels(getComputedStyle(at).backgroundColor);
        if (a === 1) return [r, g, b];
      }
      return [255, 255, 255];
    };
    const low = [];
    let count = 0;
    for (const element of document.querySelectorAll("body *")) {
      const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
      if (!own || !element.checkVisibility() || element.matches("script")) continue;
      count += 1;
      const [a, b] = [channels(getComputedStyle(element).color).slice(0, 3), ground(element)]
        .map(luminance).sort((x, y) => y - x);
      const ratio = (a + 0.05) / (b + 0.05);
      if (ratio < 4.5) low.push(`${element.className || element.tagName}: ${ratio.toFixed(2)}`);
    }
    return [count, low];
  }""")
  assert found[0] > 40
  assert found[1] == []


@pytest.mark.parametrize("bypass_csp", [False, True])
def test_no_name_of_hundreds_runs(open_page, bypass_csp):
  """With the policy and without: markup in every text, and what ends scripts and comments."""
  names = [
    *mutate.NASTY, NASTY, "</title><script>window.pwned=1</script>", "<svg onload=window.pwned=1>",
    "' onmouseover='window.pwned=1", "--><script>window.pwned=1</script>", "\u2028window.pwned=1",
    "<a href=javascript:window.pwned=1>", "<base href=https://example.org>",
    "<meta http-equiv=refresh content=0>", "<style>*{display:none}</style>", "<template>", "<math>",
  ]  # fmt: skip
  rng = np.random.default_rng(0)
  picture = np.zeros((4, 4, 3), np.uint8)
  field = np.zeros((4, 4))

  def some():
    return "".join(rng.choice(names, 2))

  pairs = [
    make_pair(
      query_name=some(), reference_name=some(), settings={some(): some()}, metrics={some(): 1.0},
      command=some(), warnings=[some()], sentence=some(), kind=some(), query=picture,
      reference=picture, saliency_map=field, standard_error=field, reference_saliency_map=None,
      reference_standard_error=None, query_cells=None, reference_cells=None, correspondence=None,
    )
    for _ in range(150)
  ]  # fmt: skip
  failures = [(some(), some()) for _ in range(50)]
  tables = [make_table(some()) for _ in range(10)]
  page = open_page(pairs, title=some(), failures=failures, tables=tables, bypass_csp=bypass_csp)
  for text in ("window", "<", "'", '"'):
    page.locator('[data-role="filter"]').fill(text)
  assert page.evaluate("window.pwned") is None
  assert page.evaluate("document.scripts.length") == 2 + len(pairs)
  assert page.evaluate("document.querySelectorAll('svg[onload],base,template,math').length") == 0


# --- two models -----------------------------------------------------------------------------------


def make_comparison(**changes):
  """Two models on a grid of 2 x 2; the first cell differs."""
  y, x = np.mgrid[:SIZE, :SIZE]
  first = np.where((y < SIZE // 2) & (x < SIZE // 2), 2.0, 0.1)
  cells = np.array([[2.0, 0.1], [0.1, 0.1]])
  box = (0.0, 0.0, 0.5, 0.5)
  fields = {
    "query_name": "query.png",
    "reference_name": "reference.png",
    "names": ("one", "two"),
    "picture": np.full((SIZE, SIZE, 3), 128, np.uint8),
    "reference": np.full((SIZE, SIZE, 3), 200, np.uint8),
    "pixel_maps": np.stack([first, first[::-1]]),
    "maps": np.stack([cells, cells[::-1]]),
    "errors": np.full((2, 2, 2), 0.1),
    "difference": cells - cells[::-1],
    "standard_error": np.full((2, 2), 0.2),
    "p_values": np.array([[1e-6, 1], [1e-6, 1]]),
    "significant": np.array([[True, False], [True, False]]),
    "frame": (0.0, 0.0, 1.0, 1.0),
    "scores": (0.5, 0.7),
    "scales": (0.01, 0.02),
    "rank_correlation": -0.3,
    "most_correlation": 0.9,
    "reliabilities": (0.9, 0.9),
    "paired": True,
    "matches": [RegionMatch(0, 2.0, 0.8, box, box)],
    "encoder_passes": 1030,
    "settings": ({"key": [0]}, {"key": [1]}),
  }
  return ComparisonView(**{**fields, **changes})


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_comparison_says_where_and_is_silent(browser, tmp_path, width, scheme):
  right_to_left = "\u062d\u0630\u0627\u0621 " * 20
  views = [
    make_comparison(query_name=NASTY, names=(NASTY, right_to_left), warnings=[NASTY]),
    make_comparison(reference=None, reference_name="a red shoe " + NASTY * 150, matches=[]),
  ]
  path = tmp_path / "comparison.html"
  path.write_text(render_comparisons(views, title=NASTY, failures=[(NASTY, NASTY)]))
  context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
  with contextlib.closing(context):
    page, troubles = context.new_page(), []
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on(
      "request",
      lambda r: r.url.startswith(("data:", "file:")) or troubles.append(r.url),
    )
    page.goto(path.as_uri())
    assert page.evaluate("window.pwned") is None
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    first = page.locator('[data-role="comparison"]').first
    told = first.locator('[data-role="finding"]').inner_text()
    assert told == "2 of 4 regions differ: A\u2019s score rests more on 1 of them, B\u2019s on 1."
    named = first.locator("rect.differs")
    assert [
      (cell.get_attribute("data-row"), cell.get_attribute("data-column")) for cell in named.all()
    ] == [("0", "0"), ("1", "0")]
    assert "p < 0.001" in named.first.locator("title").text_content()
    text = page.locator('[data-role="text"]')
    assert text.text_content().startswith("a red shoe")
    box = text.bounding_box()
    assert box["height"] < 700  # a long text scrolls in its card
    assert not troubles


def test_a_text_stands_where_its_picture_would(open_page):
  changes = {
    "reference": None, "reference_name": NASTY + " a shoe" * 400, "reference_cells": None,
    "reference_saliency_map": None, "reference_standard_error": None, "correspondence": None,
  }  # fmt: skip
  page = open_page([make_pair(**changes)], viewport={"width": 390, "height": 800})
  assert page.locator('[data-role="text"]').inner_text().count("a shoe") == 400
  assert page.locator('[data-role="text"] script').count() == 0
  assert page.evaluate("window.pwned") is None
  assert "a region of the query" in page.locator('[data-role="readout"]').inner_text()
  page.locator('[data-side="query"]').hover(position={"x": 20, "y": 20})
  assert "effect" in page.locator('[data-role="readout"]').inner_text()
  width = page.evaluate("document.documentElement.scrollWidth")
  assert width <= 390, "nothing sticks out of a phone"
