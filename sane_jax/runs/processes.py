"""Several processes that run one job: who does what, who waits for whom, and what if one is gone.

All of it is JAX's coordination service. A single process pays nothing: everything here returns at
once. Each process calls these functions in the same order, as it does JAX's own collectives.
"""

import atexit
import contextlib
import json
import logging
import math
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils

from sane_jax.runs import hosts

PATIENCE = 60.0  # seconds without progress after which it is said who is awaited
_FOREVER = 7 * 24 * 3600 * 1000  # ms
_LEFT, _HEARD, _AT = "sane_jax/left", "sane_jax/heard", "sane_jax/at"
_FAREWELL = 20.0  # seconds that the first process stays at most for the others to hear why

Item = TypeVar("Item")
_over = threading.Event()
_polled = 0  # calls of must_stop, in all jobs
_met = 0  # meetings, in all jobs; both are the same on all processes, at the same place of the work


def count() -> int:
  """How many there are; without starting JAX's back end where there is one."""
  return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
  """Whether this is the process that writes what there is one of."""
  return count() == 1 or jax.process_index() == 0


def wait_for_all(what: str) -> None:
  """Returns when every process has come here. Who is awaited for long is named on standard error.

  Raises:
    JaxRuntimeError: a process is gone.
  """
  gather(None, what)


def gather(value: Any, what: str) -> list[Any]:
  """The JSON value that each process gives here, in their order. A meeting point."""
  if count() == 1:
    return [value]
  global _met
  _met += 1
  client, meeting = _client(), f"sane_jax/{_met} {what}"
  client.key_value_set(f"{meeting}/{jax.process_index()}", json.dumps(value))
  client.wait_at_barrier(meeting, _FOREVER)
  return [json.loads(client.key_value_try_get(f"{meeting}/{i}")) for i in range(count())]


def agree(value: Item, what: str) -> Item:
  """The first process's value, on all of them: whatever each of them sees of a shared disk."""
  return gather(value, what)[0]


def merge(found: dict[str, Item], what: str) -> dict[str, Item]:
  """What any process found, by name; the same dictionary on all of them."""
  parts = gather(found, what)
  if len(parts) == 1:
    return found
  return {name: value for part in parts for name, value in sorted(part.items())}


def share(items: Sequence[Item], what: str, *, polls: int = 1) -> Iterator[Item]:
  """This process's part of the items, one after the other; all have theirs when it ends.

  Every P-th, so that neighbours go to different processes. Whoever leaves the loop earlier leaves
  the job.

  Args:
    items: the same on all processes.
    what: for messages.
    polls: how often at most the loop's body calls `stop_if_asked` for an item.

  Raises:
    InterruptedError: a machine of the run is about to be taken away; on all processes, each of
      which has then done equally many items.
  """
  global _polled
  if count() == 1:
    yield from items
    return
  index = jax.process_index()
  for begin in range(0, len(items), count()):
    before = _polled
    if begin + index < len(items):
      yield items[begin + index]
    while _polled < before + polls:  # all processes poll equally often, whatever they had to do
      stop_if_asked(what)
  wait_for_all(what)


def must_stop() -> bool:
  """Whether a machine of the run is about to be taken away: true on all processes at one call.

  Each call counts: all processes make equally many, whatever they do between.
  """
  global _polled
  if count() == 1:
    return False
  _polled += 1
  return multihost_utils.reached_preemption_sync_point(_polled)


def stop_if_asked(what: str) -> None:
  """Raises InterruptedError where `must_stop`."""
  if must_stop():
    raise InterruptedError(f"{what}: stopped; what is done is kept, the same command goes on")


def hear_interruptions() -> None:
  """Makes SIGTERM an interruption like Ctrl-C, of which nothing finished is lost; loses neither.

  Called before several processes are joined: with them, JAX's own watcher of preemption hears
  SIGTERM. Python prints and forgets an interruption that falls into a destructor or a callback of
  the garbage collector, of which JAX has some: a timer raises it again until it is heard.
  """
  if threading.current_thread() is not threading.main_thread():
    return
  show = sys.unraisablehook

  def interrupt(*_: Any) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)
    raise KeyboardInterrupt

  def raise_again(unraisable: Any) -> None:
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
      return show(unraisable)
    signal.signal(signal.SIGALRM, interrupt)
    # Here and now it would be lost once more. Repeated: a signal that comes while memory is
    # collected is acted on only after the next one, if Python waits by then.
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.1)

  signal.signal(signal.SIGTERM, interrupt)
  if callable(signal.getsignal(signal.SIGINT)):  # a shell's background job ignores it
    signal.signal(signal.SIGINT, interrupt)
  sys.unraisablehook = raise_again


# --- the end --------------------------------------------------------------------------------------


@contextlib.contextmanager
def job(name: str) -> Iterator[None]:
  """Runs a job: all processes begin the next one together, and if one ends, so do all.

  A process that fails tells the others why before it leaves. One that is gone without a word is
  named as soon as its signs of life are missed, `hosts.HEARTBEAT` seconds at most.
  """
  if jax.distributed.is_initialized():
    _watch()
  try:
    yield
    wait_for_all(name)
    stop_if_asked(name)
  except InterruptedError:  # all of them stop here
    raise
  except (Exception, KeyboardInterrupt) as error:
    if count() == 1:
      raise
    _leave(name, error)


def _watch() -> None:
  """Ends this process as soon as another one has failed or is gone."""
  if any(thread.name == _LEFT for thread in threading.enumerate()):
    return
  client, own = _client(), f"{_LEFT}/{jax.process_index()}"

  def wait() -> None:
    why, at, since = "", 0, time.monotonic()
    while not why and not _over.is_set():
      # A meeting to which nobody else comes fails at once where a process is gone, and says which.
      # JAX aborts the process a few milliseconds later: this is said first, and at once.
      try:
        if at != _polled + _met:
          at, since = _polled + _met, time.monotonic()
          client.key_value_set(f"{_AT}/{jax.process_index()}", str(at), allow_overwrite=True)
        elif time.monotonic() - since > PATIENCE:
          since = math.inf  # said once
          _say_who_is_awaited(client, at)
        client.wait_at_barrier(own, 1000)
      except Exception as error:
        if "DEADLINE_EXCEEDED" not in str(error):
          why = lost(str(error))
          break
      with contextlib.suppress(Exception):  # nobody left a word
        why = client.key_value_try_get(_LEFT)
        _let_all_hear(client)
    if why and not _over.is_set():
      _end(f"ends: {why}")

  thread = threading.Thread(target=wait, name=_LEFT, daemon=True)
  thread.start()

  @atexit.register  # before JAX ends its service, which is no failure
  def end() -> None:
    _over.set()
    thread.join()


def _let_all_hear(client: Any) -> None:
  """Says that this process knows that one has left; the first waits until all of them do.

  The service by which they hear is in the first process: whoever has not heard when it is gone
  is aborted by JAX.
  """
  client.key_value_set(f"{_HEARD}/{jax.process_index()}", "", allow_overwrite=True)
  since = time.monotonic()
  while is_first() and time.monotonic() - since < _FAREWELL:
    if len(client.key_value_dir_get(_HEARD)) == count():
      return
    time.sleep(0.02)


def _say_who_is_awaited(client: Any, at: int) -> None:
  """Names the processes that have come less far than this one, which makes no progress."""
  with contextlib.suppress(Exception):  # the job ends, and something else tells why
    places = {int(k.rsplit("/", 1)[1]): int(v) for k, v in client.key_value_dir_get(_AT)}
    behind = [str(i) for i in range(count()) if places.get(i, 0) < at]
    if behind:
      who = ", ".join(behind)
      _say(f"has waited {PATIENCE:.0f} s for process {who}, which is alive but slower")


def lost(text: str) -> str:
  """What an error of the coordination service says, in words: which process is gone."""
  found = re.search(r"[Tt]ask:? (\d+) heartbeat|heartbeats\):?\s*([\d\s,]*\d)", text)
  who = (found.group(1) or found.group(2)).split() if found else []
  if not who and "Failed to send RPC" in text:
    who = ["0"]
  if not who:
    return f"the processes lost each other ({text[:300]})"
  return (
    f"process {' and '.join(who)} vanished: killed, out of memory, or its machine is gone; its own"
    " log may say more. What is done is kept; the same command goes on, on any number of processes"
  )


def _leave(name: str, error: BaseException) -> None:
  """Tells the other processes why this one ends, and ends it."""
  if isinstance(error, KeyboardInterrupt):
    why = f"{name}: interrupted; the same command goes on from here"
  elif isinstance(error, ValueError | OSError | TypeError) and not _is_collective(error):
    why = f"{name}: {error}"
  else:
    why = f"{name}: {type(error).__name__}: {error}"
  if _is_collective(error):
    # The others closed their ends: one of them is gone, and who it was is known in a moment.
    time.sleep(hosts.HEARTBEAT + 15)
  if not isinstance(error, ValueError | OSError | TypeError | KeyboardInterrupt):
    traceback.print_exception(error)
  _over.set()
  with contextlib.suppress(Exception):  # another was first, or there is nobody to tell
    _client().key_value_set(_LEFT, f"process {jax.process_index()} ended. {why}")
  with contextlib.suppress(Exception):
    _let_all_hear(_client())
  _end(why)


def _is_collective(error: BaseException) -> bool:
  """Whether it is what JAX says when another process does not answer."""
  return bool(
    re.search(r"Gloo .* failed|NCCL|RPC: /xla\.coordination|heartbeat timeout", str(error))
  )


def _say(text: str) -> None:
  os.write(2, f"process {jax.process_index()} of {count()}: {text}\n".encode())


def _end(text: str) -> None:
  """Leaves without JAX's own farewell, which waits for all processes."""
  _say(text)
  sys.stdout.flush()
  logging.shutdown()
  os._exit(1)


def _client() -> Any:
  from jax._src import distributed  # where orbax takes it from, too: JAX names no public place

  return distributed.global_state.client
