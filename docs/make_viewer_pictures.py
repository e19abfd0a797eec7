"""Makes the pictures of docs/viewer.md: python docs/make_viewer_pictures.py [FOLDER]

Outfits are drawn, measured once with EfficientNet-Lite0 into FOLDER, served, and looked at in a
Chromium on the PATH through playwright.
"""

import collections
import contextlib
import csv
import pathlib
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

import uvicorn
from PIL import Image
from playwright.sync_api import Page, sync_playwright

import sane_jax
from sane_jax.attributes import table as attribute_table
from sane_jax.datasets.outfits_drawn import garments, release
from sane_jax.viewer import app as app_lib
from sane_jax.viewer.collection import Collection
from sane_jax.viewer.measuring import Measuring

DOCS = pathlib.Path(__file__).parent
COUNT = 30
MASKS = 256  # fewer are a single replicate, which has no standard error


def draw(folder: pathlib.Path) -> list[pathlib.Path]:
  """Garments as photos, and a table of those attributes that enough of them have and have not."""
  made = release.compose((60, 4, 4), 7)
  folder.mkdir(parents=True, exist_ok=True)
  paths, have = [], []
  for number, item in enumerate(list(made.items)[:COUNT]):
    path = folder / f"{item.kind} {number:02d}.png"
    Image.fromarray(garments.draw(item)[0]).save(path)
    paths.append(path)
    have.append(set(item.attributes))
  counts = collections.Counter(name for names in have for name in names)
  names = [name for name, count in counts.items() if 4 <= count <= COUNT - 4]
  with (folder.parent / "attributes.csv").open("w", newline="") as out:
    table = csv.writer(out)
    table.writerow(["file", *names])
    for path, mine in zip(paths, have, strict=True):
      table.writerow([path.name, *(int(name in mine) for name in names)])
  return paths


@contextlib.contextmanager
def served(folder: pathlib.Path) -> Iterator[str]:
  """The viewer on drawn garments; its address."""
  paths = draw(folder / "garments")
  model = sane_jax.load_model("efficientnet_lite0")
  explainer = sane_jax.Explainer(model, num_masks=MASKS, mode="both")
  index = sane_jax.ExplanationIndex.build(
    folder / "index", explainer, paths, on_progress=lambda done, n: print(done, n, end="\r")
  )
  table = attribute_table.read_table(folder / "attributes.csv", folder / "garments")
  learned = attribute_table.learn(
    table, sane_jax.Explainer(model, num_masks=MASKS), calibration_photos=4
  )
  collection = Collection([index])
  app = app_lib.make_app(
    collection, model=model, measuring=Measuring(model, collection),
    rankers=lambda query, reference: learned.ranker,
  )  # fmt: skip
  with socket.create_server(("127.0.0.1", 0)) as listener:
    server = uvicorn.Server(uvicorn.Config(app_lib.guard_app(app), log_level="error", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
      time.sleep(0.05)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    server.should_exit = True
    thread.join()


def point(page: Page, card: str, row: int, column: int) -> None:
  """At a region of the query."""
  stage = page.locator(f'[data-role="{card}"] [data-side="query"]')
  box = stage.bounding_box()
  assert box is not None
  page.mouse.move(
    box["x"] + (column + 0.5) * box["width"] / 8, box["y"] + (row + 0.5) * box["height"] / 8
  )
  page.wait_for_timeout(200)


def main() -> None:
  with contextlib.ExitStack() as stack:
    if len(sys.argv) > 1:
      folder = pathlib.Path(sys.argv[1])
    else:
      folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    address = stack.enter_context(served(folder))
    playwright = stack.enter_context(sync_playwright())
    browser = playwright.chromium.launch(
      executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
    )
    for name, width, height, scheme in (
      ("", 1280, 1460, "light"), ("_dark", 1280, 1460, "dark"), ("_phone", 390, 1500, "light"),
    ):  # fmt: skip
      page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
      page.goto(address)
      page.wait_for_selector(".tile")
      if not name:
        page.wait_for_timeout(1500)
        page.set_viewport_size({"width": width, "height": 760})
        page.screenshot(path=DOCS / "viewer_start.png")
        page.set_viewport_size({"width": width, "height": height})
      page.locator(".tile").nth(0).click()
      page.wait_for_selector('[data-role="pair-card"][data-attributed]')
      page.wait_for_timeout(800)
      point(page, "pair-card", 3, 3)
      page.screenshot(path=DOCS / f"viewer{name}.png")
      if not name:
        page.locator(".match-vs").nth(3).click()
        page.wait_for_selector('[data-role="contrast-card"][data-drawn]:not([hidden])')
        page.set_viewport_size({"width": width, "height": 1000})
        page.wait_for_timeout(800)
        point(page, "contrast-card", 3, 3)
        page.screenshot(path=DOCS / "viewer_contrast.png")
      page.close()
    browser.close()
  for path in DOCS.glob("viewer*.png"):  # all colours: with fewer, the colour bars have steps
    Image.open(path).convert("RGB").save(path, optimize=True)


if __name__ == "__main__":
  main()
