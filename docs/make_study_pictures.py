"""Makes the pictures of docs/study.md: python docs/make_study_pictures.py [FOLDER for all of them]

A study of drawn outfits on this machine, looked at in a browser. What the maps show is where an
item has what it shares with the other; no model was asked, the pictures are of the pages.
"""

import contextlib
import pathlib
import shutil
import socket
import sys
import tempfile
import threading
import time

import numpy as np
import uvicorn
from PIL import Image
from playwright import sync_api

from sane_jax.datasets.outfits_drawn import garments, release
from sane_jax.jobs import simulate_study
from sane_jax.study import export, proxy
from sane_jax.study.server import app as app_lib
from sane_jax.study.server import questions as questions_lib
from sane_jax.study.server import store as store_lib

SIZE, CELLS, COUNT = 224, 8, 60
SIZES = {"desktop": (1280, 860), "tablet": (768, 1024), "phone": (390, 844)}
ARGUMENTS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


def draw_material() -> simulate_study.Material:
  """Pairs of drawn items, half of one outfit."""
  made = release.compose((400, 4, 4), 5)
  rng = np.random.default_rng(0)
  pairs = [o.items[:2] for o in made.outfits["train"] if len(o.items) > 2][:COUNT]
  pairs = [(q, r if n % 2 else pairs[(n + 7) % COUNT][1]) for n, (q, r) in enumerate(pairs)]
  names = sorted({name for pair in pairs for i in pair for name in made.items[i].attributes})
  images, maps, scores = [], [], []
  chosen: dict[str, list[int]] = {"random": [], "predicted": [], "sane": []}
  shown: dict[str, list[np.ndarray]] = {way: [] for way in chosen}
  for q, r in pairs:
    query, regions = garments.draw(made.items[q])
    images += [query, garments.draw(made.items[r])[0]]
    own, other = made.items[q].attributes, made.items[r].attributes
    shared = [name for name in own if name in other]
    picks = {"random": str(rng.choice(names)), "predicted": own[0], "sane": (shared or own)[0]}
    for way, name in picks.items():
      chosen[way].append(names.index(name))
      region = regions.get(name, np.zeros(query.shape[:2], bool))
      shown[way].append(shrink(region, CELLS))
    maps.append(shown["sane"][-1] - 0.35 * rng.random((CELLS, CELLS)))
    scores.append(len(shared) + 0.1 * rng.normal())
  count = len(pairs)
  small = [Image.fromarray(i).resize((SIZE, SIZE), Image.Resampling.LANCZOS) for i in images]
  return simulate_study.Material(
    images=np.stack([np.asarray(image) for image in small]),
    queries=2 * np.arange(count), references=2 * np.arange(count) + 1, scores=np.array(scores),
    saliency=np.stack(maps).astype(np.float32),
    attributes={way: np.array(numbers) for way, numbers in chosen.items()},
    activations={way: np.stack(each).astype(np.float16) for way, each in shown.items()},
    attribute_names=tuple(names),
  )  # fmt: skip


def shrink(region: np.ndarray, cells: int) -> np.ndarray:
  """Shares of cells that a region covers."""
  picture = Image.fromarray(255 * region.astype(np.uint8)).resize(
    (cells, cells), Image.Resampling.BOX
  )
  return np.asarray(picture, float) / 255


def make_questions(material: simulate_study.Material) -> export.Questions:
  """A few of each kind."""
  high = np.argsort(-material.scores)
  couples = np.stack([high[: COUNT // 2], high[::-1][: COUNT // 2]], axis=1)
  sides = np.arange(len(couples)) % 2
  couples = np.where(sides[:, None] == 0, couples, couples[:, ::-1])

  def items(part: slice) -> proxy.Items:
    none = np.zeros(len(sides[part]), int)
    return proxy.Items(couples[part], sides[part], none, none, 0.5)

  return export.Questions(
    items(slice(0, 20)), items(slice(20, 25)),
    couples[25:27], np.array([0, 1]), int(high[28]),
  )  # fmt: skip


@contextlib.contextmanager
def serving(folder: pathlib.Path, **settings):
  """A server of the study, at the address that is given."""
  questions = questions_lib.read_export(folder / "export")
  store = store_lib.Store(folder / "answers.sqlite", {"fingerprint": questions.fingerprint})
  secret = app_lib.read_secret(folder / "secret")
  how = app_lib.Settings(contact="the study team, study@example.org", **settings)
  app = app_lib.make_app(questions, store, secret, how)
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
      while not server.started:
        time.sleep(0.02)
      yield (
        f"http://127.0.0.1:{listener.getsockname()[1]}",
        questions,
        app_lib.operator_token(secret),
      )
    finally:
      server.should_exit = True
      thread.join()
      store.close()


def visit(page: sync_api.Page, base: str, operator: str, save) -> None:
  """All pages, one after the other."""
  page.goto(base)
  save("welcome")
  page.get_by_role("checkbox").check()
  page.get_by_role("button", name="Begin").click()
  save("instructions")
  page.goto(f"{base}/task")
  for number in range(100):
    if not page.url.endswith("/task"):
      break
    page.locator(".pair img").last.scroll_into_view_if_needed()
    page.keyboard.press("AB"[number % 2])
    kind = "practice" if "Practice" in page.title() else "question"
    if page.locator(".pair figcaption .green").count() or number == 0:
      save(kind)
    page.get_by_role("button", name="Confirm").click()
    if "/feedback" in page.url:
      save("feedback")
      page.locator("[data-role=next]").click()
  save("finish")
  page.goto(f"{base}/pause")
  save("pause")
  page.goto(f"{base}/finish")
  page.get_by_role("button", name="Finish").click()
  save("thanks")
  page.goto(f"{base}/operator?key={operator}")
  save("operator")
  page.goto(f"{base}/nowhere")
  save("refusal")


def take(page: sync_api.Page, path: pathlib.Path, full: bool) -> None:
  """A picture of the page; a browser that is short of time fails now and then."""
  for _ in range(5):
    with contextlib.suppress(sync_api.Error):
      page.screenshot(path=path, full_page=full)
      return
    time.sleep(1)
  raise RuntimeError(f"the browser made no {path}")


def main() -> None:
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else folder
    material = draw_material()
    export.export_study(
      folder / "export", material, make_questions(material), key=1, num_subjects=5
    )
    with serving(folder) as (base, _, operator), sync_api.sync_playwright() as playwright:
      browser = playwright.chromium.launch(
        executable_path=shutil.which("chromium") or shutil.which("chromium-browser"), args=ARGUMENTS
      )
      for size, (width, height) in SIZES.items():
        for scheme in ("light", "dark"):
          context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme
          )
          page = context.new_page()

          def save(what: str, size=size, scheme=scheme, page=page) -> None:
            for full in (False, True):
              take(page, out / f"{what}_{size}_{scheme}{'_full' * full}.png", full)

          visit(page, base, operator, save)
          context.close()
      browser.close()
    docs = pathlib.Path(__file__).parent
    join(out, ["question_desktop_light"]).save(docs / "study.png", optimize=True)
    phones = ("instructions_phone_light", "question_phone_light", "feedback_phone_dark",
              "thanks_phone_dark")  # fmt: skip
    join(out, phones).save(docs / "study_phones.png", optimize=True)


def join(folder: pathlib.Path, names) -> Image.Image:
  """Pictures side by side."""
  pictures = []
  for name in names:
    with Image.open(folder / f"{name}.png") as picture:
      pictures.append(picture.convert("RGB"))
  gap, width = 16, sum(picture.width for picture in pictures)
  made = Image.new("RGB", (width + gap * (len(pictures) - 1), pictures[0].height), (128, 128, 128))
  left = 0
  for picture in pictures:
    made.paste(picture, (left, 0))
    left += picture.width + gap
  return made


if __name__ == "__main__":
  main()
