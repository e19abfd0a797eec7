"""Job: asks people which of two pairs the model scores higher, with a web server."""

from typing import Any

from sane_jax import files, training
from sane_jax.web import server
from sane_jax.web.study import app as app_lib
from sane_jax.web.study import questions as questions_lib
from sane_jax.web.study import store as store_lib

_NAME = "--config.study"


def run(config: Any) -> None:
  """Serves the study that simulate_study exported until it is interrupted.

  Reads WORKDIR/study/export without its key; writes WORKDIR/study/answers.sqlite, and `secret`
  beside it, from which personal links are made. The same command goes on after any end.
  """
  settings, workdir = config.study, files.at(config.workdir)
  folder = workdir / settings.folder
  if files.is_remote(folder):
    raise ValueError(
      f"{folder}: answers are kept in SQLite, which needs a disk. Copy {folder}/export to a folder"
      " of this machine, FOLDER/study/export, and give --config.workdir=FOLDER"
    )
  how = app_lib.Settings(
    title=settings.title, contact=settings.contact, consent=settings.consent,
    design=settings.design_of_subjects, items_per_subject=settings.items_per_subject,
    max_subjects=settings.max_subjects, closes=app_lib.read_date(settings.closes),
    drop_out=3600 * settings.drop_out_hours, public_url=settings.public_url.rstrip("/"),
  )  # fmt: skip
  app_lib.check_settings(how)
  address = server.choose_address(settings.host, settings.port, settings.token, _NAME)
  if not (folder / "export").exists():
    training.read_finished(folder, "simulate_study")
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
      base, _, rest = (f"{how.public_url}/?{link.partition('?')[2]}" if how.public_url else link
                       ).partition("/?")  # fmt: skip
      base, query = base.rstrip("/"), f"&{rest}" if rest else ""
      print(f"study: {count} items a subject, {how.design}; answers in {store.path}")
      print(f"Invite with {base}/{'?' + rest if rest else ''}")
      print(f"Look on with {base}/operator?key={app_lib.operator_token(secret)}{query}", flush=True)

    app = app_lib.make_app(questions, store, secret, how, token=address.token, hosts=address.hosts)
    server.run(
      app, address, _NAME, certificate=settings.certificate,
      certificate_key=settings.certificate_key, on_ready=say,
    )  # fmt: skip
  finally:
    store.close()
