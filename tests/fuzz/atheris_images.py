"""Coverage-guided damage to images: `python -m fuzz.atheris_images [-runs=N] [CORPUS]` in tests/.

Needs `pip install atheris`. Any error but ImageError is a crash, and libFuzzer keeps its input.
"""

import io
import pathlib
import sys
import tempfile

import atheris

with atheris.instrument_imports(include=["PIL", "sane_jax.datasets.images"]):
  from PIL import Image

  from sane_jax.datasets import images, pipeline, records

from fuzz.images import seeds


def one_input(data: bytes) -> None:
  """Reads it in each of the ways that images are read."""
  records.image_problem(data)
  for read in (lambda: pipeline.decode(data, 16), lambda: images.read_image(_open(data))):
    try:
      read()
    except images.ImageError:
      continue


def _open(data: bytes) -> Image.Image:
  try:
    return Image.open(io.BytesIO(data), formats=images.FORMATS)
  except Exception as error:  # as read_image does with a path
    raise images.ImageError(str(error)) from error


if __name__ == "__main__":
  with tempfile.TemporaryDirectory() as corpus:
    for number, seed in enumerate(seeds()):
      pathlib.Path(corpus, str(number)).write_bytes(seed)
    atheris.Setup(
      [*sys.argv, "-max_len=8192", "-rss_limit_mb=4096", "-timeout=20", corpus], one_input
    )
    atheris.Fuzz()
