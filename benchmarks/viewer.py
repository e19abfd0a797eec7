"""How long the viewer's answers take: python benchmarks/viewer.py FOLDER

Writes an index of 10,000 images into FOLDER, of the shapes that EfficientNet-Lite0's has (64 cells,
1,280 axes, float16: 1.7 GB). Its effects are drawn, no model measured them: what an answer costs
depends on their shapes alone. Effects are a few smooth patterns and noise, so that compressing and
reading them is no easier than for photos. 200 photos stand in for all 10,000 as their pictures.

Then a real server process answers concurrent clients, each of which asks as the page does: the
query's nearest, then the pair of the first, then another pair. The time of `nearest` and of `pair`,
and of the two after each other, is told in percentiles, from the client's side. No encoder is
loaded. Both run on this machine, on the cores that are left to them.
"""

import argparse
import http.client
import json
import pathlib
import re
import subprocess
import sys
import threading
import time

import numpy as np
import tqdm
from PIL import Image

from sane_jax.maps import index_arrays

ROOT = pathlib.Path(__file__).parents[1]
GRID, AXES, SPREAD = (8, 8), 1280, 32


def draw_index(folder: pathlib.Path, count: int, dtype: str, photos: int = 200) -> None:
  """An index of drawn effects, as `ExplanationIndex` opens it."""
  rng = np.random.default_rng(0)
  pictures = folder / "photos"
  pictures.mkdir(parents=True, exist_ok=True)
  for number in range(photos):
    coarse = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
    path = pictures / f"{number:03d}.jpg"
    coarse.resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90)
  ids = [f"image {number:05d}" for number in range(count)]
  manifest = {
    "settings": {
      "model": "drawn", "image_size": [224, 224], "fit": "crop", "design": "hadamard",
      "num_masks": 256, "grid": list(GRID), "smoothing": 0.5, "num_reference_masks": 30,
      "fill": "mean+blur", "mode": "fixed", "key": [0, 0], "jax": "",
    },
    "images": {"fit": "crop", "crop_fraction": 0.875, "interpolation": "bicubic"},
    "probe": [0.0] * AXES, "grid": list(GRID), "dtype": dtype, "spread": SPREAD, "rest": True,
    "masked": False,
    "num_types": 1, "ids": ids,
    "sources": [str(pictures / f"{number % photos:03d}.jpg") for number in range(count)],
    "left_out": {},
  }  # fmt: skip
  index = index_arrays.open_index(
    folder / "index", queries=np.arange(count), types=np.zeros(count, int), num_types=1, grid=GRID,
    embedding_size=AXES, dtype=dtype, spread=SPREAD, rest=True,
  )  # fmt: skip
  centers = rng.normal(size=(50, AXES)).astype(np.float32)
  for shard in tqdm.tqdm(index_arrays.missing_shards(index, "effects"), desc="drawing the index"):
    where = index_arrays.shard_slice(shard, count)
    size = where.stop - where.start
    near = centers[rng.integers(0, 50, size)]
    embeddings = near + rng.normal(size=(size, AXES), scale=0.8).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    effects = rng.normal(size=(size, 1, 64, AXES), scale=1e-3).astype(np.float32)
    effects += rng.normal(size=(size, 1, 64, 1), scale=0.02) * embeddings[:, None, None]
    spread = rng.normal(size=(size, 1, AXES, SPREAD), scale=1e-4).astype(np.float32)
    index_arrays.write_shard(index, "embeddings", shard, embeddings[:, None])
    index_arrays.write_shard(index, "spread", shard, spread)
    index_arrays.write_shard(index, "rest", shard, np.full((size, 1), 1e-4, np.float32))
    index_arrays.write_shard(index, "effects", shard, effects)
  (folder / "index" / "index.json").write_text(json.dumps(manifest))


def start_server(folder: pathlib.Path, *extra: str) -> tuple[subprocess.Popen[str], str, int]:
  """The viewer's job in a process of its own; it, its host and its port."""
  command = [
    sys.executable, "-m", "sane_jax.main", f"--config={ROOT / 'configs' / 'photos.py'}",
    "--config.job=serve", f"--config.workdir={folder}", "--config.serve.port=0",
    "--config.serve.uploads=False", *extra,
  ]  # fmt: skip
  server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
  assert server.stdout is not None
  for line in server.stdout:
    found = re.search(r"http://([\d.]+):(\d+)/", line)
    if found:
      return server, found[1], int(found[2])
  raise SystemExit("the server did not start")


def ask(connection: http.client.HTTPConnection, path: str) -> tuple[float, bytes]:
  """Milliseconds until the whole answer is here, and the answer."""
  began = time.perf_counter()
  connection.request("GET", path)
  response = connection.getresponse()
  data = response.read()
  took = 1000 * (time.perf_counter() - began)
  if response.status != 200:
    raise SystemExit(f"{path}: {response.status} {data[:300]!r}")
  return took, data


def visit(host: str, port: int, keys: list[str], rng: np.random.Generator, turns: int, out) -> None:
  """A visitor who looks at one query after the other."""
  connection = http.client.HTTPConnection(host, port, timeout=60)
  for _ in range(turns):
    query = keys[int(rng.integers(len(keys)))]
    first, data = ask(connection, f"/api/nearest?query={query}&count=24")
    matches = [match["key"] for match in json.loads(data)["matches"]]
    second, data = ask(connection, f"/api/pair?query={query}&reference={matches[0]}")
    third, _ = ask(connection, f"/api/pair?query={query}&reference={matches[5]}")
    thumbnail, _ = ask(connection, f"/api/images/{matches[0]}/picture?thumbnail=true")
    out.append((first, second, first + second, third, thumbnail, len(data)))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
  parser.add_argument("folder", type=pathlib.Path)
  parser.add_argument("--images", type=int, default=10_000)
  parser.add_argument("--dtype", default="float16", choices=("float16", "int8"))
  parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8])
  parser.add_argument("--turns", type=int, default=400, help="of all clients together")
  given = parser.parse_args()
  if not (given.folder / "index" / "index.json").exists():
    draw_index(given.folder, given.images, given.dtype)
  size = sum(p.stat().st_size for p in (given.folder / "index").rglob("*") if p.is_file())
  began = time.monotonic()
  server, host, port = start_server(given.folder, "--config.serve.cache_gib=2.0")
  try:
    print(f"{given.images:,} images, {size / 1e9:.2f} GB on disk; the server answers after"
          f" {time.monotonic() - began:.1f} s")  # fmt: skip
    connection = http.client.HTTPConnection(host, port, timeout=60)
    keys: list[str] = []
    while True:
      _, data = ask(connection, f"/api/images?count=500&offset={len(keys)}")
      some = json.loads(data)["images"]
      if not some:
        break
      keys += [image["key"] for image in some]
    warm: list[tuple[float, ...]] = []
    visit(host, port, keys, np.random.default_rng(1), 30, warm)
    print(f"first answer {warm[0][2]:.0f} ms; a pair is {warm[0][5] / 1000:.1f} kB of JSON")
    names = ("nearest", "first pair", "both", "another pair", "thumbnail")
    print(f"ms, p50 / p95 / p99    {''.join(f'{name:18s}' for name in names)}turns/s")
    for clients in given.clients:
      out: list[tuple[float, ...]] = []
      threads = [
        threading.Thread(
          target=visit,
          args=(
            host,
            port,
            keys,
            np.random.default_rng(10 * clients + n),
            given.turns // clients,
            out,
          ),
        )
        for n in range(clients)
      ]
      began = time.perf_counter()
      for thread in threads:
        thread.start()
      for thread in threads:
        thread.join()
      seconds = time.perf_counter() - began
      columns = np.array(out)[:, :5].T
      told = ["{:.0f} / {:.0f} / {:.0f}".format(*np.percentile(c, (50, 95, 99))) for c in columns]
      print(f"{clients:2d} clients             {''.join(f'{text:18s}' for text in told)}"
            f"{len(out) / seconds:.1f}")  # fmt: skip
  finally:
    server.terminate()
    server.wait(30)


if __name__ == "__main__":
  main()
