"""The job itself, in a process of its own: its settings, its end, SIGKILL, and many at once.

SANE_JAX_STUDY_KILLS sets how often it is killed (2), SANE_JAX_STUDY_SECONDS how long many come (5).
"""

import asyncio
import os
import re
import signal
import threading
import time

import httpx
import ml_collections
import pytest
import study_export
import study_load

from sane_jax.jobs import study
from sane_jax.study.server import store as store_lib

KILLS = int(os.environ.get("SANE_JAX_STUDY_KILLS", "2"))
SECONDS = float(os.environ.get("SANE_JAX_STUDY_SECONDS", "5"))


@pytest.fixture
def workdir(tmp_path):
  study_export.export(tmp_path / "study" / "export")
  return tmp_path


def make_config(workdir, **fields):
  settings = {
    "folder": "study", "host": "", "port": 0, "token": "", "certificate": "",
    "certificate_key": "", "public_url": "", "design_of_subjects": "within",
    "items_per_subject": None, "max_subjects": 10, "closes": "", "drop_out_hours": 24.0,
    "title": "t", "contact": "", "consent": "",
  }  # fmt: skip
  assert not set(fields) - set(settings)
  return ml_collections.ConfigDict({"workdir": str(workdir), "study": {**settings, **fields}})


def attend(port, subjects, seconds, think):
  return asyncio.run(study_load.attend(port, subjects, seconds, think))


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"design_of_subjects": "mixed"}, "within or between; given 'mixed'"),
    ({"items_per_subject": 99}, r"items_per_subject is 1 to 10.*given 99"),
    ({"closes": "soon"}, r"closes is a date"),
    ({"max_subjects": 0}, "max_subjects is 1 or more"),
    ({"port": 99999}, r"--config\.study\.port is 0"),
    ({"token": "short"}, r"--config\.study\.token"),
  ],
)
def test_settings_that_do_not_do_are_named(workdir, fields, words):
  with pytest.raises(ValueError, match=words):
    study.run(make_config(workdir, **fields))
  assert not (workdir / "study" / "answers.sqlite").exists()


def test_without_an_export_the_next_command_is_named(tmp_path):
  with pytest.raises(ValueError, match=r"run --config\.job=simulate_study first"):
    study.run(make_config(tmp_path))


@pytest.mark.parametrize("bucket", ["gs://bucket/run", "s3://bucket/run"])
def test_a_bucket_is_refused_by_name(bucket):
  with pytest.raises(ValueError, match=rf"{bucket}/study: answers are kept in SQLite, which needs"):
    study.run(make_config(bucket))


def test_it_says_where_it_is_and_ends_in_order(workdir):
  port = study_load.free_port()
  token = "a-token-for-all-who-come"
  process = study_load.start(workdir, port, host="127.0.0.1", token=token)
  try:
    assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 401
    assert httpx.get(f"http://127.0.0.1:{port}/", params={"token": token}).status_code == 303
    with pytest.raises(ValueError, match="another server has"):
      store_lib.Store(workdir / "study" / "answers.sqlite", {})
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=30)
    assert "Traceback" not in said
    assert process.returncode == 0
  finally:
    process.kill()
  assert {path.name for path in (workdir / "study").iterdir()} == {
    "answers.sqlite", "answers.lock", "export", "secret",
  }  # fmt: skip


def test_links_are_those_that_others_can_open(workdir):
  token = "a-token-for-all-who-come"
  with study_load.server(
    workdir, port := study_load.free_port(), token=token, public_url="https://study.example.org/"
  ) as process:
    invite = re.search("Invite with (.*)", process.said)[1]
    look = re.search("Look on with (.*)", process.said)[1]
    assert invite == f"https://study.example.org/?token={token}"
    assert look.startswith("https://study.example.org/operator?key=")
    local = look.replace("https://study.example.org", f"http://127.0.0.1:{port}")
    # Behind something that speaks https, cookies are for https alone.
    with httpx.Client(follow_redirects=False) as client:
      got = client.get(local)  # the token goes into a cookie, and out of the address
      assert got.status_code == 303
      assert token not in got.headers["location"]
      key = re.search("key=([^&]*)", look)[1]
      got = client.get(f"http://127.0.0.1:{port}/operator", params={"key": key})
      assert got.status_code == 303
      assert "Secure" in got.headers["set-cookie"]
      named = {"host": "study.example.org"}
      assert client.get(f"http://127.0.0.1:{port}/operator", headers=named).status_code == 401
      named = {"host": "evil.example.org"}
      assert client.get(f"http://127.0.0.1:{port}/operator", headers=named).status_code == 421


def test_what_was_acknowledged_is_there_after_a_kill(workdir):
  """Killed in the middle, again and again; those who take part notice a pause."""
  port, span = study_load.free_port(), 2.0
  processes = [study_load.start(workdir, port, max_subjects=100_000)]
  heard, done = [], threading.Event()

  def kill():
    for _ in range(KILLS):
      time.sleep(span)
      processes[-1].kill()
      processes[-1].communicate()
      processes.append(study_load.start(workdir, port, max_subjects=100_000))
    done.set()

  killer = threading.Thread(target=kill)
  killer.start()
  try:
    while not done.is_set():
      heard.append(attend(port, 8, 4 * span, 0.1))
    heard.append(attend(port, 8, 1.0, 0.1))
    killer.join()
  finally:
    done.wait(120)
    processes[-1].kill()
    processes[-1].communicate()
  assert len(processes) == KILLS + 1
  all_of_them = study_load.Heard(
    [p for h in heard for p in h.people], [p for h in heard for p in h.sent], {},
    sum((h.refused for h in heard), start=heard[0].refused.__class__()),
  )  # fmt: skip
  found = study_load.compare(all_of_them, workdir / "study" / "answers.sqlite")
  assert found["acknowledged"] > 50
  assert (found["lost"], found["doubled"], found["never sent"]) == (0, 0, 0), found
  assert found["stored"] - found["acknowledged"] <= 8 * (KILLS + 1) + 8 * len(heard)
  # An answer of which nothing was heard is refused as answered, or is the next one: no other way.
  assert set(all_of_them.refused) <= {"answer 409"}, all_of_them.refused


def test_many_at_once_lose_nothing(workdir):
  port = study_load.free_port()
  with study_load.server(workdir, port, max_subjects=100_000, design_of_subjects="between"):
    heard = attend(port, 100, SECONDS, 0.5)
  assert not heard.refused
  path = workdir / "study" / "answers.sqlite"
  found = study_load.compare(heard, path)
  assert found["acknowledged"] >= 100
  assert (found["lost"], found["doubled"], found["never sent"]) == (0, 0, 0), found
  subjects = store_lib.read_study(path)[0]
  assert len(subjects) >= 90


def test_the_comparison_finds_what_is_lost(workdir):
  """The check can fail."""
  port = study_load.free_port()
  with study_load.server(workdir, port):
    heard = attend(port, 3, 2.0, 0.02)
  path = workdir / "study" / "answers.sqlite"
  assert study_load.compare(heard, path)["lost"] == 0
  heard.people[0]["an item that was never stored"] = "A"
  assert study_load.compare(heard, path)["lost"] == 1
  item = next(iter(heard.people[1]))
  heard.people[1][item] = heard.sent[1][item] = "BA"[heard.people[1][item] == "B"]
  found = study_load.compare(heard, path)
  assert (found["lost"], found["never sent"]) == (2, 1)
  assert re.match("A|B", heard.people[1][item])
