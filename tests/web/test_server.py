"""Where a server listens, who is told, and how it ends."""

import pathlib
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from sane_jax.web import server

SCRIPT = """
import sys
from fastapi import FastAPI
from sane_jax.web import guard, server
app = FastAPI()

@app.get("/")
def home():
  return "home"

address = server.choose_address(sys.argv[1], 0, "", "--config.serve")
said = lambda link: print(link, flush=True)
guarded = guard.Guard(app, token=address.token, hosts=address.hosts)
server.run(guarded, address, "--config.serve", on_ready=said)
print("ended in order")
"""


def test_this_machine_alone_by_default():
  address = server.choose_address("", 8000, "", "--config.serve")
  assert address == ("127.0.0.1", 8000, "", ("127.0.0.1", "localhost", "::1"))
  for host in ("::1", "localhost", "127.8.8.8"):
    assert server.choose_address(host, 0, "", "s").token == ""


def test_others_reach_it_with_a_token():
  addresses = [server.choose_address("0.0.0.0", 0, "", "s") for _ in range(2)]
  assert len({a.token for a in addresses}) == 2
  assert all(len(a.token) >= 24 and a.hosts is None for a in addresses)
  given = server.choose_address("192.168.1.2", 0, "long enough token", "s")
  assert given.token == "long enough token"


@pytest.mark.parametrize(
  ("host", "port", "token", "words"),
  [
    ("", 70000, "", "port is 0"),
    ("0.0.0.0", 0, "short", "16 letters"),
    ("0.0.0.0", 0, "not\nprintable but long", "16 letters"),
  ],
)
def test_what_can_not_be_is_refused(host, port, token, words):
  with pytest.raises(ValueError, match=words):
    server.choose_address(host, port, token, "--config.serve")


def test_a_port_in_use_is_named():
  with socket.create_server(("127.0.0.1", 0)) as other:
    port = other.getsockname()[1]
    with pytest.raises(OSError, match=rf"port {port} .*in use.*--config.serve.port"):
      server.bind(server.choose_address("", port, "", "--config.serve"), "--config.serve")


def test_a_name_that_is_no_address_is_named():
  address = server.Address("no.such.host.invalid", 0, "", None)
  with pytest.raises(OSError, match=r"no.such.host.invalid is no address"):
    server.bind(address, "s")


def test_links_can_be_opened():
  with socket.create_server(("127.0.0.1", 0)) as listener:
    port = listener.getsockname()[1]
    address = server.Address("127.0.0.1", 0, "t" * 16, None)
    assert server.link(address, listener) == f"http://127.0.0.1:{port}/?token={'t' * 16}"
    link = server.link(address._replace(host="::1", token=""), listener, "https")
    assert link == f"https://[::1]:{port}/"


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_end(ending):
  child = subprocess.Popen(
    [sys.executable, "-c", SCRIPT, "127.0.0.1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    text=True,
  )  # fmt: skip
  try:
    address = child.stdout.readline().strip()
    with urllib.request.urlopen(address, timeout=20) as got:
      assert got.read() == b'"home"'
      assert "server" not in {name.lower() for name in got.headers}
    child.send_signal(ending)
    said, _ = child.communicate(timeout=20)
    assert child.returncode == 0
    assert said == "ended in order\n"
    with pytest.raises(urllib.error.URLError):
      urllib.request.urlopen(address, timeout=5)
  finally:
    child.kill()


@pytest.mark.parametrize("job", ["study", "serve"])
def test_without_the_web_libraries_a_job_says_what_to_install(job):
  """As on a machine that has the package alone; not a stack trace."""
  script = (
    "import sys; sys.modules.update(dict.fromkeys(('fastapi', 'pydantic', 'uvicorn')))\n"
    f"sys.argv = ['main', '--config=configs/photos.py', '--config.job={job}']\n"
    "from sane_jax import main; main.run()"
  )
  done = subprocess.run(
    [sys.executable, "-c", script], capture_output=True, text=True, timeout=100,
    cwd=pathlib.Path(__file__).parents[2],
  )  # fmt: skip
  assert "pip install 'sane_jax[web]'" in done.stderr
  assert "Traceback" not in done.stderr
