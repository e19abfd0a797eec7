"""Pictures of pages as a reader sees them: python docs/make_page_pictures.py

Runs the commands of docs/tour.md (configs/photos.py, then configs/demo.py, some 6 minutes on two
cores; what is finished is found again) and takes pictures of their pages in Chromium. Needs
playwright and a Chromium on the PATH, or its path in CHROMIUM.
"""

import io
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = pathlib.Path(__file__).parents[1]
QUIET = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


def run(folder: pathlib.Path, config: str) -> None:
  """Runs a config's job in a folder."""
  command = [sys.executable, "-m", "sane_jax.main", f"--config={ROOT}/configs/{config}.py"]
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  subprocess.run(command, cwd=folder, env=environment, check=True)


def save(png: bytes, name: str) -> None:
  """Keeps a picture as a JPEG of the documents."""
  picture = Image.open(io.BytesIO(png)).convert("RGB")
  picture.save(ROOT / "docs" / name, quality=86, optimize=True)
  print(f"docs/{name}: {picture.size}")


def main(folder: pathlib.Path) -> None:
  for config in ("photos", "demo"):
    run(folder, config)
  chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
  with sync_playwright() as play:
    browser = play.chromium.launch(executable_path=chromium, args=QUIET)
    page = browser.new_page(viewport={"width": 1180, "height": 900}, color_scheme="light")
    page.goto((folder / "runs/photos/explain/index.html").as_uri())
    page.wait_for_timeout(1500)  # maps are drawn as they come into view
    stage = page.locator('[data-role="stage"]').first
    box = stage.bounding_box()
    assert box is not None
    stage.hover(position={"x": box["width"] * 0.56, "y": box["height"] * 0.56})
    page.wait_for_timeout(500)
    save(page.screenshot(), "page.jpg")
    page.goto((folder / "runs/demo/explain/index.html").as_uri())
    card = page.locator('[data-role="card"]').nth(3)
    card.scroll_into_view_if_needed()
    page.wait_for_timeout(1500)
    save(card.screenshot(), "page_attributes.jpg")
    browser.close()


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
