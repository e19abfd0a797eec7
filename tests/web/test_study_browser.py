"""People in front of real browsers: three screens, the keyboard alone, no scripts, no mouse."""

import os
import pathlib
import shutil

import pytest
import study_export

from sane_jax.study.server import app as app_lib
from sane_jax.study.server import store as store_lib

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
  pytest.mark.browser,
  pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path"),
]
ARGUMENTS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
DESKTOP, TABLET, PHONE = (1280, 860), (768, 1024), (390, 844)
SMALL = """() => [...document.querySelectorAll("a, button, input, textarea, .choice")]
  .filter((e) => e.offsetParent !== null && e.type !== "hidden" && !e.closest(".choice input"))
  .map((e) => {
    const label = e.closest("label");
    const box = (label || e).getBoundingClientRect();
    return [e.outerHTML.slice(0, 80), Math.round(box.width), Math.round(box.height)];
  })
  .filter(([, width, height]) => width < 44 || height < 44)"""


def axe_script():
  """axe-core, as a package on PyPI carries it."""
  try:
    import axe_playwright_python
  except ImportError:
    if os.environ.get("SANE_JAX_MAY_NOT_SKIP"):
      raise
    pytest.skip("needs axe-playwright-python")
  return (pathlib.Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  return study_export.export(tmp_path_factory.mktemp("study") / "export", items=5, checks=1)


@pytest.fixture
def server(exported, tmp_path):
  app, store, questions = study_export.serve(
    tmp_path / "study", exported, contact="The team, team@example.org"
  )
  with study_export.listening(app) as base:
    yield base, store, questions
  store.close()


@pytest.fixture(scope="module")
def browser():
  with sync_api.sync_playwright() as playwright:
    made = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
    yield made
    made.close()


@pytest.fixture
def sit_down(browser):
  """Gives somebody a browser of his own; nothing goes wrong in it unseen."""
  contexts, faults = [], []

  def one(size=DESKTOP, **options):
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
    contexts.append(context)
    page = context.new_page()
    page.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    return page

  yield one
  for context in contexts:
    context.close()
  assert not faults, faults


def begin(page, base):
  page.goto(base)
  page.get_by_role("checkbox").check()
  page.get_by_role("button", name="Begin").click()
  page.wait_for_url("**/instructions")


def overflow(page):
  return page.evaluate(
    "document.documentElement.scrollWidth - document.documentElement.clientWidth"
  )


def answer_by_mouse(page, letter):
  page.locator(f'[data-pair="{letter}"]').click(position={"x": 60, "y": 60})
  assert page.locator(f"#choose-{letter}").is_checked()
  page.get_by_role("button", name="Confirm").click()


def answer_by_keys(page, letter):
  page.keyboard.press({"A": "a", "B": "2"}[letter])
  assert page.locator(f"#choose-{letter}").is_checked()
  page.keyboard.press("Enter")


def answer_by_arrows(page, letter):
  page.keyboard.press("ArrowRight")
  if letter == "A":
    page.keyboard.press("ArrowLeft")
  page.keyboard.press("Enter")


def go_on(page, base, answer, letters, most=100):
  """Answers, with what each was, until the end or `most`; feedback is read and left."""
  given = []
  while len(given) < most and page.url == f"{base}/task":
    item = page.locator("input[name=item]").get_attribute("value")
    letter = letters[len(given) % len(letters)]
    given.append((item, letter))
    with page.expect_navigation():
      answer(page, letter)
    if "/feedback" in page.url:
      with page.expect_navigation():
        page.keyboard.press("Enter") if answer is answer_by_keys else page.locator(
          "[data-role=next]"
        ).click()
  return given


def test_three_people_on_three_screens(server, sit_down):
  """One of them leaves, and goes on by the personal link in another browser."""
  base, store, _ = server
  given = {}
  people = (
    (DESKTOP, answer_by_keys, "AB"),
    (TABLET, answer_by_arrows, "BBA"),
    (PHONE, answer_by_mouse, "BA"),
  )
  for number, (size, answer, letters) in enumerate(people, 1):
    page = sit_down(size)
    begin(page, base)
    link = page.get_by_label("Your personal link").input_value()
    page.get_by_role("link", name="Start with practice").click()
    if number == 3:
      given[number] = go_on(page, base, answer, letters, most=4)
      assert "Practice 5 of 5" in page.title()
      page = sit_down(TABLET)
      page.goto(link)
      page.wait_for_url("**/task")
      assert "Practice 5 of 5" in page.title()
      given[number] += go_on(page, base, answer, letters)
    else:
      given[number] = go_on(page, base, answer, letters)
    page.wait_for_url("**/finish")
    page.get_by_role("textbox").fill("Nice.")
    page.get_by_role("button", name="Finish").click()
    page.wait_for_url("**/thanks")
    assert len(page.locator(".code").inner_text()) == 11
  subjects, answers = store_lib.read_study(store.path)
  assert len(subjects) == 3
  assert all(subject.finished_at for subject in subjects)
  for number, mine in given.items():
    assert len(mine) == 11
    assert [(a.item, a.answer) for a in answers if a.subject == number] == mine
  shown = {
    number: [f"{a.item} {a.file}" for a in answers if a.subject == number] for number in given
  }
  assert len({tuple(each) for each in shown.values()}) == 3


def test_without_scripts(server, sit_down):
  base, store, _ = server
  page = sit_down(PHONE, java_script_enabled=False)
  begin(page, base)
  page.get_by_role("link", name="Start with practice").click()
  given = go_on(page, base, answer_by_mouse, "AB")
  page.get_by_role("button", name="Finish").click()
  assert page.url == f"{base}/thanks"
  _, answers = store_lib.read_study(store.path)
  assert [(a.item, a.answer) for a in answers] == given


def test_the_keyboard_alone(server, sit_down):
  """By Tab and Space; where one is can be seen all the time."""
  base, store, _ = server
  page = sit_down()
  page.goto(base)
  seen = []

  def tab_to(text):
    for _ in range(30):
      page.keyboard.press("Tab")
      there = page.evaluate(
        "(e => [e.id || e.name || e.textContent.trim(), getComputedStyle(e).outlineStyle])"
        "(document.activeElement)"
      )
      seen.append(there)
      if text in there[0]:
        return
    raise AssertionError(f"{text} is never reached: {seen}")

  tab_to("agree")
  page.keyboard.press("Space")
  tab_to("Begin")
  page.keyboard.press("Enter")
  page.wait_for_url("**/instructions")
  tab_to("Start with practice")
  page.keyboard.press("Enter")
  page.wait_for_url("**/task")
  tab_to("choose-A")
  page.keyboard.press("Space")
  tab_to("Confirm")
  page.keyboard.press("Enter")
  page.wait_for_url("**/feedback*")
  assert store_lib.read_study(store.path)[1][0].answer == "A"
  # The input of a choice is drawn by its neighbour, which is outlined in its place.
  assert {style for name, style in seen if not name.startswith("choose")} <= {"solid", "auto"}
  page.get_by_text("Next").click()
  page.keyboard.press("b")
  outline = "getComputedStyle(document.querySelector('#choose-B + span')).outlineStyle"
  assert page.evaluate(outline) == "solid"


def test_enter_without_a_choice_sends_nothing(server, sit_down):
  base, store, _ = server
  page = sit_down()
  begin(page, base)
  page.goto(f"{base}/task")
  page.keyboard.press("Enter")
  page.keyboard.press("Control+b")  # a shortcut of the browser's own
  assert not page.locator("#choose-B").is_checked()
  assert page.url == f"{base}/task"
  assert store_lib.read_study(store.path)[1] == []


def test_a_key_that_is_held_down_confirms_nothing(server, sit_down):
  base, store, _ = server
  page = sit_down()
  begin(page, base)
  page.goto(f"{base}/task")
  page.keyboard.down("Enter")  # nothing is chosen yet
  page.keyboard.press("a")
  for _ in range(3):
    page.keyboard.down("Enter")  # the same, repeated by the system
  page.wait_for_timeout(500)
  assert page.url == f"{base}/task"
  assert store_lib.read_study(store.path)[1] == []
  page.keyboard.up("Enter")
  page.keyboard.press("Enter")
  page.wait_for_url("**/feedback*")
  assert len(store_lib.read_study(store.path)[1]) == 1


def test_confirming_twice_answers_once(server, sit_down):
  base, store, _ = server
  page = sit_down()
  begin(page, base)
  page.goto(f"{base}/task")
  page.keyboard.press("a")
  page.evaluate(
    "() => { const f = document.querySelector('[data-role=task]');"
    " for (let i = 0; i < 5; i++) f.requestSubmit(); }"
  )
  page.wait_for_url("**/feedback*")
  assert len(store_lib.read_study(store.path)[1]) == 1


def test_time_is_that_of_the_page_being_seen(server, sit_down):
  """A window that is hidden meanwhile is not thought about."""
  base, store, _ = server
  page = sit_down()
  begin(page, base)
  # The browser's clock and the page's visibility, as if one looked away for a minute.
  page.add_init_script("""
    let shift = 0;
    const real = performance.now.bind(performance);
    performance.now = () => real() + shift;
    window.pass = (seconds, visible) => {
      Object.defineProperty(document, "visibilityState", { value: visible, configurable: true });
      document.dispatchEvent(new Event("visibilitychange"));
      shift += 1000 * seconds;
    };
  """)
  page.goto(f"{base}/task")
  page.wait_for_function("() => document.images.length === 2 && document.images[1].complete")
  page.wait_for_timeout(300)
  page.evaluate("pass(60, 'hidden')")
  page.evaluate("pass(0.5, 'visible')")
  page.keyboard.press("a")
  page.evaluate("pass(0, 'visible')")
  page.wait_for_timeout(2000)
  page.keyboard.press("Enter")
  page.wait_for_url("**/feedback*")
  (answer,) = store_lib.read_study(store.path)[1]
  told = store.submit(lambda db: db.execute("SELECT client_seconds FROM answers").fetchone()[0])
  assert told.result(20) == answer.seconds
  assert 2.5 < answer.seconds < 30


@pytest.mark.parametrize("size", [DESKTOP, TABLET, PHONE, (320, 640)])
def test_pages_fit_their_screens(server, sit_down, size):
  """No page is wider than the screen, and what is to be hit is 44 pixels high and wide."""
  base, store, _ = server
  page = sit_down(size)
  page.goto(base)
  key = app_lib.operator_token((store.path.parent / "secret").read_bytes())

  def check():
    assert overflow(page) <= 0, page.url
    assert page.evaluate(SMALL) == [], page.url

  check()
  begin(page, base)
  check()
  for path in ("/task", "/pause", f"/operator?key={key}"):
    page.goto(base + path)
    check()
  page.goto(f"{base}/task")
  if size[0] <= 640:
    boxes = [page.locator(f'[data-pair="{letter}"]').bounding_box() for letter in "AB"]
    assert boxes[1]["y"] >= boxes[0]["y"] + boxes[0]["height"]  # one above the other
  confirm = page.get_by_role("button", name="Confirm").bounding_box()
  assert confirm["y"] + confirm["height"] <= size[1]  # without scrolling
  go_on(page, base, answer_by_mouse, "A")
  check()
  page.get_by_role("button", name="Finish").click()
  check()


def test_twice_as_large(server, sit_down):
  """Enlarged to 200 %, which is a window of half the size: all is there and nothing is cut."""
  base, _, _ = server
  page = sit_down((640, 430), device_scale_factor=2)
  begin(page, base)
  page.goto(f"{base}/task")
  assert overflow(page) <= 0
  page.keyboard.press("b")
  page.get_by_role("button", name="Confirm").scroll_into_view_if_needed()
  page.get_by_role("button", name="Confirm").click()
  page.wait_for_url("**/feedback*")


def test_nothing_moves_where_that_is_asked(server, sit_down):
  base, _, _ = server
  for motion, moves in (("reduce", False), ("no-preference", True)):
    page = sit_down(reduced_motion=motion)
    begin(page, base)
    page.goto(f"{base}/task")
    duration = page.evaluate("getComputedStyle(document.querySelector('.pair')).transitionDuration")
    assert (duration not in ("0s", "")) == moves


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_axe_finds_nothing(server, sit_down, scheme, size):
  base, store, _ = server
  script = axe_script()
  page = sit_down(size, color_scheme=scheme, bypass_csp=True, reduced_motion="reduce")
  key = app_lib.operator_token((store.path.parent / "secret").read_bytes())

  def check():
    page.evaluate(script)
    found = page.evaluate(
      "axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa',"
      " 'best-practice']})"
    )
    assert found["passes"], "it looked at nothing"
    assert [
      (v["id"], v["impact"], [n["html"][:200] for n in v["nodes"]]) for v in found["violations"]
    ] == [], page.url

  page.goto(base)
  check()
  begin(page, base)
  check()
  page.goto(f"{base}/task")
  check()
  page.keyboard.press("a")
  check()
  page.keyboard.press("Enter")
  page.wait_for_url("**/feedback*")
  check()
  page.locator("[data-role=next]").click()
  go_on(page, base, answer_by_mouse, "A")
  check()
  page.goto(f"{base}/pause")
  check()
  page.goto(f"{base}/thanks")
  check()
  page.goto(f"{base}/operator?key={key}")
  check()


def test_axe_finds_what_is_wrong(server, sit_down):
  """The check can fail."""
  base, _, _ = server
  page = sit_down(bypass_csp=True)
  page.goto(base)
  page.evaluate("document.querySelector('.tick span').remove()")
  page.evaluate(axe_script())
  found = page.evaluate("axe.run(document)")
  assert "label" in [v["id"] for v in found["violations"]]
