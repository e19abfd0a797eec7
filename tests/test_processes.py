"""Work is shared, answers agree, and whoever fails, vanishes or is to leave is heard of by all."""

import os
import re
import subprocess
import sys

import many
import pytest

from sane_jax.runs import processes

# Three processes: what they share first, then what befalls the last of them.
SCRIPT = """
import os, sys, time
from sane_jax.runs import hosts, processes
hosts.HEARTBEAT = 10
what, address, count, i = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
last = i == count - 1
processes.hear_interruptions()
hosts.join_processes(address, count, i)
if what.endswith("hears late") and i == 1:
  class Late:
    def __init__(self, client):
      self.client = client
    def __getattr__(self, name):
      return getattr(self.client, name)
    def key_value_try_get(self, key):
      if key == processes._LEFT:
        time.sleep(3)
      return self.client.key_value_try_get(key)
  prompt = processes._client
  processes._client = lambda: Late(prompt())
try:
  with processes.job("work"):
    assert processes.gather(i, "numbers") == list(range(count))
    assert processes.agree(i, "one") == 0
    assert processes.merge({f"of {i}": i}, "all") == {f"of {n}": n for n in range(count)}
    assert list(processes.share(range(7), "parts", polls=2)) == list(range(i, 7, count))
    if what.startswith("fails") and last or what.startswith("the first fails") and i == 0:
      raise OSError("the disk is full")
    if what == "vanishes" and last:
      os.kill(os.getpid(), 9)
    processes.PATIENCE = 2  # from here, where all have come at once
    if what == "straggles" and last:
      time.sleep(9)
    if what == "is to leave":
      done = 0
      for item in processes.share(range(3000), "work", polls=2):
        done += 1
        print("done", done, flush=True)
        time.sleep(0.01 * (i + 1))
        if last and done == 20:
          os.kill(os.getpid(), 15)
except InterruptedError as error:
  sys.exit(f"main: {error}")
"""


def run(what, count=3):
  environment = {
    **os.environ, "PYTHONPATH": str(many.ROOT), "JAX_NUM_CPU_DEVICES": "1",
    "JAX_PLATFORMS": "cpu",
  }  # fmt: skip
  address = f"127.0.0.1:{many.free_port()}"
  children = [
    subprocess.Popen(
      [sys.executable, "-c", SCRIPT, what, address, str(count), str(i)], env=environment,
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    for i in range(count)
  ]  # fmt: skip
  printed = [child.communicate(timeout=100)[0] for child in children]
  return [child.returncode for child in children], printed


def test_one_process_pays_nothing():
  assert processes.gather("x", "place") == ["x"]
  assert processes.agree(3, "place") == 3
  found = {"a": 1}
  assert processes.merge(found, "place") is found
  assert list(processes.share("abc", "place")) == ["a", "b", "c"]
  assert not processes.must_stop()
  with processes.job("work"):
    pass


@pytest.mark.parametrize(
  ("what", "fails"),
  [
    ("fails", 2), ("fails, hears late", 2),
    ("the first fails", 0), ("the first fails, hears late", 0),
  ],
)  # fmt: skip
def test_a_process_that_fails_is_named_with_its_cause(what, fails):
  codes, printed = run(what)
  assert codes == [1, 1, 1], "\n".join(printed)
  assert f"process {fails} of 3: work: the disk is full" in printed.pop(fails)
  for text in printed:
    assert f"ends: process {fails} ended. work: the disk is full" in text


def test_a_process_that_vanishes_is_named():
  codes, printed = run("vanishes")
  assert codes[2] == -9
  for code, text in zip(codes[:2], printed[:2], strict=True):
    assert code  # 1, or SIGABRT where JAX was quicker
    assert "process 2 vanished" in text or "tasks are unhealthy" in text


def test_a_process_that_is_slow_is_named_and_waited_for():
  codes, printed = run("straggles", 2)
  assert codes == [0, 0]
  assert "has waited 2 s for process 1, which is alive but slower" in printed[0]
  assert "waited" not in printed[1]


def test_sigterm_on_one_stops_all_after_equally_many_items():
  codes, printed = run("is to leave", 2)
  assert codes == [1, 1]
  done = [text.count("done ") for text in printed]
  assert done[0] == done[1]
  assert 20 <= done[0] < 1500
  for text in printed:
    assert "the same command goes on" in text


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("Barrier failed because: task is set to ERROR: UNAVAILABLE: Task 2 heartbeat timeout. This",
     "process 2 vanished"),
    ("UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n1\n3\nThe",
     "process 1 and 3 vanished"),
    ("UNAVAILABLE: Failed to send RPC to coordination service. Either the leader",
     "process 0 vanished"),
    ("something else", r"lost each other \(something else\)"),
  ],
)  # fmt: skip
def test_what_jax_says_in_words(text, words):
  assert re.search(words, processes.lost(text))


UNHEARD = """
import gc, os, signal, time
from sane_jax.runs import processes
processes.hear_interruptions()

def collect(phase, _):
  gc.callbacks.clear()
  os.kill(os.getpid(), signal.{name})
  time.sleep(0.01)  # Python acts on it here, where what is raised is printed and forgotten

class Destroyed:
  def __del__(self):
    collect("", None)

try:
  {begin}
  time.sleep(600)
except KeyboardInterrupt:
  print("heard")
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("begin", ["gc.callbacks.append(collect); gc.collect()", "Destroyed()"])
def test_an_interruption_is_heard_wherever_it_falls(name, begin):
  done = subprocess.run(
    [sys.executable, "-c", UNHEARD.format(name=name, begin=begin)],
    capture_output=True, text=True, timeout=60, cwd=many.ROOT,
  )  # fmt: skip
  assert done.stdout == "heard\n", done.stdout + done.stderr
  assert "ignored" not in done.stderr
