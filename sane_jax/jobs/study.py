"""Job: asks people which of two pairs the model scores higher, with a web server."""

import sys
import urllib.parse
from typing import Any

from sane_jax.runs import files, processes
from sane_jax.runs import folder as run_folder
from sane_jax.study.server import questions as questions_lib
from sane_jax.study.server import store as store_lib
from sane_jax.web import server

_NAME = "--config.study"


def check(config: Any) -> None:
  """Raises ValueError for settings that can't be; reads no data and writes nothing."""
  with server.needing_libraries():
    from sane_jax.study.server import app as app_lib
  settings, folder = config.study, files.at(config.workdir) / config.study.folder
  if files.is_remote(folder):
    raise ValueError(
      f"{folder}: answers are kept in SQLite, which needs a disk. Copy {folder}/export to a folder"
      " of this machine, FOLDER/study/export, and give --config.workdir=FOLDER"
    )
  app_lib.check_settings(_how(settings))
  server.choose_address(settings.host, settings.port, settings.token, _NAME)


def _how(settings: Any) -> Any:
  """How people are asked, as the server takes it."""
  from sane_jax.study.server import app as app_lib

  return app_lib.Settings(
    title=settings.title, contact=settings.contact, consent=settings.consent,
    design=settings.design_of_subjects, items_per_subject=settings.items_per_subject,
    max_subjects=settings.max_subjects, closes=app_lib.read_date(settings.closes),
    drop_out=3600 * settings.drop_out_hours, public_url=settings.public_url.rstrip("/"),
  )  # fmt: skip


def run(config: Any) -> None:
  """Serves the study that simulate_study exported until it is interrupted.

  Reads WORKDIR/study/export without its key; writes WORKDIR/study/answers.sqlite, and `secret`
  beside it, from which personal links are made. The same command goes on after any end.
  """
  check(config)
  if not processes.is_first():
    return
  from sane_jax.study.server import app as app_lib

  settings, folder = config.study, files.at(config.workdir) / config.study.folder
  how = _how(settings)
  address = server.choose_address(settings.host, settings.port, settings.token, _NAME)
  if not (folder / "export").exists():
    run_folder.read_finished(folder, "simulate_study")
  questions = questions_lib.read_export(folder / "export")
  count = questions_lib.count_items(questions, how.items_per_subject)
  facts = {
    "fingerprint": questions.fingerprint, "design_of_subjects": how.design,
    "items_per_subject": str(count),
  }  # fmt: skip
  store = store_lib.Store(folder / "answers.sqlite", facts)
  try:
    secret = app_lib.read_secret(folder / "secret")

    def say(link: str) -> None:
      base, _, query = link.partition("/?")
      base = how.public_url or base.rstrip("/")
      key = f"key={app_lib.operator_token(secret)}"
      print(f"study: {count} items a subject, {how.design}; answers in {store.path}")
      print(f"Invite with {base}/{query and f'?{query}'}")
      print(f"Look on with {base}/operator?{'&'.join(filter(None, (key, query)))}", flush=True)

    hosts = address.hosts
    if hosts is not None and how.public_url:  # what stands before the server calls it so
      hosts = (*hosts, urllib.parse.urlsplit(how.public_url).hostname or "")
    app = app_lib.make_app(questions, store, secret, how, token=address.token, hosts=hosts)
    server.run(
      app, address, _NAME, certificate=settings.certificate,
      certificate_key=settings.certificate_key, on_ready=say,
    )  # fmt: skip
  finally:
    store.close()
  print("study: ended; all answers are kept, and the same command goes on", file=sys.stderr)
