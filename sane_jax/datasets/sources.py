"""The files of a data set as it was downloaded: in a folder, in archives, or in some of both.

Nothing is ever extracted to disk: members of archives are read one by one, up to a limit of size.
"""

import fnmatch
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from sane_jax.datasets import archives
from sane_jax.runs import files

Kind = Literal["image", "text", ""]

_MAX_BYTES: dict[Kind, int] = {"image": 1 << 26, "text": 1 << 30, "": 0}
_SHOWN = 5


class Layout(NamedTuple):
  """How a data set is laid out. Paths are relative to its folder, with slashes."""

  title: str  # 'Polyvore Outfits'
  folder: str  # its folder's name, 'polyvore_outfits'
  archives: tuple[str, ...]  # patterns of archives' names without suffix, in lower case
  signs: tuple[str, ...]  # files and folders, any of which shows that a folder is it
  folders: tuple[str, ...]  # patterns of the folders in it that are read
  kind: Callable[[str], Kind]  # of a path; '': not read
  beside: Callable[[str], bool]  # whether a text file of that name may lie beside the folder, too
  home: str  # where to get it


class Entry(NamedTuple):
  part: int  # index into the source's parts
  member: str  # name there
  size: int  # bytes
  kind: Kind


class Source(NamedTuple):
  """What was found."""

  layout: Layout
  parts: tuple[Path, ...]  # folders and archives; the first that has a file is taken
  files: dict[str, Entry]  # by path relative to the data set's folder
  refused: tuple[str, ...]  # 'archive: member: why'


class Read(NamedTuple):
  name: str
  data: bytes
  problem: str  # '' where there is none


# --- finding --------------------------------------------------------------------------------------


def find(given: str | os.PathLike[str], layout: Layout) -> tuple[Path, ...]:
  """The folders and archives that hold the data set.

  Args:
    given: the folder that holds the data set's folder or its archives; that folder itself, or a
      folder in it; a folder one level higher; or an archive.
    layout: of the data set.

  Raises:
    ValueError: there is none, or more than one; says what is expected where.
  """
  path = files.at(given).expanduser()
  files.check_reachable(path)
  advice = (
    f"Put the folder {layout.folder}/ or its archive"
    f" ({', '.join(f'{pattern}.zip' for pattern in layout.archives)}, or .tar.gz) of {layout.home}"
    " there, and give the folder that holds it"
  )
  if not path.exists():
    raise ValueError(f"{path}: no such folder. {advice}")
  if path.is_file():
    if not path.name.lower().endswith(archives.SUFFIXES):
      raise ValueError(f"{path}: a file, but no archive ({' '.join(archives.SUFFIXES)}). {advice}")
    return (files.local_copy(path), path.parent)
  candidates = [path / layout.folder, path]
  if path.name in layout.signs:
    candidates.append(files.resolve(path).parent)
  roots = [folder for folder in candidates if _is_root(folder, layout)][:1]
  loose = roots[0].parent if roots and roots[0] == path / layout.folder else path
  packed = _archives(path, layout)
  if roots and roots[0] != path:
    packed += _archives(roots[0], layout)
  if not roots and not packed:
    inner = sorted(child for child in path.iterdir() if child.is_dir())
    above = [child / layout.folder for child in inner] + inner
    roots = [folder for folder in above if _is_root(folder, layout)]
    if len(roots) > 1:
      raise ValueError(
        f"{path}: {layout.title} may be {' or '.join(map(str, roots[:_SHOWN]))}; give one of these"
      )
    loose = roots[0].parent if roots else path
  if not roots and not packed:
    names = sorted(child.name for child in path.iterdir())
    holds = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "") or "nothing"
    raise ValueError(f"{path}: no {layout.title} in it (it holds {holds}). {advice}")
  return tuple(dict.fromkeys([*roots, *map(files.local_copy, packed), loose]))


def _is_root(folder: Path, layout: Layout) -> bool:
  return any((folder / sign).exists() for sign in layout.signs)


def _archives(folder: Path, layout: Layout) -> list[Path]:
  def fits(name: str) -> bool:
    stem = next((name.removesuffix(s) for s in archives.SUFFIXES if name.endswith(s)), None)
    return stem is not None and any(fnmatch.fnmatch(stem, p) for p in layout.archives)

  return sorted(p for p in folder.iterdir() if fits(p.name.lower()) and p.is_file())


# --- listing --------------------------------------------------------------------------------------


def open_source(parts: tuple[Path, ...], layout: Layout) -> Source:
  """Lists what is to be read in the parts that `find` found.

  Raises:
    ValueError: a part can't be listed.
  """
  listed: dict[str, Entry] = {}
  refused: list[str] = []
  for index, part in enumerate(parts):
    if part.is_dir():
      listing = _list_folder(part, layout, beside=index > 0)
    else:
      listing, problems = _list_archive(part, layout)
      refused += [f"{part.name}: {problem}" for problem in problems]
    for name, (member, size, kind) in listing.items():
      listed.setdefault(name, Entry(index, member, size, kind))
  return Source(layout, parts, listed, tuple(refused))


def _list_folder(root: Path, layout: Layout, *, beside: bool) -> dict[str, tuple[str, int, Kind]]:
  """Name in the data set -> name in the folder, bytes, kind. `beside`: it isn't the data set's."""
  found: dict[str, tuple[str, int, Kind]] = {}

  def look(folder: Path, prefix: str) -> None:
    for entry in sorted(files.scandir(folder), key=lambda e: e.name):
      name = prefix + entry.name
      if entry.name.startswith("."):
        continue
      if kind := layout.kind(name):
        if (not beside or layout.beside(name)) and entry.is_file():
          found[name] = (name, entry.stat().st_size, kind)
      elif (
        not beside
        and any(PurePosixPath("/", name).match(f"/{p}") for p in layout.folders)
        and entry.is_dir()
      ):
        look(files.at(entry.path), f"{name}/")

  try:
    look(root, "")
  except OSError as error:
    why = error.strerror or error
    raise ValueError(f"{error.filename or root}: can't be listed ({why})") from error
  return found


def _list_archive(path: Path, layout: Layout) -> tuple[dict[str, tuple[str, int, Kind]], list[str]]:
  """The same of an archive, and what in it must not be read."""
  problems, sizes = [], {}
  for member, size, problem in archives.members(path):
    if problem:
      problems.append(f"{member}: {problem}, so it is not read")
    else:
      sizes.setdefault(member, size)
  full = {member: member.removeprefix("./") for member in sizes}
  tails = (
    (name, tail)
    for name in full.values()
    for sign in layout.signs
    if (tail := _tail(name, sign)) is not None
  )
  roots = {name.removesuffix(tail) for name, tail in tails}
  found: dict[str, tuple[str, int, Kind]] = {}
  if roots:
    root = min(roots, key=lambda r: (r.count("/"), r))
    for member, name in full.items():
      if name.startswith(root) and (kind := layout.kind(name[len(root) :])):
        found.setdefault(name[len(root) :], (member, sizes[member], kind))
  return found, problems


def _tail(name: str, sign: str) -> str | None:
  """What of 'data/images/1.jpg' lies from the sign 'images' on; None if it isn't in it."""
  parts = name.split("/")
  return "/".join(parts[parts.index(sign) :]) if sign in parts else None


# --- reading --------------------------------------------------------------------------------------


def stream(source: Source, names: Iterable[str]) -> Iterator[Read]:
  """Reads files, in the order that costs least: packed tars once through, the rest as given.

  A file that can't be read, or is too large, comes with a problem in place of its data.
  """
  per_part: dict[int, list[str]] = {}
  for name in dict.fromkeys(names):
    per_part.setdefault(source.files[name].part, []).append(name)
  for index, group in sorted(per_part.items()):
    part = source.parts[index]
    wanted = []
    for name in group:
      entry = source.files[name]
      if not files.is_text(name):
        yield Read(name, b"", "its name is no text")
      elif entry.size > _MAX_BYTES[entry.kind]:
        yield Read(name, b"", f"{entry.size} bytes, which is more than {_MAX_BYTES[entry.kind]}")
      else:
        wanted.append(name)
    if part.is_dir():
      each = files.read_each(part / source.files[name].member for name in wanted)
      for name, data in zip(wanted, each, strict=True):
        if isinstance(data, OSError):
          yield Read(name, b"", f"can't be read ({data.strerror or data})")
        else:
          yield Read(name, data, "")
    else:
      by_member = {source.files[name].member: name for name in wanted}
      for member, data, problem in archives.read_members(part, by_member):
        yield Read(by_member[member], data, problem)


def read_texts(source: Source, names: Iterable[str]) -> dict[str, bytes]:
  """The files among these that are there.

  Raises:
    ValueError: one of them can't be read.
  """
  found = {}
  for name, data, problem in stream(source, (n for n in names if n in source.files)):
    if problem:
      raise ValueError(f"{where(source, name)}: {problem}; copy or download it again")
    found[name] = data
  return found


def require(source: Source, texts: dict[str, bytes], name: str) -> bytes:
  """The text file's content.

  Raises:
    ValueError: it isn't there; says where to get it and where to put it.
  """
  if name in texts:
    return texts[name]
  root = next((part for part in source.parts if part.is_dir()), source.parts[0])
  also = [problem for problem in source.refused if name in problem][:1]
  raise ValueError(
    f"{name} of {source.layout.title} is missing{''.join(f' ({p})' for p in also)}; get it from"
    f" {source.layout.home} and put it at {root / name}"
  )


def where(source: Source, name: str) -> str:
  """The file's place, for messages."""
  entry = source.files[name]
  part = source.parts[entry.part]
  return str(part / entry.member) if part.is_dir() else f"{part}: {entry.member}"


def parse_json(data: bytes, place: str, hook: Callable[[dict], Any] | None = None) -> Any:
  """The JSON document.

  Raises:
    ValueError: it is none, or cut short.
  """
  try:
    return json.loads(data, object_hook=hook)
  except (ValueError, RecursionError) as error:
    raise ValueError(
      f"{place}: no whole JSON document ({error}; {len(data)} bytes); copy or download it again"
    ) from error


def parse_lines(data: bytes) -> list[str]:
  """The lines without blanks around them; UTF-8, or else Latin-1. Empty ones stay."""
  try:
    text = data.decode("utf-8-sig")
  except UnicodeDecodeError:
    text = data.decode("latin-1")
  lines = [line.strip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
  while lines and not lines[-1]:
    lines.pop()
  return lines


# --- whether it changed ---------------------------------------------------------------------------


def fingerprint(parts: tuple[Path, ...], layout: Layout) -> str:
  """SHA-256, hexadecimal, that changes when the files do.

  Of text files it covers the content; of images the names and sizes; of archives name, size, time
  of change, and the last MiB (which holds a zip's listing).

  Raises:
    ValueError: a part can't be listed or read.
  """
  digest = hashlib.sha256()

  def add(*fields: object) -> None:
    digest.update(repr(fields).encode("utf-8", "surrogateescape"))

  for index, part in enumerate(parts):
    try:
      if part.is_dir():
        listing = _list_folder(part, layout, beside=index > 0)
        for name, (member, size, kind) in sorted(listing.items()):
          add(name, size)
          if kind == "text":
            add(hashlib.sha256(files.read_bytes(part / member)).hexdigest())
      else:
        status = part.stat()
        with open(part, "rb") as file:
          file.seek(max(0, status.st_size - (1 << 20)))
          add(part.name, status.st_size, status.st_mtime_ns, file.read())
    except OSError as error:
      raise ValueError(f"{part}: can't be read ({error.strerror})") from error
  return digest.hexdigest()
