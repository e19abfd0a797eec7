"""Watches a reader: what it raises, how long it takes, what it allocates, and whether it acts."""

import codecs
import contextlib
import os
import pathlib
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

# Of what a reader is told apart from a crash.
EXPECTED = (ValueError, OSError)

_FORBIDDEN = (
  "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.spawn", "subprocess.Popen",
  "os.startfile", "socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request",
  "os.kill",
  "os.remove", "os.rename", "os.rmdir", "os.chmod", "os.chown", "os.link", "os.symlink",
  "os.truncate",
  "os.mkdir", "os.putenv", "shutil.", "ctypes.", "pickle.find_class", "code.", "marshal.",
  "webbrowser.",
  "pty.", "ensurepip", "builtins.input", "cpython.run_", "sys.settrace",
)  # fmt: skip
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Slow(BaseException):
  """The time limit; no `except Exception` swallows it."""


class Outcome(NamedTuple):
  """Of one input.

  Attributes:
    verdict: 'read', 'refused', 'crashed', 'slow', 'silent' (an error without a text).
    what: the error.
    seconds: of the processor that it took.
    peak_bytes: that memory grew at most.
    acts: what the audit hook saw that reading needs not.
  """

  verdict: str
  what: str
  seconds: float
  peak_bytes: int
  acts: tuple[str, ...]


class Guard:
  """One a process: an audit hook can't be taken away."""

  def __init__(self, seconds: float):
    self._seconds = seconds
    self._armed = False
    self._acts: list[str] = []
    for encoding in (
      "utf-8-sig",
      *(f"utf-{bits}-{end}" for bits in (16, 32) for end in ("le", "be")),
    ):
      codecs.lookup(encoding)  # is imported when a text first needs it
    sys.addaudithook(self._hear)
    signal.signal(signal.SIGPROF, self._stop)

  def _hear(self, event: str, args: tuple) -> None:
    if self._armed and _is_act(event, args):
      self._acts.append(f"{event} {str(args)[:200]}")

  def _stop(self, *_: object) -> None:
    raise Slow

  def watch(self, read: Callable[[], object]) -> Outcome:
    """Runs the reader on one input."""
    self._acts = []
    before = _reset_peak()
    began = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, self._seconds)
    verdict, what = "read", ""
    try:
      with self._hearing():
        read()
    except EXPECTED as error:
      what = f"{type(error).__name__}: {error}"
      # numpy's and Python's own words, without a word of ours, would be no clear message; that
      # there is any text is what can be asked of all.
      verdict = "refused" if str(error).strip() else "silent"
    except Slow:
      verdict = "slow"
    except BaseException as error:  # a panic of a Rust library is no Exception
      what, verdict = f"{type(error).__name__}: {error}", "crashed"
      trace, last = error.__traceback__, None
      while trace is not None:
        last, trace = trace, trace.tb_next
      if last is not None:
        what += f" ({last.tb_frame.f_code.co_filename}:{last.tb_lineno})"
    finally:
      signal.setitimer(signal.ITIMER_PROF, 0)
    seconds = time.process_time() - began
    return Outcome(verdict, what[:500], seconds, max(0, _peak() - before), tuple(self._acts))

  @contextlib.contextmanager
  def _hearing(self) -> Iterator[None]:
    self._armed = True
    try:
      yield
    finally:
      self._armed = False


def _is_act(event: str, args: tuple) -> bool:
  if event == "open":
    _, mode, flags = args
    return bool(set("wax+") & set(mode or "")) or bool((flags or 0) & _WRITES)
  if event == "compile":  # ast.literal_eval of NumPy's headers compiles to a tree and no further
    return args[1] not in ("<unknown>", b"<unknown>") and not _is_template(args[1])
  if event == "exec":
    return not _is_template(args[0].co_filename)
  if event == "import":
    return args[0] not in sys.modules
  return event.startswith(_FORBIDDEN)


def _is_template(name: object) -> bool:
  return str(name).endswith("page.html.j2")


def limit_memory(extra: int) -> None:
  """No more address space than there is now, and so many bytes."""
  size = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
  resource.setrlimit(resource.RLIMIT_AS, (size + extra, resource.RLIM_INFINITY))


def _status(field: str) -> int:
  text = pathlib.Path("/proc/self/status").read_text()
  match = re.search(rf"{field}:\s+(\d+) kB", text)
  return int(match[1]) * 1024 if match else 0


def _reset_peak() -> int:
  """Forgets the peak of resident memory; what is resident now."""
  with contextlib.suppress(OSError):
    pathlib.Path("/proc/self/clear_refs").write_text("5")
  return _status("VmRSS")


def _peak() -> int:
  return _status("VmHWM")
