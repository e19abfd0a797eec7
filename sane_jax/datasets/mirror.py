"""Folders of ours that are used on a disk and kept in a bucket, with a checksum for every file.

A bucket can't lock: whoever has the folder whole uploads it, under names made of the content, so
that two who do it at once do no harm. A list of them is written last.
"""

import hashlib
import json
import os
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import tqdm

from sane_jax.runs import files

LIST = "files.json"  # name -> [SHA-256, bytes]
_AT_ONCE = 2  # files held in memory, of 256 MB at most


def fetch(kept: Path, folder: Path) -> bool:
  """Copies what `keep` kept into `folder`, which is there when all of it is, and not before.

  Returns:
    Whether it was kept.

  Raises:
    ValueError: a file is not what was written.
    OSError: one can't be read.
  """
  try:
    listed = json.loads(files.read_bytes(kept / LIST))
    if any(".." in PurePosixPath(n).parts or PurePosixPath(n).is_absolute() for n in listed):
      raise ValueError("a name leads out of the folder")
    sizes = [int(size) for _, size in listed.values()]
  except FileNotFoundError:
    return False
  except (ValueError, TypeError, AttributeError, RecursionError) as error:
    raise ValueError(f"{kept / LIST} is damaged ({error}); remove {kept} and run again") from error
  partial = folder.with_name(f"incomplete.{uuid.uuid4().hex}")
  bar = tqdm.tqdm(
    total=sum(sizes), desc=f"copying {kept}", unit="B",
    unit_scale=True, disable=None, leave=False,
  )  # fmt: skip
  try:
    for name, (digest, size) in listed.items():
      target = partial / name
      target.parent.mkdir(parents=True, exist_ok=True)
      data = files.read_bytes(kept / "content" / digest)
      if len(data) != size or hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(
          f"{kept / 'content' / digest}, the file {name}, is not what was written there; remove"
          f" {kept} and run the same again"
        )
      files.write_bytes(target, data, flush=False)
      bar.update(size)
    os.rename(partial, folder)
  finally:
    bar.close()
    shutil.rmtree(partial, ignore_errors=True)
  return True


def keep(folder: Path, kept: Path) -> None:
  """Copies a whole folder into the bucket, unless it is there.

  Raises:
    OSError: it can't be written.
  """
  if (kept / LIST).exists():
    return
  paths = sorted(path for path in folder.rglob("*") if path.is_file())

  def send(path: Path) -> tuple[str, tuple[str, int]]:
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    files.write_bytes(kept / "content" / digest, data)
    return path.relative_to(folder).as_posix(), (digest, len(data))

  with ThreadPoolExecutor(_AT_ONCE) as pool:
    listed = dict(pool.map(send, paths))
  files.write_bytes(kept / LIST, json.dumps(listed).encode())
