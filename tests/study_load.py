"""Many subjects at once: python tests/study_load.py [--subjects=100] [--seconds=300] [--think=4]

Each reads a page, loads its pictures, thinks a little, answers, and begins anew as somebody else
when he has finished. A server of the study runs in a process of its own on this machine; all that
it acknowledged is compared with what it stored.
"""

import argparse
import asyncio
import collections
import contextlib
import html
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import study_export

from sane_jax.study.server import store as store_lib

ROOT = pathlib.Path(__file__).parents[1]


class Heard(NamedTuple):
  """What subjects saw of a server.

  Attributes:
    people: of each who began, his answers by item that the server acknowledged.
    sent: and those that it may have stored without saying so.
    seconds: how long requests of a kind took.
    refused: statuses other than those expected, how often.
  """

  people: list[dict[str, str]]
  sent: list[dict[str, str]]
  seconds: dict[str, list[float]]
  refused: collections.Counter[str]


def free_port() -> int:
  with socket.create_server(("127.0.0.1", 0)) as listener:
    return listener.getsockname()[1]


@contextlib.contextmanager
def server(workdir: pathlib.Path, port: int, **fields) -> Iterator[subprocess.Popen]:
  """The job in a process of its own, until its end."""
  process = start(workdir, port, **fields)
  try:
    yield process
  finally:
    process.kill()
    process.communicate()


def start(workdir: pathlib.Path, port: int, **fields) -> subprocess.Popen:
  """Returns when it answers; `said` is what it printed."""
  settings = {"port": port, **fields}
  process = subprocess.Popen(
    [
      sys.executable, "-m", "sane_jax.main", "--config=configs/polyvore.py", "--config.job=study",
      f"--config.workdir={workdir}",
      *(f"--config.study.{name}={value}" for name, value in settings.items()),
    ],
    cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
  )  # fmt: skip
  said = []
  for line in process.stdout:
    said.append(line)
    if line.startswith("Look on with"):
      process.said = "".join(said)
      return process
  raise RuntimeError("the server did not start: " + "".join(said))


class Answer(NamedTuple):
  """Of a server."""

  status: int
  location: str
  text: str


class Browser:
  """A connection that is kept, and cookies: so little that the server has its share of cores."""

  def __init__(self, port: int, address: str = "127.0.0.1"):
    self._port, self._address, self._cookies = port, address, {}
    self._reader = self._writer = None

  async def request(self, method: str, path: str, form: dict[str, str] | None = None) -> Answer:
    if self._writer is None:
      self._reader, self._writer = await asyncio.open_connection(
        "127.0.0.1", self._port, local_addr=(self._address, 0)
      )
    body = urllib.parse.urlencode(form or {}).encode()
    cookies = "; ".join(f"{k}={v}" for k, v in self._cookies.items())
    kind = "content-type: application/x-www-form-urlencoded\r\n" if form else ""
    head = (
      f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{self._port}\r\naccept: text/html\r\n"
      f"cookie: {cookies}\r\n{kind}content-length: {len(body)}\r\n\r\n"
    )
    self._writer.write(head.encode() + body)
    lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    length, location = 0, ""
    for line in lines[1:]:
      name, _, value = line.partition(": ")
      if name == "content-length":
        length = int(value)
      elif name == "location":
        location = value
      elif name == "set-cookie":
        cookie, _, rest = value.partition("=")
        self._cookies[cookie] = rest.partition(";")[0]
    data = await self._reader.readexactly(length)
    return Answer(int(lines[0].split()[1]), location, data.decode("utf-8", "replace"))

  def close(self) -> None:
    if self._writer is not None:
      self._writer.close()
    self._writer = None


async def _ask(browser, heard, kind, method, path, form=None) -> Answer:
  begun = time.perf_counter()
  got = await browser.request(method, path, form)
  heard.seconds[kind].append(time.perf_counter() - begun)
  return got


def _field(text: str, name: str) -> str:
  return html.unescape(re.search(rf'name="{name}" value="([^"]*)"', text)[1])


def address_of(number: int) -> str:
  """Of a subject: limits of frequency are by address. Only Linux has all of 127.0.0.0/8."""
  return f"127.0.{1 + number // 250}.{1 + number % 250}" if sys.platform == "linux" else "127.0.0.1"


async def _take_part(port, address, heard, rng, think, until) -> None:
  """One person, from consent until the end of the study or of the time; patient with restarts."""
  confirmed: dict[str, str] = {}
  sent: dict[str, str] = {}
  heard.people.append(confirmed)
  heard.sent.append(sent)
  seen: set[str] = set()
  consented = False
  browser = Browser(port, address)
  while time.monotonic() < until:
    try:
      if not consented:
        page = (await _ask(browser, heard, "welcome", "GET", "/")).text
        form = {"token": _field(page, "token"), "visit": _field(page, "visit"), "agree": "yes"}
        got = await _ask(browser, heard, "consent", "POST", "/consent", form)
        if got.status != 303:
          heard.refused[f"consent {got.status}"] += 1
          await asyncio.sleep(1)
          continue
        consented = True
      got = await _ask(browser, heard, "question", "GET", "/task")
      if got.status == 303:
        break
      if got.status != 200:
        heard.refused[f"question {got.status}"] += 1
        await asyncio.sleep(1)
        continue
      item, token = _field(got.text, "item"), _field(got.text, "token")
      for path in re.findall(r'src="(/picture/[^"]*)"', got.text):
        if path not in seen:  # browsers keep them
          await _ask(browser, heard, "picture", "GET", path)
          seen.add(path)
      thought = rng.uniform(0.5, 1.5) * think
      await asyncio.sleep(thought)
      choice = rng.choice("AB")
      form = {"token": token, "item": item, "answer": choice, "seconds": f"{thought:.3f}"}
      sent[item] = choice
      got = await _ask(browser, heard, "answer", "POST", "/answer", form)
      if got.status == 303:
        confirmed[item] = choice
        if "/feedback" in got.location:
          await _ask(browser, heard, "feedback", "GET", got.location)
      else:
        heard.refused[f"answer {got.status}"] += 1
    except (OSError, asyncio.IncompleteReadError):
      browser.close()
      await asyncio.sleep(0.1)  # it was killed, and comes back
  browser.close()


async def attend(port: int, subjects: int, seconds: float, think: float, seed: int = 0) -> Heard:
  """That many at a time, for so long; who finishes is followed by another."""
  heard = Heard([], [], collections.defaultdict(list), collections.Counter())
  until = time.monotonic() + seconds

  async def sit(number: int) -> None:
    rng = random.Random(f"{seed} {number}")
    await asyncio.sleep(rng.uniform(0, min(think, seconds / 4)))
    while time.monotonic() < until:
      await _take_part(port, address_of(number), heard, rng, think, until)

  await asyncio.gather(*(sit(number) for number in range(subjects)))
  return heard


def compare(heard: Heard, path: pathlib.Path) -> dict[str, int]:
  """How acknowledged and stored answers differ.

  Each person's answers are looked for among the subjects: the one who has the most of them.
  """
  stored: dict[int, dict[str, str]] = collections.defaultdict(dict)
  doubled = 0
  for row in store_lib.read_study(path)[1]:
    doubled += row.item in stored[row.subject]
    stored[row.subject][row.item] = row.answer
  left = dict(stored)
  lost = unasked = 0
  for confirmed, sent in sorted(
    zip(heard.people, heard.sent, strict=True), key=lambda both: -len(both[0])
  ):
    best = max(left, key=lambda s: len(confirmed.items() & left[s].items()), default=None)
    if best is None or not confirmed.items() & left[best].items():
      lost += len(confirmed)
      continue
    have = left.pop(best)
    lost += len(confirmed.items() - have.items())
    unasked += len(have.items() - sent.items())
  # Whoever is left was acknowledged nothing: at most what was sent and not heard of.
  return {
    "acknowledged": sum(map(len, heard.people)),
    "stored": sum(map(len, stored.values())),
    "lost": lost,
    "doubled": doubled,
    "never sent": unasked,
  }


def summary(heard: Heard) -> dict[str, dict[str, float]]:
  """Milliseconds by kind of request."""
  return {
    kind: {
      "count": len(times),
      **{f"p{q}": round(1000 * float(np.percentile(times, q)), 1) for q in (50, 95, 99)},
      "max": round(1000 * max(times), 1),
    }
    for kind, times in heard.seconds.items()
  }


def processor_seconds(pid: int) -> float:
  """That a process has used so far."""
  fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
  return round((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), 1)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--subjects", type=int, default=100)
  parser.add_argument("--seconds", type=float, default=300)
  parser.add_argument("--think", type=float, default=4.0)
  parser.add_argument("--size", type=int, default=224)
  flags = parser.parse_args()
  with tempfile.TemporaryDirectory() as name:
    workdir = pathlib.Path(name)
    study_export.export(
      workdir / "study" / "export", items=40, practice=5, checks=3, size=flags.size
    )
    port = free_port()
    with server(workdir, port, max_subjects=100_000) as process:
      before = time.process_time()
      heard = asyncio.run(attend(port, flags.subjects, flags.seconds, flags.think))
      own = round(time.process_time() - before, 1)
      took = processor_seconds(process.pid)
      process.send_signal(signal.SIGTERM)
      process.communicate(timeout=30)
    print(json.dumps({
      "subjects at once": flags.subjects, "people": len(heard.people), "seconds": flags.seconds,
      "think": flags.think, "processor seconds of the server": took,
      "of the subjects": own, "milliseconds": summary(heard), "refused": dict(heard.refused),
      **compare(heard, workdir / "study" / "answers.sqlite"),
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
  main()
