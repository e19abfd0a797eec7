"""The user study: pages, and the same for programs under /api.

Which participant gets which question is in `questions`, the answers are in `store`. No page shows
a correct answer, except for practice, and that only after the participant has answered.
"""

import asyncio
import base64
import datetime
import hashlib
import hmac
import logging
import math
import os
import pathlib
import secrets
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple, TypeVar

import pydantic
from fastapi import APIRouter, Depends, FastAPI, Form, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from sane_jax.study.server import questions as questions_lib
from sane_jax.study.server import store as store_lib
from sane_jax.study.server.questions import Picture, Questions
from sane_jax.study.server.store import Newcomer, Place, State, Store
from sane_jax.web import guard, pages
from sane_jax.web.guard import LOOPBACK, Limit, Refusal

SESSION, OPERATOR = "study_session", "study_operator"  # cookies
_SECONDS = 12  # a question takes, for the estimate on the consent page
_LOG = logging.getLogger("sane_jax.study.server")
# Per client address: a whole classroom may share one.
LIMITS = (
  Limit("/resume", 1, 60),
  Limit("/operator", 5, 60),
  Limit("/api/operator", 5, 60),
  Limit("/consent", 5, 300, ("POST",)),
  Limit("/", 400, 2000),
)
CONSENT = """\
You are asked to take part in a scientific study of explanations: do they help people to foresee \
what a computer model will say?

You will see {count} questions, which takes about {minutes} minutes. Each shows two pairs of \
images; you say which of them the model scored higher. There is nothing to prepare, and nothing \
that can go wrong for you. You can stop at any moment, without giving a reason, and go on later \
or not at all.

What is stored: your answers, how long each took, when you took part, and, if you write one, your \
comment at the end. No name, no address of your computer and nothing about your browser is stored. \
A cookie lets you go on where you stopped; it is used for nothing else. As long as you have your \
personal link you can have your answers deleted.

The answers are evaluated together with those of others, and may be published without anything \
that could say whose they were. You are 18 years old or older."""

_T = TypeVar("_T")


class Settings(NamedTuple):
  """How people are asked.

  Attributes:
    title: at the top of all pages.
    contact: whom to write to.
    consent: paragraphs of the consent page, separated by empty lines; '' for `CONSENT`.
    design: within or between; see `questions.make_plan`.
    items_per_subject: questions for each participant; None for all.
    max_subjects: participants, active or finished.
    closes: seconds since 1970 after which nobody can begin; None for never.
    drop_out: seconds without a request after which a participant's slot is given to another.
    public_url: how participants reach the server, where that is not its own address.
  """

  title: str = "A study of image pairs"
  contact: str = ""
  consent: str = ""
  design: str = "within"
  items_per_subject: int | None = None
  max_subjects: int = 500
  closes: float | None = None
  drop_out: float = 86400.0
  public_url: str = ""


def check_settings(settings: Settings) -> None:
  """Raises ValueError, naming the field, where a setting is out of its range."""
  name = "--config.study"
  if settings.design not in questions_lib.DESIGNS:
    raise ValueError(f"{name}.design_of_subjects is within or between; given {settings.design!r}")
  if settings.max_subjects < 1:
    raise ValueError(f"{name}.max_subjects is 1 or more; given {settings.max_subjects}")
  if not 60 <= settings.drop_out < math.inf:
    raise ValueError(
      f"{name}.drop_out_hours is a minute (0.017) or more; given {settings.drop_out / 3600:g}"
    )
  if settings.public_url and not settings.public_url.startswith(("https://", "http://")):
    raise ValueError(f"{name}.public_url begins with https://; given {settings.public_url!r}")


def read_date(text: str) -> float | None:
  """Seconds since 1970 of 2027-01-31 (its end) or 2027-01-31T18:00, UTC; None for ''.

  Raises:
    ValueError: it is neither.
  """
  if not text:
    return None
  try:
    when = datetime.datetime.fromisoformat(text)
  except ValueError:
    raise ValueError(
      f"--config.study.closes is a date, 2027-01-31 or 2027-01-31T18:00, in UTC; given {text!r}"
    ) from None
  if len(text) == 10:
    when += datetime.timedelta(days=1)
  return when.replace(tzinfo=when.tzinfo or datetime.UTC).timestamp()


def read_secret(path: pathlib.Path) -> bytes:
  """32 bytes from which links, codes and the operator's token are derived; made the first time.

  Raises:
    ValueError: the file holds something else.
    OSError: it can't be written.
  """
  if path.exists():
    secret = path.read_bytes()
    if len(secret) != 32:
      raise ValueError(
        f"{path} is damaged: it has {len(secret)} bytes and not 32. Put it back from a copy;"
        " without it personal links and codes are others (remove it if nobody has taken part)"
      )
    return secret
  # Readable by this user alone.
  handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  with os.fdopen(handle, "wb") as file:
    file.write(secret := secrets.token_bytes(32))
    file.flush()
    os.fsync(file.fileno())
  os.replace(name, path)
  return secret


def derive(secret: bytes, purpose: str, letters: int = 24) -> str:
  """A token that can be made only with the secret; the same after a restart."""
  digest = hmac.digest(secret, purpose.encode(), hashlib.sha256)
  return base64.b32encode(digest).decode().lower()[:letters]


# --- JSON of the API ------------------------------------------------------------------------------


class Progress(pydantic.BaseModel):
  """Where a subject is."""

  answered: int
  total: int
  finished: bool
  next_kind: str | None = pydantic.Field(description="practice or question; null at the end")
  next_item: str | None


class Answer(pydantic.BaseModel):
  """An answer to the question that was sent last."""

  item: str = pydantic.Field(max_length=64)
  answer: str = pydantic.Field(pattern="^[AB]$")
  seconds: float | None = pydantic.Field(default=None, description="the page was seen, if known")
  token: str = pydantic.Field(max_length=100, description="of the page's form")


class Feedback(Progress):
  """What is so after an answer."""

  right: bool | None = pydantic.Field(description="of practice; null of everything else")


class CellStatus(pydantic.BaseModel):
  cell: str
  begun: int
  active: int
  finished: int
  withdrawn: int


class Status(pydantic.BaseModel):
  """What an operator sees."""

  open: bool
  answers: int
  answers_last_hour: int
  answers_last_minute: int
  free_bytes: int
  stored_bytes: int
  cells: list[CellStatus]


# --- the application ------------------------------------------------------------------------------


class _Study:
  """The state that all routes share: `app.state.study`."""

  def __init__(
    self, questions: Questions, store: Store, secret: bytes, settings: Settings, token: str
  ):
    self.questions, self.store, self.secret, self.settings = questions, store, secret, settings
    self.token = token
    self.pages = pages.Pages(["sane_jax.report", "sane_jax.web", "sane_jax.study.server"])
    self.count = questions_lib.count_items(questions, settings.items_per_subject)
    self.total = self.count + len(questions.items["check"])
    self.practice = len(questions.items["practice"])
    # Addresses of pictures can't be guessed, even with the export at hand.
    each = [p for shown in questions.shown.values() for p in shown.pictures]
    each += [p for p in questions.example if isinstance(p, Picture)]
    names = (derive(secret, f"picture:{questions.fingerprint}:{n}") for n in range(len(each)))
    self.pictures: dict[str, Picture] = dict(zip(names, each, strict=True))
    self.addresses = {id(picture): f"/picture/{name}" for name, picture in self.pictures.items()}

  async def do(self, operation: Callable[[sqlite3.Connection], _T], *, erase: bool = False) -> _T:
    """The result of an operation of the store, once it is on the disk; see `Store.submit`."""
    try:
      return await asyncio.wrap_future(self.store.submit(operation, erase=erase))
    except store_lib.Unlikely as error:
      _LOG.warning("refused: %s", error)
      raise Refusal(409, str(error)) from error
    except (sqlite3.Error, RuntimeError) as error:
      _LOG.error("not stored: %s", error)
      raise Refusal(
        503, "This could not be stored just now. Go back and send it again in a minute; all that"
        " you answered before is safe.", {"retry-after": "30"},
      ) from error  # fmt: skip

  def html(self, request: Request, template: str, **values: Any) -> HTMLResponse:
    text = self.pages.render(
      template, study=self.settings, form=guard.form_token(request), **values
    )
    return HTMLResponse(text)

  def url(self, request: Request, path: str) -> str:
    """The address of a page from outside."""
    base = self.settings.public_url.rstrip("/")
    return (base or f"{request.url.scheme}://{request.headers.get('host', '')}") + path

  def link(self, request: Request, subject: int) -> str:
    """The participant's personal link, which works in any browser."""
    token = f"&token={self.token}" if self.token else ""
    return self.url(request, f"/resume?link={self.tokens(subject)[0]}{token}")

  def cookie(self, request: Request, response: Response, name: str, value: str) -> None:
    secure = request.url.scheme == "https" or self.settings.public_url.startswith("https:")
    response.set_cookie(
      name, value, max_age=int(store_lib.SESSION_SECONDS), httponly=True, samesite="lax",
      secure=secure,
    )  # fmt: skip

  def tokens(self, subject: int) -> tuple[str, str]:
    """Secret of the personal link, and completion code."""
    code = derive(self.secret, f"code:{subject}", 10).upper()
    return derive(self.secret, f"resume:{subject}"), f"{code[:5]}-{code[5:]}"

  def plan(self, slot: int, subject: int) -> Newcomer:
    return questions_lib.make_plan(self.questions, self.settings.design, self.count, slot, subject)

  def pairs(self, place: Place) -> list[dict[str, Any]]:
    """The two pairs of a question, for a template."""
    shown = self.questions.shown[place.file]
    made = []
    for letter, picture, attribute in zip("AB", shown.pictures, shown.attributes, strict=True):
      alt = f"Pair {letter}: two images side by side."
      if shown.map:
        alt += (
          " Below the first, the same image with what raised the model's score in warm colours"
          " and what lowered it in cool ones."
        )
      if attribute:
        alt += f" Beside that, where it shows “{attribute}”, in green."
      made.append({
        "letter": letter, "address": self.addresses[id(picture)], "alt": alt,
        "width": picture.width, "height": picture.height, "map": shown.map, "attribute": attribute,
      })  # fmt: skip
    return made

  def where(self, state: State, place: int) -> dict[str, Any]:
    """Number and total of a question, among practice or among those that count."""
    if place <= state.practice:
      return {"practice": True, "number": place, "total": state.practice}
    return {
      "practice": False, "number": place - state.practice, "total": state.total - state.practice,
    }  # fmt: skip


# --- dependencies of the routes -------------------------------------------------------------------


async def _study(request: Request) -> _Study:
  return request.app.state.study


Here = Annotated[_Study, Depends(_study)]


async def find_subject(request: Request, study: Here) -> State | None:
  """The participant and position of the request's cookie, or None if unknown or expired."""
  session = request.cookies.get(SESSION, "")
  return await study.do(lambda db: store_lib.find(db, session, time.time())) if session else None


async def current_subject(state: Annotated[State | None, Depends(find_subject)]) -> State:
  """As `find_subject`; 403 instead of None."""
  if state is None:
    raise _unknown()
  return state


def _unknown() -> Refusal:
  return Refusal(
    403, "You are not known here, or were away for too long. Open your personal link to go on, or"
    " begin at the first page.",
  )  # fmt: skip


async def _check_form(request: Request, token: Annotated[str, Form(max_length=100)] = "") -> None:
  guard.check_form(request, token)


async def _check_operator(request: Request, study: Here) -> None:
  given = request.cookies.get(OPERATOR, "")
  if not hmac.compare_digest(given.encode("utf-8", "replace"), _operator_cookie(study).encode()):
    raise Refusal(
      401, "This page is for those who run the study: open the whole link that the server printed"
      " when it started, which ends in ?key=...",
    )  # fmt: skip


AnySubject = Annotated[State | None, Depends(find_subject)]
Subject = Annotated[State, Depends(current_subject)]
OWN_FORM, IS_OPERATOR = Depends(_check_form), Depends(_check_operator)
before_routes, after_routes, question_routes, api_routes, operator_routes = (
  APIRouter() for _ in range(5)
)


def _see(path: str) -> RedirectResponse:
  return RedirectResponse(path, 303)


def make_app(
  questions: Questions,
  store: Store,
  secret: bytes,
  settings: Settings,
  *,
  token: str = "",
  hosts: Sequence[str] | None = LOOPBACK,
  limits: Sequence[Limit] = LIMITS,
) -> guard.Guard:
  """The application.

  Args:
    questions: what can be asked.
    store: where answers go.
    secret: from `read_secret`.
    settings: how people are asked.
    token, hosts, limits: as of `guard.Guard`.
  """
  check_settings(settings)
  app = FastAPI(
    title="sane_jax study", docs_url=None, redoc_url=None, openapi_url="/api/openapi.json"
  )
  study = app.state.study = _Study(questions, store, secret, settings, token)
  guard.add_handlers(app, study.pages.refusal)
  study.pages.add_static(app)
  for router in (before_routes, after_routes, question_routes, api_routes, operator_routes):
    app.include_router(router)
  return guard.Guard(
    app, token=token, hosts=hosts, limits=limits, secret=derive(secret, "guard", 52).encode(),
    render_refusal=study.pages.refusal, max_body=32 << 10,
  )  # fmt: skip


# --- before the questions -------------------------------------------------------------------------


async def _closed(study: _Study) -> str:
  """Why nobody can begin, or ''."""
  if study.settings.closes is not None and time.time() >= study.settings.closes:
    return "The study is over; nobody can begin any more. Thank you for your interest."
  if not await study.do(store_lib.is_open):
    return "Nobody can begin at the moment. Please come back later."
  return ""


@before_routes.get("/", response_class=HTMLResponse)
async def welcome(request: Request, study: Here, state: AnySubject) -> Response:
  if state is not None and not state.withdrawn:
    return _see("/task" if state.started else "/instructions")
  text, count = study.settings.consent, study.total + study.practice
  if not text:
    text = CONSENT.format(count=count, minutes=max(1, round(count * _SECONDS / 60)))
  return study.html(
    request, "welcome.html.j2", paragraphs=[p for p in text.split("\n\n") if p.strip()],
    closed=await _closed(study), visit=secrets.token_urlsafe(18), count=count,
    stranger=bool(request.cookies.get(SESSION)) and state is None,
  )  # fmt: skip


@before_routes.post("/consent", response_class=HTMLResponse, dependencies=[OWN_FORM])
async def consent(
  request: Request,
  study: Here,
  state: AnySubject,
  visit: Annotated[str, Form(max_length=64)] = "",
  agree: Annotated[str, Form(max_length=8)] = "",
) -> Response:
  settings = study.settings
  if state is not None and not state.withdrawn:
    return _see("/instructions")
  if agree != "yes" or len(visit) < 16:
    raise Refusal(422, "To take part, tick that you agree; go back to do so.")
  if why := await _closed(study):
    raise Refusal(403, why)
  made = await study.do(
    lambda db: store_lib.enrol(
      db, visit=visit, design=settings.design, most=settings.max_subjects,
      drop_out=settings.drop_out, tokens=study.tokens, plan=study.plan, now=time.time(),
    )
  )  # fmt: skip
  if made is None:
    raise Refusal(403, "Enough people take part already. Thank you for your interest.")
  response = _see("/instructions")
  study.cookie(request, response, SESSION, made[1])
  return response


@before_routes.get("/instructions", response_class=HTMLResponse)
async def instructions(request: Request, study: Here, state: Subject) -> Response:
  example = study.questions.example
  addresses = {
    name: study.addresses[id(getattr(example, name))]
    for name in ("first", "second", "map", "attribute")
  }
  return study.html(
    request, "instructions.html.j2", example=addresses, attribute=example.name, state=state,
    size=example.first.width, practice=state.practice, count=state.total - state.practice,
    link=study.link(request, state.subject),
  )  # fmt: skip


@before_routes.get("/resume", response_class=HTMLResponse)
async def resume(
  request: Request, study: Here, link: Annotated[str, Query(max_length=64)] = ""
) -> Response:
  session = await study.do(lambda db: store_lib.resume(db, link, time.time()))
  if session is None:
    _LOG.warning("refused: a personal link that is nobody's")
    raise Refusal(404, "That personal link is nobody's. Open the whole link that you were shown.")
  response = _see("/")
  study.cookie(request, response, SESSION, session)
  return response


@before_routes.get("/pause", response_class=HTMLResponse)
async def pause(request: Request, study: Here, state: Subject) -> Response:
  return study.html(request, "pause.html.j2", state=state, link=study.link(request, state.subject))


# --- after the questions --------------------------------------------------------------------------


@after_routes.post("/withdraw", response_class=HTMLResponse, dependencies=[OWN_FORM])
async def withdraw(
  request: Request, study: Here, state: Subject, sure: Annotated[str, Form(max_length=8)] = ""
) -> Response:
  if sure != "yes":
    raise Refusal(422, "To have your answers deleted, tick that you are sure; go back to do so.")
  await study.do(lambda db: store_lib.withdraw(db, state.subject, time.time()), erase=True)
  response = study.html(request, "withdrawn.html.j2")
  response.delete_cookie(SESSION)
  return response


@after_routes.post("/leave", response_class=HTMLResponse, dependencies=[OWN_FORM])
async def leave(request: Request, study: Here) -> Response:
  session = request.cookies.get(SESSION, "")
  await study.do(lambda db: store_lib.end_session(db, session))
  response = _see("/")
  response.delete_cookie(SESSION)
  return response


@after_routes.get("/finish", response_class=HTMLResponse)
async def finish(request: Request, study: Here, state: Subject) -> Response:
  if not state.finished:
    return _see("/task")
  return study.html(request, "finish.html.j2", most=store_lib.MOST_COMMENT)


@after_routes.post("/finish", response_class=HTMLResponse, dependencies=[OWN_FORM])
async def comment(
  study: Here, state: Subject,
  comment: Annotated[str, Form(max_length=2 * store_lib.MOST_COMMENT)] = "",
) -> Response:  # fmt: skip
  if not state.finished:
    return _see("/task")
  if text := comment.strip():
    await study.do(lambda db: store_lib.comment(db, state.subject, text))
  return _see("/thanks")


@after_routes.get("/thanks", response_class=HTMLResponse)
async def thanks(request: Request, study: Here, state: Subject) -> Response:
  if not state.finished:
    return _see("/task")
  return study.html(request, "thanks.html.j2", code=state.code)


# --- the questions, their pictures, and the answers -----------------------------------------------


@question_routes.get("/picture/{name}")
async def picture(study: Here, name: str) -> Response:
  there = study.pictures.get(name)
  if there is None:
    raise Refusal(404, "There is no such picture.")
  headers = {"cache-control": "private, max-age=86400, immutable"}
  return Response(there.data, media_type="image/png", headers=headers)


@question_routes.get("/task", response_class=HTMLResponse)
async def task(request: Request, study: Here) -> Response:
  session = request.cookies.get(SESSION, "")
  state = await study.do(lambda db: store_lib.serve(db, session, time.time()))
  if state is None:
    raise _unknown()
  if state.withdrawn:
    return _see("/")
  if state.next is None:
    return _see("/finish")
  return study.html(
    request, "task.html.j2", pairs=study.pairs(state.next), item=state.next.item,
    **study.where(state, state.next.place),
  )  # fmt: skip


async def _store_answer(
  request: Request, study: _Study, item: str, choice: str, seconds: float | None
) -> tuple[State, Place]:
  """Stores an answer; returns the participant's new position, and the place answered."""
  session = request.cookies.get(SESSION, "")
  client = seconds if seconds is not None and math.isfinite(seconds) else None
  stored = await study.do(
    lambda db: store_lib.answer(db, session, item, choice, client, time.time())
  )
  if stored is None:
    _LOG.warning("refused: an answer of nobody")
    raise _unknown()
  return stored


@question_routes.post("/answer", response_class=HTMLResponse, dependencies=[OWN_FORM])
async def answer(
  request: Request,
  study: Here,
  item: Annotated[str, Form(max_length=64)] = "",
  answer: Annotated[str, Form(max_length=8)] = "",
  seconds: Annotated[str, Form(max_length=32)] = "",
) -> Response:
  if answer not in ("A", "B"):
    raise Refusal(422, "Choose pair A or pair B; go back to do so.")
  try:
    reported = float(seconds)
  except ValueError:
    reported = None
  _, place = await _store_answer(request, study, item, answer, reported)
  return _see(f"/feedback?place={place.place}" if place.kind == "practice" else "/task")


@question_routes.get("/feedback", response_class=HTMLResponse)
async def feedback(
  request: Request, study: Here, state: Subject, place: Annotated[int, Query(ge=1, le=10_000)]
) -> Response:
  asked = await study.do(lambda db: store_lib.find_place(db, state.subject, place))
  given = await study.do(lambda db: store_lib.find_answer(db, state.subject, place))
  # Only practice, and only what was answered.
  if asked is None or given is None or asked.kind != "practice":
    return _see("/task")
  return study.html(
    request, "feedback.html.j2", pairs=study.pairs(asked), given=given,
    right=study.questions.answers[asked.item], last=place == state.practice,
    **study.where(state, place),
  )  # fmt: skip


# --- the same for programs ------------------------------------------------------------------------


def _progress(state: State) -> dict[str, Any]:
  there = state.next if not state.withdrawn else None
  kind = None if there is None else "practice" if there.kind == "practice" else "question"
  return {
    "answered": state.answered, "total": state.total, "finished": state.finished,
    "next_kind": kind, "next_item": there.item if there else None,
  }  # fmt: skip


@api_routes.get("/api/progress")
async def read_progress(state: Subject) -> Progress:
  return Progress(**_progress(state))


@api_routes.post("/api/answer")
async def send_answer(request: Request, study: Here, sent: Answer) -> Feedback:
  guard.check_form(request, sent.token)
  state, place = await _store_answer(request, study, sent.item, sent.answer, sent.seconds)
  right = None
  if place.kind == "practice":
    right = study.questions.answers[place.item] == sent.answer
  return Feedback(**_progress(state), right=right)


# --- the operator's page: counts, and no answers --------------------------------------------------


def operator_token(secret: bytes) -> str:
  """The key of the operator's link."""
  return derive(secret, "operator")


def _operator_cookie(study: _Study) -> str:
  return derive(study.secret, "operator cookie")


async def _overview(study: _Study) -> tuple[store_lib.Overview, int, int]:
  """Counts of participants and answers; bytes free on the disk, and bytes stored."""
  path = study.store.path
  there = await study.do(lambda db: store_lib.overview(db, study.settings.drop_out, time.time()))
  stored = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*") if file.is_file())
  return there, shutil.disk_usage(path.parent).free, stored


@operator_routes.get("/operator", response_class=HTMLResponse)
async def operator(
  request: Request, study: Here, key: Annotated[str, Query(max_length=64)] = ""
) -> Response:
  if key:
    secret = operator_token(study.secret)
    if not hmac.compare_digest(key.encode("utf-8", "replace"), secret.encode()):
      _LOG.warning("refused: an operator's link that is none")
      raise Refusal(401, "That is not the operator's link of this study.")
    response = _see("/operator")
    study.cookie(request, response, OPERATOR, _operator_cookie(study))
    return response
  await _check_operator(request, study)
  there, free, stored = await _overview(study)
  invitation = study.url(request, "/" + (f"?token={study.token}" if study.token else ""))
  return study.html(
    request, "operator.html.j2", overview=there, free=free / 1e9, stored=stored / 1e6,
    invitation=invitation, low=free < 1e9,
    closes=study.settings.closes
    and datetime.datetime.fromtimestamp(study.settings.closes, datetime.UTC),
  )  # fmt: skip


@operator_routes.post(
  "/operator/enrolment", response_class=HTMLResponse, dependencies=[IS_OPERATOR, OWN_FORM]
)
async def enrolment(study: Here, opened: Annotated[str, Form(max_length=8)] = "") -> Response:
  if opened not in ("yes", "no"):
    raise Refusal(422, "Say yes or no.")
  await study.do(lambda db: store_lib.set_open(db, opened == "yes"))
  return _see("/operator")


@operator_routes.get("/api/operator", dependencies=[IS_OPERATOR])
async def status(study: Here) -> Status:
  there, free, stored = await _overview(study)
  return Status(
    open=there.opened, answers=there.answers, answers_last_hour=there.last_hour,
    answers_last_minute=there.last_minute, free_bytes=free, stored_bytes=stored,
    cells=[CellStatus(**cell._asdict()) for cell in there.cells],
  )  # fmt: skip
