"""The viewer in a real browser: what a visitor does, and what then shows."""

import contextlib
import io
import shutil
import time

import encoders
import numpy as np
import pytest
from PIL import Image
from web import viewer_tools as tools

from sane_jax.maps import reasons
from sane_jax.ops import matches, ranking

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
  pytest.mark.browser,
  pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path"),
]
SIDE = tools.GRID[0]

# The veil's darkness at the middle of each cell of an image's marks; null when it is not lit.
VEIL = """(stage) => {
  const marks = stage.querySelector('[data-role="marks"]');
  if (!marks.width || !stage.classList.contains("lit")) return null;
  const context = marks.getContext("2d");
  const alphas = [];
  for (let row = 0; row < 4; row++)
    for (let column = 0; column < 4; column++)
      alphas.push(context.getImageData(Math.round((column + 0.5) * marks.width / 4),
        Math.round((row + 0.5) * marks.height / 4), 1, 1).data[3]);
  return alphas;
}"""
OVERLAY = """(stage) => {
  const canvas = stage.querySelector('[data-role="overlay"]');
  const context = canvas.getContext("2d");
  const pixels = [];
  for (let row = 0; row < 4; row++)
    for (let column = 0; column < 4; column++)
      pixels.push([...context.getImageData(Math.round((column + 0.5) * canvas.width / 4),
        Math.round((row + 0.5) * canvas.height / 4), 1, 1).data]);
  return pixels;
}"""


@pytest.fixture(scope="module")
def viewer(tmp_path_factory):
  folder = tmp_path_factory.mktemp("viewer")
  (folder / "photos").mkdir()
  paths = tools.draw_photos(folder / "photos", np.random.default_rng(0))
  indexes = [tools.build(folder / "both", paths, mode="both"),
             tools.build(folder / "rise", paths, "rise")]  # fmt: skip
  maps = np.zeros((SIDE, SIDE, 2), np.float32)
  maps[1, 2, 0] = maps[3, 0, 1] = 1
  rank = reasons.make_ranker(
    ("striped", "<b>floral</b>"), lambda image: (np.array([0.9, 0.2], np.float32), maps),
    (np.array([0.6, 0.4]), np.eye(2, 6, dtype=np.float32)), (0.7, 0.1, 0.0, 0.2), ranking.RAW,
  )  # fmt: skip
  return tools.Viewer(indexes, rankers=lambda query, reference: rank)


@pytest.fixture(scope="module")
def address(viewer):
  with viewer.serve() as found:
    yield found


@pytest.fixture(scope="module")
def browser():
  arguments = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
  arguments += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
  with sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
    yield browser
    browser.close()


@pytest.fixture
def open_page(browser, address):
  """Opens the viewer, and holds it to silence: no errors, no request to elsewhere."""
  with contextlib.ExitStack() as stack:
    troubles = []

    def open_viewer(path="/", **options):
      context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
      stack.callback(context.close)
      page = context.new_page()
      page.set_default_timeout(20_000)
      page.on(
        "console",
        lambda message: "getImageData" in message.text or troubles.append(message.text),
      )
      page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
      page.on("dialog", lambda dialog: (troubles.append("dialog"), dialog.dismiss()))
      page.on(
        "request",
        lambda request: (
          request.url.startswith((address, "data:", "blob:")) or troubles.append(request.url)
        ),
      )
      page.goto(address + path)
      page.wait_for_selector("body[data-shown]")
      return page

    open_viewer.troubles = troubles
    yield open_viewer
    assert not troubles


def until(page, expression, timeout=20_000):
  """Waits until an expression holds; the page's policy forbids Playwright's own way, an eval."""
  began = time.monotonic()
  while not page.evaluate(expression):
    assert time.monotonic() - began < timeout / 1000, expression
    page.wait_for_timeout(30)


def show_pair(page, viewer, query=0, reference=3, more=""):
  page.goto(
    page.url.split("/?")[0].rstrip("/") + f"/?q={viewer.key(query)}&m={viewer.key(reference)}{more}"
  )
  page.wait_for_selector('[data-role="pair-card"][data-attributed]')


def stage(page, side, card="pair"):
  return page.locator(f'[data-role="{card}-card"] [data-role="stage"][data-side="{side}"]')


def hover(page, locator, cell):
  locator.scroll_into_view_if_needed()
  box = locator.bounding_box()
  row, column = divmod(cell, SIDE)
  page.mouse.move(
    box["x"] + (column + 0.5) * box["width"] / SIDE, box["y"] + (row + 0.5) * box["height"] / SIDE
  )


def readout(page, card="pair"):
  return page.locator(f'[data-role="{card}-card"] [data-role="readout"]').inner_text()


def assert_lit(locator, row, least):
  """Regions are as bright as their cosine, dark below `least`; the best match is outlined."""
  alphas = np.array(locator.evaluate(VEIL))
  sure = np.abs(row - least) > 0.005  # what 8 bits can tell from the threshold
  light = np.where(row >= least, row, 0)
  others = sure & (np.arange(SIDE**2) != row.argmax())
  np.testing.assert_allclose(alphas[others], 178 * (1 - light[others]), atol=1.5)
  best = str(row.argmax()) if row.max() >= least else None
  assert locator.get_attribute("data-match") == best


def threshold(viewer):
  axes = viewer.collection.indexes[0].embeddings([0]).shape[1]
  return matches.match_threshold(SIDE**2, SIDE**2, axes)


def png(rng):
  coarse = Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8))
  buffer = io.BytesIO()
  coarse.resize((50, 40), Image.Resampling.BILINEAR).save(buffer, "PNG")
  return buffer.getvalue()


def test_the_collection_is_seen_and_searched(open_page, viewer):
  page = open_page()
  tiles = page.locator(".tile")
  assert tiles.count() == len(tools.NAMES)
  names = [text.strip() for text in page.locator(".tile bdi").all_text_contents()]
  assert names == [name.strip() for name in tools.NAMES]
  until(
    page,
    "[...document.querySelectorAll('.tile img')].every((i) => i.complete && i.naturalWidth > 0)",
  )
  page.fill('[data-role="search"]', "ẞ")
  until(page, "document.querySelectorAll('.tile').length === 1")
  assert tiles.first.get_attribute("data-key") == viewer.key(6)
  assert "1 of 12" in page.locator('[data-role="found"]').inner_text()
  page.fill('[data-role="search"]', "nothing like it")
  until(page, "document.querySelectorAll('.tile').length === 0")
  assert page.evaluate("window.pwned") is None


def test_a_query_shows_its_matches_best_first(open_page, viewer):
  page = open_page()
  page.locator(f'.tile[data-key="{viewer.key(2)}"]').click()
  page.wait_for_selector('[data-role="pair-card"][data-attributed]')
  keys = page.locator('[data-role="match"]').evaluate_all("(all) => all.map((i) => i.dataset.key)")
  index = viewer.collection.indexes[0]
  assert keys == [viewer.keys[name] for name in index.nearest(index.ids[2], 24)]
  score = index.scores(2, [index.nearest(2, 1)[0]])[0]
  assert page.locator('[data-role="pair-card"] [data-role="score"]').inner_text() == f"{score:.3f}"
  facts = page.locator('[data-role="pair-card"] [data-role="facts"]').inner_text()
  assert "Encoder passes\n0" in facts


def test_the_map_is_painted_where_it_is(open_page, viewer):
  page = open_page()
  show_pair(page, viewer)
  index = viewer.collection.indexes[0]
  for side, values in (("query", index.maps(0, [3])), ("reference", index.maps(3, [0]))):
    pixels = np.array(stage(page, side).evaluate(OVERLAY))
    limit = max(np.abs(index.maps(0, [3])).max(), np.abs(index.maps(3, [0])).max())
    strength = np.abs(values.ravel()) / limit
    np.testing.assert_allclose(pixels[:, 3] / 255, 0.8 * strength, atol=0.01)
    strong = strength > 0.1
    np.testing.assert_array_equal(
      (pixels[:, 0] > pixels[:, 2])[strong], (values.ravel() > 0)[strong]
    )


@pytest.mark.parametrize("cell", [1, 6, 15])
def test_pointing_shows_what_matches_in_both_directions(open_page, viewer, cell):
  page = open_page()
  show_pair(page, viewer)
  index = viewer.collection.indexes[0]
  table = index.correspondence(0, 3)
  least = threshold(viewer)
  hover(page, stage(page, "query"), cell)
  assert stage(page, "query").get_attribute("data-cell") == str(cell)
  assert_lit(stage(page, "reference"), table[cell], least)
  said = readout(page)
  value, error = index.maps(0, [3])[0].ravel()[cell], index.standard_errors(0, [3])[0]
  assert f"Query region {cell}: effect" in said
  number = said.split("effect ")[1].split(" ")[0].replace("−", "-")
  assert float(number) == pytest.approx(value, rel=5e-3)
  assert float(said.split("± ")[1].split(".\n")[0].split(",")[0].split(". ")[0]) == pytest.approx(
    error, rel=0.06
  )
  hover(page, stage(page, "reference"), cell)
  assert_lit(stage(page, "query"), table[:, cell], least)
  assert f"Reference region {cell}" in readout(page)


def test_the_attribute_is_shown_where_the_query_shows_it(open_page, viewer):
  page = open_page()
  show_pair(page, viewer)
  assert "striped" in page.locator('[data-role="sentence"]').inner_text()
  activation = page.locator('[data-role="activation-stage"]')
  strength = np.array(activation.evaluate(OVERLAY))[:, 3]
  assert strength.argmax() == 1 * SIDE + 2
  page.get_by_label("Show where the query shows <b>floral</b>").check()
  strength = np.array(activation.evaluate(OVERLAY))[:, 3]
  assert strength.argmax() == 3 * SIDE + 0
  assert page.locator('[data-role="ranking-body"] b').count() == 0


def test_two_matches_are_compared(open_page, viewer):
  page = open_page()
  show_pair(page, viewer)
  page.locator(f'[data-role="match"][data-key="{viewer.key(7)}"] .match-vs').click()
  page.wait_for_selector('[data-role="contrast-card"][data-drawn]:not([hidden])')
  index = viewer.collection.indexes[0]
  values = index.contrast(0, 3, 7).ravel()
  pixels = np.array(stage(page, "query", "contrast").evaluate(OVERLAY))
  np.testing.assert_allclose(
    pixels[:, 3] / 255, 0.8 * np.abs(values) / np.abs(values).max(), atol=0.01
  )
  cell = int(np.abs(values).argmax())
  hover(page, stage(page, "query", "contrast"), cell)
  said = readout(page, "contrast")
  assert f"speaks for {tools.NAMES[3 if values[cell] > 0 else 7]}" in said
  for side, other in (("a", 3), ("b", 7)):
    table = index.correspondence(0, other)
    assert_lit(stage(page, side, "contrast"), table[cell], threshold(viewer))
  caption = page.locator('[data-role="contrast-card"] [data-role="bar-caption"]').inner_text()
  assert "warm speaks for" in caption
  page.locator('[data-role="contrast-card"] [data-role="swap"]').click()
  until(page, f"location.search.includes('vs={viewer.key(3)}')")
  until(
    page,
    f"document.querySelector('[data-role=contrast-card]').dataset.pair.includes('{viewer.key(7)} "
    f"{viewer.key(3)}')",
  )
  swapped = np.array(stage(page, "query", "contrast").evaluate(OVERLAY))
  assert (np.sign(swapped[:, 0] - swapped[:, 2]) != np.sign(pixels[:, 0] - pixels[:, 2])).any()


def test_a_link_shows_the_same_view_to_another(open_page, viewer):
  page = open_page()
  show_pair(page, viewer)
  page.select_option('[data-role="design"]', "hadamard")
  page.locator('[data-role="perturb"][value="both"]').check()
  until(page, "document.querySelector('[data-role=pair-card]').dataset.pair.endsWith('both')")
  opacity = page.locator('[data-role="pair-card"] [data-role="opacity"]')
  opacity.focus()
  for _ in range(4):
    page.keyboard.press("ArrowLeft")
  until(page, "location.search.includes('opacity=60')")
  seen = np.array(stage(page, "query").evaluate(OVERLAY))
  other = open_page("/" + page.url.split("/", 3)[3])
  other.wait_for_selector('[data-role="pair-card"][data-attributed]')
  np.testing.assert_array_equal(np.array(stage(other, "query").evaluate(OVERLAY)), seen)
  index = viewer.collection.indexes[0]
  values = np.abs(index.maps(0, [3], mode="both")).ravel()
  limit = max(values.max(), np.abs(index.maps(3, [0], mode="both")).max())
  np.testing.assert_allclose(seen[:, 3] / 255, 0.6 * values / limit, atol=0.01)
  # Nobody kept errors of this mode: the switch says so and can't be used.
  disabled = other.locator('[data-role="pair-card"] [data-role="mode"][value="error"]')
  assert disabled.is_disabled()
  assert (
    "No standard errors"
    in other.locator('[data-role="pair-card"] [data-role="no-error"]').inner_text()
  )


def test_back_and_forward_go_through_what_was_seen(open_page, viewer):
  page = open_page()
  page.locator(".tile").nth(0).click()
  page.wait_for_selector('[data-role="pair-card"][data-attributed]')
  first = page.url
  page.locator(".match-pick").nth(2).click()
  until(page, f"location.href !== '{first}'")
  second = page.url
  page.go_back()
  until(page, f"location.href === '{first}'")
  until(page, "document.querySelectorAll('.match-pick')[0].ariaPressed === 'true'")
  page.go_back()
  page.wait_for_selector('[data-role="start"]:not([hidden])')
  page.go_forward()
  page.go_forward()
  until(page, f"location.href === '{second}'")
  until(page, "document.querySelectorAll('.match-pick')[2].ariaPressed === 'true'")


def test_the_link_is_copied(open_page, viewer):
  page = open_page(permissions=["clipboard-read", "clipboard-write"])
  show_pair(page, viewer)
  page.locator('[data-role="share"]').click()
  until(page, "document.querySelector('[data-role=share]').textContent === 'Link copied'")
  assert page.evaluate("navigator.clipboard.readText()") == page.url


def test_a_photo_that_is_sent_is_explained(open_page, viewer, rng):
  page = open_page()
  data = png(rng)
  page.set_input_files(
    '[data-role="file"]', {"name": "<img src=x>.png", "mimeType": "image/png", "buffer": data}
  )
  page.wait_for_selector('[data-role="pair-card"][data-attributed]:not([hidden])', timeout=60_000)
  explainer = tools.explainer()
  pixels = np.asarray(Image.open(io.BytesIO(data)))
  index = viewer.collection.indexes[0]
  best = index.nearest_to(explainer.embed([pixels])[0], 1)[0]
  e = explainer.explain(pixels, index.photo(best).pixels)
  hover(page, stage(page, "query"), 5)
  number = readout(page).split("effect ")[1].split(" ")[0].replace("−", "-")
  assert float(number) == pytest.approx(e.saliency.cells[5], rel=1e-2, abs=1e-6)
  assert "160 passes" in page.locator('[data-role="pair-card"] [data-role="facts"]').inner_text()
  assert page.locator('[data-role="query-name"]').inner_text() == "<img src=x>.png"
  reopened = open_page("/" + page.url.split("/", 3)[3])
  reopened.wait_for_selector('[data-role="pair-card"][data-attributed]')


def test_a_photo_can_be_dropped(open_page, rng):
  page = open_page()
  page.evaluate(
    """(bytes) => {
      const files = new DataTransfer();
      files.items.add(new File([new Uint8Array(bytes)], "dropped.png", {type: "image/png"}));
      for (const kind of ["dragover", "drop"])
        window.dispatchEvent(
          new DragEvent(kind, {dataTransfer: files, bubbles: true, cancelable: true}));
    }""",
    list(png(rng)),
  )
  page.wait_for_selector('[data-role="pair-card"][data-attributed]:not([hidden])', timeout=60_000)
  assert page.locator('[data-role="query-name"]').inner_text() == "dropped.png"


def test_what_is_no_photo_is_said_and_the_page_goes_on(open_page, viewer):
  page = open_page()
  page.set_input_files(
    '[data-role="file"]', {"name": "a.png", "mimeType": "image/png", "buffer": b"<svg onload=x>"}
  )
  page.wait_for_selector('[role="alert"]')
  assert "no image of a format known here" in page.locator('[role="alert"]').inner_text()
  assert [t for t in open_page.troubles if "422" not in t] == []
  open_page.troubles.clear()
  show_pair(page, viewer)


def test_another_design_is_measured_live_and_says_so(open_page, viewer):
  page = open_page()
  show_pair(page, viewer, query=5, reference=8)
  page.select_option('[data-role="design"]', "kernel_shap")
  until(
    page,
    "document.querySelector('[data-role=pair-card]').dataset.pair.includes('kernel_shap')"
    " && document.querySelector('[data-role=missing]').innerText.includes('08.png')"
    " && !document.querySelector('[data-role=missing]').innerText.includes('a & b')",
    timeout=120_000,
  )
  assert "live, 1,002 passes" in page.locator('[data-role="fill"]').inner_text()
  assert page.locator('[data-role="perturb"][value="both"]').is_disabled()
  page.get_by_role("button", name="Measure it (1,002 passes)").click()
  page.wait_for_selector('[data-role="missing"][hidden]', state="attached", timeout=120_000)
  facts = page.locator('[data-role="pair-card"] [data-role="facts"]').inner_text()
  assert "2,004 passes" in facts


def test_everything_by_keyboard(open_page, viewer):
  page = open_page()
  page.locator('[data-role="search"]').focus()
  page.keyboard.press("Tab")
  assert page.evaluate("document.activeElement.dataset.key") == viewer.key(0)
  page.keyboard.press("Enter")
  page.wait_for_selector('[data-role="pair-card"][data-attributed]')
  page.locator(".match-pick").first.focus()
  page.keyboard.press("ArrowRight")
  page.keyboard.press("Enter")
  until(page, "document.querySelectorAll('.match-pick')[1].ariaPressed === 'true'")
  page.wait_for_selector('[data-role="query-view"]:not(.busy)')
  reached = set()
  for _ in range(120):
    page.keyboard.press("Tab")
    role = page.evaluate("document.activeElement.dataset.role ?? ''")
    side = page.evaluate("document.activeElement.dataset.side ?? ''")
    reached.add(f"{role} {side}".strip())
    if role == "stage" and side == "query":
      page.keyboard.press("ArrowRight")
      assert "Query region" in readout(page)
      page.keyboard.press("Escape")
      assert "Point at a region" in readout(page)
  assert reached >= {
    "stage query", "stage reference", "toggle", "opacity", "swap", "home", "random", "send-photo",
    "share", "design", "fill",
  }  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 768, 1280])
def test_it_fits_every_screen(open_page, viewer, width, scheme):
  page = open_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
  for more in ("", f"&vs={viewer.key(4)}"):
    show = f"/?q={viewer.key(3)}&m={viewer.key(2)}{more}"  # the longest names
    page.goto(page.url.split("/?")[0].rstrip("/") + show)
    page.wait_for_selector("article[data-drawn]:not([hidden])")
    page.wait_for_selector('[data-role="query-view"]:not(.busy)')
    assert page.evaluate("document.documentElement.scrollWidth") <= width
  ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
  assert (sum(map(int, ground[4:-1].split(","))) < 200) == (scheme == "dark")


def test_nothing_stands_in_the_way_of_assistive_technology(open_page, viewer):
  axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
  page = open_page()
  for path in ("/", f"/?q={viewer.key(0)}&m={viewer.key(3)}",
               f"/?q={viewer.key(0)}&m={viewer.key(3)}&vs={viewer.key(4)}"):  # fmt: skip
    page.goto(page.url.split("/", 3)[0] + "//" + page.url.split("/", 3)[2] + path)
    page.wait_for_selector("body[data-shown]")
    page.wait_for_selector('[data-role="query-view"]:not(.busy)', state="attached")
    page.wait_for_timeout(500)
    found = axe.run(page).response["violations"]
    assert not [(v["id"], [n["html"][:120] for n in v["nodes"]]) for v in found], path


def test_the_size_of_pictures_is_the_model_s(open_page, viewer):
  page = open_page()
  show_pair(page, viewer)
  size = page.evaluate("document.querySelector('[data-role=stage] img').naturalWidth")
  assert size == encoders.SIZE
