"""The job: a real process that serves, and what it says where it can't."""

import json
import os
import pathlib
import re
import runpy
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest
from web import viewer_tools as tools

from sane_jax.jobs import serve

ROOT = pathlib.Path(__file__).parents[2]


def configured(workdir, **settings):
  config = runpy.run_path(str(ROOT / "configs" / "photos.py"))["get_config"]()
  config.workdir, config.model = str(workdir), "web.viewer_tools:load"
  config.serve.port = 0
  config.serve.update(settings)
  return config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("serve")
  (folder / "photos").mkdir()
  paths = tools.draw_photos(folder / "photos", np.random.default_rng(0))
  tools.build(folder / "index", paths)
  return folder


def test_no_index_says_how_to_make_one(tmp_path):
  with pytest.raises(ValueError, match=r"no explanation index; build one .*build_index"):
    serve.run(configured(tmp_path))


def test_a_port_in_use_is_named(workdir):
  with socket.create_server(("127.0.0.1", 0)) as other:
    port = other.getsockname()[1]
    with pytest.raises(OSError, match=rf"port {port} .*--config.serve.port"):
      serve.run(configured(workdir, port=port))


def test_an_index_of_another_model_is_named(workdir, monkeypatch):
  monkeypatch.setattr(tools, "load", lambda image_size: tools.model(seed=1))
  with pytest.raises(ValueError, match=r"other weights.*--config.serve.uploads=False"):
    serve.run(configured(workdir))


@pytest.mark.parametrize(
  ("settings", "words"),
  [
    ({"neighbors": 0}, "neighbors is 1 to 200"),
    ({"max_megapixels": 0.0}, "max_megapixels"),
    ({"certificate": "/no/such.pem"}, "no file /no/such.pem"),
    ({"host": "0.0.0.0", "token": "short"}, "16 letters"),
  ],
)
def test_settings_that_can_not_be_are_named(workdir, settings, words):
  with pytest.raises(ValueError, match=words):
    serve.run(configured(workdir, **settings))


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_end(workdir, ending):
  env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
  child = subprocess.Popen(
    [
      sys.executable, "-m", "sane_jax.main", "--config=configs/photos.py", "--config.job=serve",
      f"--config.workdir={workdir}", "--config.model=web.viewer_tools:load",
      "--config.serve.port=0",
    ], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=env,
  )  # fmt: skip
  try:
    address = ""
    for line in child.stdout:
      if found := re.search(r"Open (http://\S+)", line):
        address = found[1]
        break
    with urllib.request.urlopen(f"{address}api/images", timeout=30) as got:
      images = json.loads(got.read())["images"]
    assert [image["name"] for image in images] == tools.NAMES
    with pytest.raises(urllib.error.HTTPError) as refused:
      urllib.request.urlopen(urllib.request.Request(address, headers={"host": "evil.example"}))
    assert refused.value.code == 421
    child.send_signal(ending)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 0
    assert said.splitlines()[-1] == "serve: ended"
    with pytest.raises(urllib.error.URLError):
      urllib.request.urlopen(address, timeout=5)
  finally:
    child.kill()
