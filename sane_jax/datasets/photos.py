"""Folders of photos, lists of pairs, and the sample pairs that need no download."""

import collections
import csv
import functools
import os
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sane_jax.runs import files

# All of the formats that are read, `images.FORMATS`.
PHOTO_SUFFIXES = (
  ".jpg", ".jpeg", ".jfif", ".jpe", ".mpo", ".png", ".apng", ".webp", ".avif", ".avifs", ".bmp",
  ".gif", ".tif", ".tiff", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm",
  ".pnm", ".pfm",
)  # fmt: skip

_SHOWN_PROBLEMS = 5  # of a file without one good line


class Pair(NamedTuple):
  """Two photos and, where it is known, whether they match."""

  query: Path
  reference: Path
  label: int | None


class NoPhotosError(ValueError):
  """A folder without a photo."""


def list_photos(folder: str | os.PathLike[str]) -> list[Path]:
  """All photos in a folder and the folders in it, sorted by path.

  By suffix, whatever its case; nothing is opened. Hidden files and folders, links to folders and
  folders that can't be listed are passed over; of a photo and links to it, the photo alone is
  listed. A Python warning counts what is passed over and not hidden.

  Raises:
    ValueError: no such folder, or a file; NoPhotosError: no photo in it.
  """
  photos, passed_over = find_photos(folder)
  if passed_over:
    warnings.warn(passed_over, stacklevel=2)
  return photos


def find_photos(folder: str | os.PathLike[str]) -> tuple[list[Path], str]:
  """The same, and a sentence on what is passed over; '' where that is nothing."""
  folder = files.at(folder)
  _check_folder(folder)
  photos = files.find(folder, _is_photo)
  if not photos:
    raise NoPhotosError(
      f"{folder}: no photos in it or in its folders (looked for {' '.join(PHOTO_SUFFIXES)});"
      " give a folder of photos"
    )
  return _without_links(photos), _passed_over(folder)


def _without_links(photos: list[Path]) -> list[Path]:
  """Photos without links to others of them, or to one that an earlier link leads to."""
  links = [path for path in photos if not files.is_remote(path) and path.is_symlink()]
  if not links:
    return photos
  seen = {files.resolve(path) for path in set(photos).difference(links)}
  again: set[Path] = set()
  for path in links:
    target = files.resolve(path)
    if target in seen:
      again.add(path)
    seen.add(target)
  return [path for path in photos if path not in again]


def _passed_over(folder: Path) -> str:
  """What `find_photos` says of files that are no photos, and of folders that it does not enter."""
  others = files.find(folder, lambda name: not name.startswith(".") and not _is_photo(name))
  counts = collections.Counter(path.suffix.lower() or "without a suffix" for path in others)
  told = [f"{count} {suffix}" for suffix, count in counts.most_common(8)]
  if len(counts) > 8:
    told.append(f"{sum(counts.values()) - sum(c for _, c in counts.most_common(8))} others")
  if closed := files.closed_folders(folder):
    told.append(f"{len(closed)} folders that are links or can't be listed, such as {closed[0]}")
  if not told:
    return ""
  return (
    f"{folder}: passed over {', '.join(told)}. Photos are known by their suffix:"
    f" {' '.join(PHOTO_SUFFIXES)}"
  )


def tell_apart(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
  """What to call photos: the last part of each path, and of those that share it as much as differs.

  So a/1.jpg stays 1.jpg where it is the only one; red/1.jpg and blue/1.jpg keep their folders.
  """
  parts = [os.fspath(path).replace(os.sep, "/").split("/") for path in paths]
  depth = dict.fromkeys(map(tuple, parts), 1)  # a file that is named twice is one

  def name(key: tuple[str, ...]) -> str:
    return "/".join(key[-depth[key] :])

  while True:
    alike: dict[str, list[tuple[str, ...]]] = collections.defaultdict(list)
    for key in depth:
      alike[name(key)].append(key)
    clashing = [key for keys in alike.values() if len(keys) > 1 for key in keys]
    deeper = [key for key in clashing if depth[key] < len(key)]
    if not deeper:
      return [name(tuple(each)) for each in parts]
    for key in deeper:
      depth[key] += 1


def read_pairs(
  path: str | os.PathLike[str], *, folder: str | os.PathLike[str] | None = None
) -> tuple[list[Pair], list[str]]:
  """Pairs of photos from a text file, and what is wrong with its other lines.

  A line is `query reference [label]`, the label an integer. The first line tells what separates
  them: tabs, commas, or blanks. Names that hold the separator stand in double quotes (not with
  blanks). A header `query,reference[,label]`, blank lines and lines from # on are skipped. UTF-8,
  or else Latin-1.

  A name is a path below `folder` or below the file's own folder, with or without suffix; or the
  name alone of a photo in AwA2's layout, `JPEGImages/<class>/<class>_<number>.jpg`.

  Args:
    path: the text file.
    folder: where the photos are, searched before the file's own folder.

  Returns:
    The pairs whose photos both exist, in order, and a text 'file:line: what is wrong' for each of
    the other lines. Photos are not opened.

  Raises:
    ValueError: no such file or folder, or not one good line in it; shows the first problems.
  """
  path = files.at(path)
  roots = [path.parent]
  if folder is not None:
    folder = files.at(folder)
    _check_folder(folder)
    roots = [folder, *(root for root in roots if root != folder)]
  find = _finder(roots)
  pairs, problems = [], []
  split = None
  # Not splitlines: it splits at \x85 too, which is a character of names in other encodings.
  for number, line in enumerate(re.split(r"\r\n|\r|\n", _read_text(path)), start=1):
    line = line.strip()
    if not line or line.startswith("#"):
      continue
    try:
      if split is None:
        split = _splitter(line)
        if [field.lower() for field in split(line)[:2]] == ["query", "reference"]:
          continue
      pairs.append(_parse(split(line), find))
    except (csv.Error, ValueError) as error:
      problems.append(f"{path}:{number}: {error}")
  if not pairs:
    shown = problems[:_SHOWN_PROBLEMS] or ["nothing but blank lines, comments or a header"]
    more = len(problems) - len(shown)
    raise ValueError(
      f"{path}: no pair in it; a line is two photos and, if known, a label: a.jpg b.jpg 1\n  "
      + "\n  ".join(shown + ([f"and {more} more"] if more > 0 else []))
    )
  return pairs, problems


def sample_pairs() -> list[tuple[str, np.ndarray, str, np.ndarray]]:
  """Two pairs of real photos that come with scikit-image: (name, photo, name, photo) each.

  A motorcycle from two places (Middlebury stereo, 2014), and a cat, Chelsea, in two cuts, one of
  them mirrored. Photos are [h w 3] uint8, of different sizes.
  """
  from skimage import data  # here: its start is slow, and few need it

  left, right, _ = data.stereo_motorcycle()
  cat = data.chelsea()  # [300 451 3]
  # Eyes and nose are in the middle square of both, which is what a centre crop keeps; the second is
  # nearer, and shows more of the bed behind the cat.
  far = cat[:, 25:365]
  near = cat[30:290, 80:450][:, ::-1].copy()
  return [
    ("motorcycle_left", left, "motorcycle_right", right),
    ("cat", far, "cat_mirrored", near),
  ]


# --- lines ----------------------------------------------------------------------------------------


def _read_text(path: Path) -> str:
  try:
    content = files.read_bytes(path)
  except IsADirectoryError as error:
    raise ValueError(f"{path}: a folder; give the text file that lists the pairs") from error
  except (OSError, ValueError) as error:
    raise ValueError(
      f"{path}: can't be read ({getattr(error, 'strerror', None) or error}); give the text file"
      " that lists the pairs"
    ) from error
  if not content.strip():
    raise ValueError(f"{path}: an empty file; a line is two photos and a label: a.jpg b.jpg 1")
  if content.startswith((b"\xff\xfe", b"\xfe\xff")):  # a spreadsheet's 'Unicode text'
    return content.decode("utf-16", errors="replace")
  try:
    return content.decode("utf-8-sig")
  except UnicodeDecodeError:
    return content.decode("latin-1")


def _splitter(first: str) -> Callable[[str], list[str]]:
  """How lines come apart, from the first of them."""
  if "\t" in first:
    return functools.partial(_split_quoted, delimiter="\t")
  if "," in first:
    return functools.partial(_split_quoted, delimiter=",")
  return str.split


def _split_quoted(line: str, delimiter: str) -> list[str]:
  # Line by line: a quote left open would swallow the rest of the file.
  rows = csv.reader([line], delimiter=delimiter, skipinitialspace=True, strict=True)
  fields = [field.strip() for field in next(rows)]
  while len(fields) > 2 and not fields[-1]:  # no label, or a spreadsheet's empty columns
    fields.pop()
  return fields


def _parse(fields: list[str], find: Callable[[str], Path]) -> Pair:
  if len(fields) not in (2, 3):
    raise ValueError(
      f"{len(fields)} fields where 2 or 3 are expected (query, reference and perhaps a label);"
      ' separate names with blanks in them by tabs, or by commas: "my cat.jpg",b.jpg,1'
    )
  if not all(fields):
    raise ValueError("an empty name; give query and reference")
  label = None
  if len(fields) == 3:
    if not re.fullmatch(r"[+-]?\d{1,18}(\.0*)?", fields[2]):
      raise ValueError(f"label {fields[2][:60]!r} is no integer; give 1 for a match and 0 for none")
    label = int(fields[2].partition(".")[0])
  return Pair(find(fields[0]), find(fields[1]), label)


# --- names ----------------------------------------------------------------------------------------


def _finder(roots: list[Path]) -> Callable[[str], Path]:
  """A function from a name to the photo's path; raises ValueError where there is none, or two."""

  @functools.cache  # each folder is listed once, and no photo is looked at
  def listing(where: Path) -> tuple[frozenset[str], dict[str, list[str]]]:
    try:
      found = sorted(entry.name for entry in files.scandir(where) if entry.is_file())
    except (OSError, ValueError):  # ValueError: a null byte in the name
      return frozenset(), {}
    stems: dict[str, list[str]] = {}
    for file in found:
      if _is_photo(file):
        stems.setdefault(os.path.splitext(file)[0], []).append(file)
    return frozenset(found), stems

  def look(candidate: Path) -> Path | None:
    names, stems = listing(candidate.parent)
    if candidate.name in names:
      return candidate
    matches = stems.get(candidate.name, [])
    if len(matches) > 1:
      raise ValueError(f"{candidate} may be {' or '.join(matches)}; write the suffix")
    return candidate.with_name(matches[0]) if matches else None

  @functools.cache
  def find(name: str) -> Path:
    for root in roots:
      # AwA2 keeps a photo in its class's folder, which its name tells.
      names = [name]
      if "/" not in name and "_" in name:
        category = name.partition("_")[0]
        names += [f"JPEGImages/{category}/{name}", f"{category}/{name}"]
      for relative in names:
        if (found := look(root / relative)) is not None:
          return found
    places = " or ".join(str(root) for root in roots)
    raise ValueError(
      f"no photo {name[:300]!r} in {places}; correct the name, or give the photos' folder"
    )

  return find


def _is_photo(name: str) -> bool:
  return not name.startswith(".") and name.lower().endswith(PHOTO_SUFFIXES)


def _check_folder(folder: Path) -> None:
  files.check_reachable(folder)
  if not folder.exists():
    raise ValueError(f"{folder}: no such folder; give one with photos in it")
  if not folder.is_dir():
    raise ValueError(f"{folder}: a file; give the folder it is in")
