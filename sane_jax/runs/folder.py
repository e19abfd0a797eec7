"""A run's folder: who owns it, with which settings, whether it is finished, what came out."""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import tqdm

from sane_jax.runs import files, processes

# Settings that change no result.
_IGNORED = ("log_every_steps", "save_every_steps", "save_every_epochs", "folder", "prepared")


CONTENT = ".content"  # ends the names of hashes of what a setting names: compared where known


def claim_folder(folder: pathlib.Path, settings: Mapping[str, Any]) -> pathlib.Path:
  """The folder of a run with these settings, new or begun earlier.

  A run that knows nothing of a setting that is off here goes on: it is older than the setting.

  Raises:
    ValueError: it holds a run with other settings; names each, there and here.
    OSError: it can't be written.
  """
  folder = writable_folder(folder)
  path = folder / "settings.json"
  ours = json.loads(json.dumps(settings, default=list))
  if path.exists():
    theirs = read_json(path)
    differing = []
    for name in sorted({*ours, *theirs}):
      if name.endswith(CONTENT) and not (name in ours and name in theirs):
        continue  # of a run from before it was kept, or of a file that is no longer needed
      # A run that is older than a setting goes on where that setting is off.
      absent = False if ours.get(name) is False else None
      if theirs.get(name, absent) != ours.get(name):
        differing.append(f"{name} is {theirs.get(name)!r} there and {ours.get(name)!r} here")
    if differing:
      raise ValueError(
        f"{folder} holds a run with other settings: {'; '.join(differing)}. Go on with those, give"
        f" this run a place of its own with --config.workdir=FOLDER, or remove {folder}"
      )
  elif jax.process_index() == 0:
    files.write_bytes(path, (json.dumps(ours, indent=1) + "\n").encode())
  return folder


def identity(data: Mapping[str, Any], **sections: Any) -> dict[str, Any]:
  """All that fixes a run's result, by name: its settings ("section.name"), and its data.

  Not how often something is logged or saved, nor where the data lies.

  Args:
    data: what fixes the data, such as `datasets.collection.fingerprint` of a collection.
    sections: sections of settings, or single values, by name.
  """
  out: dict[str, Any] = {}
  for section, values in sections.items():
    if hasattr(values, "items"):
      out |= {f"{section}.{k}": v for k, v in values.items() if k not in _IGNORED}
    else:
      out[section] = values
  return {**out, **data}


def read_json(path: pathlib.Path) -> Any:
  """A JSON file of ours.

  Raises:
    ValueError: it is damaged; says what to do.
  """
  try:
    return json.loads(files.read_bytes(path))
  except (OSError, ValueError, RecursionError) as error:
    raise ValueError(f"{path} can't be read ({error}); remove its folder and run again") from error


def is_finished(folder: pathlib.Path) -> bool:
  """Whether the job that owns this folder ran to its end."""
  return (folder / "finished.json").exists()


def up_to_date(folder: pathlib.Path, job: str) -> bool:
  """Whether the job that owns this folder ran to its end, and says so; alike on all processes."""
  done = processes.agree(is_finished(folder), f"{job}: begin")
  if done:
    tell(f"{job}: up to date in {folder}")
  return done


def tell(text: str) -> None:
  """Prints a line of a job's result, on the first process alone."""
  if jax.process_index() == 0:
    print(text)


def finish(folder: pathlib.Path, results: Mapping[str, Any]) -> None:
  """Marks a job as run to its end, with what came out of it."""
  if jax.process_index() == 0:
    text = json.dumps(dict(results), indent=1, default=float) + "\n"
    files.write_bytes(folder / "finished.json", text.encode())


def read_finished(folder: pathlib.Path, job: str) -> Any:
  """What a job that ran to its end left in its folder.

  Raises:
    ValueError: it did not; says what to run.
  """
  if not is_finished(folder):
    raise ValueError(f"{folder} is not finished; run --config.job={job} first")
  return read_json(folder / "finished.json")


def hash_finished(folder: pathlib.Path, job: str) -> str:
  """SHA-256 of what a job found, by which a later job knows that its input is still the same.

  How many passes it took is left out: after an interruption they are fewer.

  Raises:
    ValueError: it did not run to its end; says what to run.
  """
  found = {k: v for k, v in read_finished(folder, job).items() if k != "passes_of_this_run"}
  return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def hash_file(path: pathlib.Path) -> str:
  """SHA-256 of a file."""
  with files.local_copy(path).open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def progress(name: str, first_step: int, num_steps: int) -> tqdm.tqdm:
  """A bar with rate and time left, on the first process and on a terminal alone."""
  hidden = None if jax.process_index() == 0 else True
  return tqdm.tqdm(
    total=num_steps, initial=first_step, desc=name, unit="step", disable=hidden,
    dynamic_ncols=True,
  )  # fmt: skip


def writable_folder(path: pathlib.Path) -> pathlib.Path:
  """The folder, made if need be.

  Raises:
    OSError: it can't be made or written; says where, and what to give instead.
  """
  try:
    files.check_writable(path)
  except OSError as error:
    raise OSError(
      f"can't write to {path}: {error.strerror or error}; give a folder that can be written with"
      " --config.workdir=FOLDER"
    ) from error
  return path
