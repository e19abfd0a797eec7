"""Files that are whole or not there: on a disk, or in a bucket.

A path is one of this machine or the URL of a bucket, gs://BUCKET/... or s3://BUCKET/.... Which of
the two it is, is decided here and nowhere else: `at` gives a path whose methods are pathlib's in
both cases, and what pathlib can't do in a bucket is a function of this module.

A bucket has no folders, no append and no rename; what it has is that an object is there with its
first byte and its last, or not at all.
"""

import base64
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import re
import socket
import stat
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, cast

STORES = {"gs": "gcsfs", "s3": "s3fs"}  # scheme: the library that fsspec needs for it
_EXTRAS = {"gs": "gcs", "s3": "s3"}  # ours, that installs it
_CREDENTIALS = {
  "gs": "log in with `gcloud auth application-default login`, or set"
  " GOOGLE_APPLICATION_CREDENTIALS to a service account's file",
  "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run `aws configure`",
}
_AT_ONCE = 32  # small objects read at a time: each takes a journey over the network
REWRITE_SECONDS = 30.0  # a log in a bucket is written anew at most this often


def is_remote(path: str | os.PathLike[str]) -> bool:
  """Whether it is in a bucket."""
  return os.fspath(path).partition("://")[0] in STORES and "://" in os.fspath(path)


def at(path: str | os.PathLike[str]) -> pathlib.Path:
  """The path, to be used like pathlib's, of a local file or of one in a bucket.

  Raises:
    ValueError: the URL of something else.
  """
  text = os.fspath(path)
  if text.startswith("file://"):
    return pathlib.Path(text.removeprefix("file://"))
  if not is_remote(text):
    scheme, mark, _ = text.partition("://")
    if mark and scheme.isalnum():
      raise ValueError(
        f"{text}: a folder or file is a path of this machine, gs://BUCKET/... or s3://BUCKET/..."
      )
    return pathlib.Path(text)
  _listings_are_fresh()
  from etils import epath  # here: nobody waits for it who has no bucket

  return cast(pathlib.Path, epath.Path(text))


def resolve(path: pathlib.Path) -> pathlib.Path:
  """The absolute path; of a bucket's it is that already."""
  return path if is_remote(path) else path.resolve()


def same_file(one: pathlib.Path, other: pathlib.Path) -> bool:
  """Whether two paths, the first of which exists, are one file."""
  if is_remote(one) or is_remote(other):
    return one == other
  return other.exists() and one.samefile(other)


# --- names ---------------------------------------------------------------------------------------


def is_text(name: str) -> bool:
  """Whether a name can be written; bytes that are no UTF-8 stand in it as lone surrogates."""
  try:
    name.encode()
  except UnicodeEncodeError:
    return False
  return True


def printable(text: str) -> str:
  """Text for a terminal, which obeys control characters: names of files may hold any."""
  text = text.encode("utf-8", "replace").decode()
  return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "?", text)


# --- writing --------------------------------------------------------------------------------------


def write_bytes(path: pathlib.Path, data: bytes, *, flush: bool = True) -> None:
  """Writes a file so that whoever looks finds the old one or the new one, never half of it.

  Args:
    flush: waits until it is on the disk; without that a power cut may lose it, a kill does not. In
      a bucket it always is when this returns.

  Raises:
    OSError: the disk is full, or the folder can't be written; says how to go on.
  """
  with naming_failures(path):
    if is_remote(path):
      store, name = _store(path)
      # Not a file that is opened and closed: closing one that failed would keep what was sent.
      store.pipe_file(name, data)
      return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
      with os.fdopen(handle, "wb") as file:
        file.write(data)
        if flush:
          file.flush()
          os.fsync(file.fileno())
      os.chmod(name, 0o666 & ~_umask())
      os.replace(name, path)
    except BaseException:
      with contextlib.suppress(OSError):
        os.unlink(name)
      raise


def make_folder(path: pathlib.Path) -> pathlib.Path:
  """The folder, made if need be; in a bucket there is none to make."""
  if not is_remote(path):
    path.mkdir(parents=True, exist_ok=True)
  return path


def check_writable(folder: pathlib.Path) -> None:
  """Raises OSError, which says why, unless the folder is there and can be written."""
  if is_remote(folder):
    probe = folder / f".writable-{uuid.uuid4().hex}"
    write_bytes(probe, b"")
    remove(probe)
    return
  folder.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryFile(dir=folder):
    pass


_WRITER = ".writer"  # in a folder: who writes there
_held: set[str] = set()  # by this process
_holding = threading.Lock()


@contextlib.contextmanager
def one_writer(folder: str | os.PathLike[str]) -> Iterator[None]:
  """Within, no other process that asks the same writes into a folder, which is made if need be.

  The lock is the operating system's: a process that died holds none. A bucket has no locks: there a
  note says who writes, and whoever finds one of another process says so and goes on.

  Raises:
    OSError: another process writes there, which is named, or another thread of this one.
  """
  if "://" in os.fspath(folder) and not is_remote(folder):  # another store of tensorstore's
    yield
    return
  folder = at(folder)
  who = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M")}
  if is_remote(folder):
    with _note_in_bucket(folder / _WRITER, who):
      yield
    return
  with naming_failures(folder):
    folder.mkdir(parents=True, exist_ok=True)
  place = os.path.realpath(folder)
  with _holding:
    if place in _held:
      raise OSError(f"{folder} is being written by this process already; {_WAIT}")
    _held.add(place)
  try:
    handle = _lock(folder / _WRITER)
    try:
      if handle is not None:
        with contextlib.suppress(OSError):
          os.ftruncate(handle, 0)
          os.write(handle, json.dumps(who).encode())
      yield
    finally:
      if handle is not None:
        with contextlib.suppress(OSError):
          (folder / _WRITER).unlink()
        os.close(handle)
  finally:
    with _holding:
      _held.discard(place)


_WAIT = "wait until that has ended, end it, or give another folder: two writers would mix results"


def _lock(path: pathlib.Path) -> int | None:
  """A handle of a file that is locked; None where the file system has no locks."""
  while True:
    try:
      handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
      return None  # whoever can't write this writes nothing else either
    try:
      fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
      if os.path.exists(path) and os.path.samestat(os.fstat(handle), os.stat(path)):
        return handle
      os.close(handle)  # whoever had it removed it meanwhile
    except OSError as error:
      who = os.pread(handle, 1000, 0).decode(errors="replace")
      os.close(handle)
      if error.errno not in (errno.EACCES, errno.EAGAIN):
        return None
      raise OSError(f"{path.parent} is being written by {_writer(who)}; {_WAIT}") from error


def _writer(text: str) -> str:
  try:
    who = json.loads(text)
    return f"process {who['pid']} on {who['host']}, since {who['since']}"
  except (ValueError, KeyError, TypeError):
    return "another process"


@contextlib.contextmanager
def _note_in_bucket(path: pathlib.Path, who: dict[str, Any]) -> Iterator[None]:
  with contextlib.suppress(OSError, ValueError):
    print(
      f"{path.parent} may be being written by {_writer(read_bytes(path).decode())}, or that was"
      " killed. A bucket has no locks: if it still runs, end one of the two",
      file=sys.stderr,
    )
  write_bytes(path, json.dumps(who).encode())
  try:
    yield
  finally:
    with contextlib.suppress(OSError):
      remove(path)


def remove(path: pathlib.Path) -> None:
  """Removes a file, if it is there."""
  with naming_failures(path), contextlib.suppress(FileNotFoundError):
    if is_remote(path):
      store, name = _store(path)
      store.rm_file(name)  # not epath's unlink, which first lists the folder
    else:
      path.unlink()


class Lines:
  """A text file that grows by lines.

  On a disk a line is there when `append` returns. A bucket can't append: there the file is written
  as a whole, at `flush`, and by `append` if the last time was REWRITE_SECONDS ago.

  Args:
    path: of the file.
    lines: that it begins with; what was there is replaced.
  """

  def __init__(self, path: pathlib.Path, lines: Iterable[str] = ()):
    self._path, self._lines, self._fresh = path, [f"{line}\n" for line in lines], True
    self._remote = is_remote(path)
    self._write()

  def append(self, line: str) -> None:
    """Adds a line."""
    if not self._remote:
      with naming_failures(self._path), self._path.open("a") as file:
        file.write(f"{line}\n")
      return
    self._lines.append(f"{line}\n")
    self._fresh = False
    if time.monotonic() - self._written >= REWRITE_SECONDS:
      self._write()

  def flush(self) -> None:
    """Returns when all lines are there."""
    if not self._fresh:
      self._write()

  def _write(self) -> None:
    write_bytes(self._path, "".join(self._lines).encode())
    self._written, self._fresh = time.monotonic(), True


@contextlib.contextmanager
def naming_failures(path: pathlib.Path) -> Iterator[None]:
  """Says of an OSError within what could not be written, and how to go on."""
  try:
    yield
  except Exception as error:
    if is_remote(path) and _is_of_store(error):
      raise OSError(
        f"{path} could not be written: {_words(error)}. What was written before is kept;"
        f" {_advice(path, error)}, and run the same again"
      ) from error
    if not isinstance(error, OSError):
      raise
    raise OSError(
      f"{path} could not be written: {error.strerror or error}. What was written before is kept;"
      " make room, or mend the folder, and run the same again"
    ) from error


def _umask() -> int:
  current = os.umask(0)
  os.umask(current)
  return current


# --- reading --------------------------------------------------------------------------------------


def check_regular(path: str | os.PathLike[str]) -> None:
  """Raises OSError where there is no file, or a folder, a pipe or a device: these never end.

  A bucket has none of these; there nothing is looked at.
  """
  if is_remote(path):
    return
  mode = os.stat(path).st_mode
  if stat.S_ISDIR(mode):
    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
  if not stat.S_ISREG(mode):
    raise OSError(errno.EINVAL, "a pipe or a device; give a file", os.fspath(path))


def read_bytes(path: str | os.PathLike[str]) -> bytes:
  """A file's content.

  Raises:
    OSError: it can't be read, or is a folder, a pipe or a device; FileNotFoundError where there is
      none.
  """
  path = at(path)
  if not is_remote(path):
    check_regular(path)
    return path.read_bytes()
  with naming_reads(path):
    store, name = _store(path)
    return store.cat_file(name)


def read_each(paths: Iterable[pathlib.Path]) -> Iterator[bytes | OSError]:
  """The content of each file, in order, or what `read_bytes` raises; of a bucket, many at once."""

  def read(path: pathlib.Path) -> bytes | OSError:
    try:
      return read_bytes(path)
    except OSError as error:
      return error

  paths = list(paths)
  if not paths or not is_remote(paths[0]):
    yield from map(read, paths)
    return
  with ThreadPoolExecutor(_AT_ONCE) as pool:
    for begin in range(0, len(paths), 4 * _AT_ONCE):  # not all: images are held until asked for
      yield from pool.map(read, paths[begin : begin + 4 * _AT_ONCE])


class _Object(NamedTuple):
  """What is known of an object, asked as `os.DirEntry` is."""

  name: str
  path: str
  st_size: int
  folder: bool

  def is_file(self) -> bool:
    return not self.folder

  def is_dir(self) -> bool:
    return self.folder

  def stat(self) -> "_Object":
    return self


def scandir(folder: str | os.PathLike[str]) -> Iterator[Any]:
  """What is in a folder, as `os.scandir` gives it: name, path, is_file(), is_dir(), stat().st_size.

  Raises:
    OSError: there is no such folder, or it can't be listed.
  """
  if not is_remote(folder):
    with os.scandir(folder) as entries:
      yield from entries
    return
  path = at(folder)
  with naming_reads(path):
    store, name = _store(path)
    listed = store.ls(name, detail=True)
  for entry in listed:
    own = entry["name"].rstrip("/").rpartition("/")[2]
    if own and entry["name"].strip("/") != name.strip("/"):  # some consoles mark folders
      yield _Object(own, str(path / own), entry.get("size") or 0, entry["type"] == "directory")


def find(folder: pathlib.Path, wanted: Callable[[str], bool]) -> list[pathlib.Path]:
  """All files below a folder whose names are wanted, sorted; hidden folders are passed over.

  So are links to folders, what is no file, and folders that can't be listed.
  """
  found: list[pathlib.Path] = []
  if is_remote(folder):
    waiting = [folder]
    while waiting:
      for entry in scandir(waiting.pop()):
        if entry.is_dir() and not entry.name.startswith("."):
          waiting.append(at(entry.path))
        elif entry.is_file() and wanted(entry.name):
          found.append(at(entry.path))
    return sorted(found)
  # Not rglob: it walks all that lies in hidden folders before they can be passed over.
  for where, folders, names in os.walk(folder):
    folders[:] = [name for name in folders if not name.startswith(".")]
    paths = (pathlib.Path(where, name) for name in names if wanted(name))
    found += [path for path in paths if path.is_file()]  # no dangling links, no pipes
  return sorted(found)


def closed_folders(folder: pathlib.Path) -> list[str]:
  """Folders that `find` does not enter, but for hidden ones: links, and what can't be listed."""
  closed: list[str] = []
  if is_remote(folder):
    return closed
  for where, names, _ in os.walk(folder, onerror=lambda error: closed.append(error.filename)):
    names[:] = [name for name in names if not name.startswith(".")]
    paths = [os.path.join(where, name) for name in names]
    closed.extend(path for path in paths if os.path.islink(path))
  return closed


def size_of(folder: pathlib.Path) -> int:
  """Bytes of all files below a folder."""
  if not is_remote(folder):
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
  with naming_reads(folder):
    store, name = _store(folder)
    return store.du(name)


def check_reachable(path: pathlib.Path) -> None:
  """Raises OSError, which says why, where a bucket can't be asked for a path; nothing on a disk."""
  if is_remote(path):
    with naming_reads(path):
      store, name = _store(path)
      try:
        store.info(name)
      except FileNotFoundError as error:
        if _is_no_bucket(error):  # a path that is not there is for the caller to name
          raise


@contextlib.contextmanager
def naming_reads(path: pathlib.Path) -> Iterator[None]:
  """Turns what a bucket's library raises into an OSError that says what to do."""
  try:
    yield
  except FileNotFoundError as error:
    if _is_no_bucket(error):
      raise FileNotFoundError(
        f"{path} can't be read: {_words(error)}; {_advice(path, error)}"
      ) from error
    raise FileNotFoundError(f"{path}: there is no such file or folder") from error
  except Exception as error:
    if not _is_of_store(error):
      raise
    raise OSError(f"{path} can't be read: {_words(error)}; {_advice(path, error)}") from error


# --- copies ---------------------------------------------------------------------------------------


def cache_folder() -> pathlib.Path:
  """Where copies of what is in buckets are kept on this machine; it may be deleted at any time."""
  home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
  return pathlib.Path(home, "sane_jax", "files")


def local_copy(path: str | os.PathLike[str]) -> pathlib.Path:
  """A file on this machine with the same content: itself, or a copy of one in a bucket.

  A copy is made once for each state of the object, and has its time of change. Its size is checked,
  and its MD5 where the store keeps one (gs:// does). A bar shows how far it is.

  Raises:
    OSError: it can't be read, or what came is not what the store says it is.
  """
  path = at(path)
  if not is_remote(path):
    return path
  with naming_reads(path):
    store, name = _store(path)
    store.invalidate_cache()
    info = store.info(name)
    state = [str(path), info["size"]]
    state += [str(info.get(key)) for key in ("ETag", "etag", "md5Hash", "generation")]
    digest = hashlib.sha256(repr(state).encode()).hexdigest()[:24]
    target = cache_folder() / digest / path.name
    if target.exists():
      return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{uuid.uuid4().hex}")
    try:
      _copy(store, name, partial, info)
      changed = store.modified(name).timestamp()
      os.utime(partial, (changed, changed))
      os.replace(partial, target)
    finally:
      partial.unlink(missing_ok=True)
  return target


def _copy(store: Any, name: str, target: pathlib.Path, info: Any) -> None:
  from fsspec.callbacks import TqdmCallback

  bar = {"desc": f"copying {name}", "unit": "B", "unit_scale": True, "disable": None}
  with TqdmCallback(bar, size=info["size"]) as callback:
    store.get_file(name, str(target), callback=callback)
  if target.stat().st_size != info["size"]:
    raise OSError(f"{target.stat().st_size} bytes came of {info['size']}; copy it again")
  if "md5Hash" in info:
    with target.open("rb") as file:
      found = hashlib.file_digest(file, "md5").digest()
    if base64.b64encode(found).decode() != info["md5Hash"]:
      raise OSError(f"what came of {name} has another MD5 than the store says; copy it again")


# --- the stores -----------------------------------------------------------------------------------


def _listings_are_fresh() -> None:
  """Before the first use: other processes write, so nothing listed may be taken for what is."""
  os.environ.setdefault("EPATH_USE_TF", "false")  # one library for a bucket, not two
  from fsspec.config import conf

  for protocol in ("gs", "gcs", "s3", "s3a"):
    conf.setdefault(protocol, {}).setdefault("use_listings_cache", False)


def _store(path: pathlib.Path) -> tuple[Any, str]:
  """fsspec's file system of a path, and its name there: 'BUCKET/...'."""
  _listings_are_fresh()
  import fsspec

  return fsspec.core.url_to_fs(str(path))


def _is_of_store(error: Exception) -> bool:
  """Whether a bucket's library raised it, rather than we."""
  home = type(error).__module__.partition(".")[0]
  libraries = ("botocore", "aiobotocore", "s3fs", "gcsfs", "google", "aiohttp", "fsspec")
  return isinstance(error, OSError | ImportError) or home in libraries


def _is_no_bucket(error: BaseException) -> bool:
  return re.search(r"bucket\b.{0,40}\b(not exist|not found)", str(error), re.I) is not None


def _words(error: BaseException) -> str:
  return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _advice(path: pathlib.Path, error: BaseException) -> str:
  """What would do."""
  scheme, bucket = str(path).split("/")[0].rstrip(":"), str(path).split("/")[2]
  text = f"{type(error).__name__} {error}".lower()
  if isinstance(error, ImportError):
    return f"install what reads it: python -m pip install 'sane_jax[{_EXTRAS[scheme]}]'"
  if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
    return f"make room in {cache_folder()}, or name another place with XDG_CACHE_HOME"
  if _is_no_bucket(error):
    return f"make the bucket {bucket}, or correct its name"
  words = ("credential", "permission", "forbidden", "access denied", "401", "403", "anonymous")
  if isinstance(error, PermissionError) or any(word in text for word in words):
    return f"{_CREDENTIALS[scheme]}, and ask for access to the bucket {bucket}"
  return "look at the network and at the bucket"


# Words of tensorstore's for a full disk, a folder it may not write, a bucket that is out of reach.
_STORE_FAILURES = (
  "os_error_code", "OS error", "RESOURCE_EXHAUSTED", "PERMISSION", "UNAUTHENTICATED", "UNAVAILABLE",
  "DEADLINE_EXCEEDED",
)  # fmt: skip


@contextlib.contextmanager
def naming_store_failures(what: str) -> Iterator[None]:
  """Turns what tensorstore says of a full disk or a folder it may not write into an OSError."""
  try:
    yield
  except ValueError as error:  # tensorstore's, whatever the matter
    text = str(error)
    if not any(word in text for word in _STORE_FAILURES):
      raise
    raise OSError(
      f"{what} could not be written: {text[:300]}. What was written before is kept; make room and"
      " run the same again"
    ) from error
