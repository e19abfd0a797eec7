"""The answers: one SQLite file, where an answer is durable before the next page is sent.

A single writer thread batches pending operations into one transaction and reports to each caller
when it is on the disk, so that a flush costs the same for one answer and for fifty.
"""

import concurrent.futures
import contextlib
import fcntl
import hashlib
import os
import pathlib
import queue
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from sane_jax.runs import files

FORMAT = 1
KINDS = ("practice", "check", "item")
MOST_SECONDS = 3600.0  # of thinking; longer ones count as this
MOST_COMMENT = 2000  # letters
_SLACK = 2.0  # seconds that a client's clock may be ahead: the page was sent before it was noted
_AT_ONCE = 200  # in one transaction
_SESSIONS = 20  # of a participant; older ones are deleted
SESSION_SECONDS = 180 * 86400.0

_T = TypeVar("_T")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS subjects (
  subject INTEGER PRIMARY KEY,
  visit TEXT NOT NULL UNIQUE,       -- hash of the form of consent: one sent twice is one subject
  resume TEXT NOT NULL UNIQUE,      -- hash of the personal link
  code TEXT NOT NULL UNIQUE,        -- of completion
  design TEXT NOT NULL CHECK (design IN ('within', 'between')),
  slot INTEGER NOT NULL,            -- place in the balance; see app.Plan
  cell TEXT NOT NULL,               -- group (between) or turn (within), for the operator
  consented_at REAL NOT NULL,
  seen_at REAL NOT NULL,
  finished_at REAL,
  withdrawn_at REAL,
  comment TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE TABLE IF NOT EXISTS sessions (
  session TEXT PRIMARY KEY,         -- hash of the cookie
  subject INTEGER NOT NULL REFERENCES subjects (subject),
  begun_at REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS places (
  subject INTEGER NOT NULL REFERENCES subjects (subject),
  place INTEGER NOT NULL,
  kind TEXT NOT NULL CHECK (kind IN ('practice', 'check', 'item')),
  item TEXT NOT NULL,
  file TEXT NOT NULL,
  first_served_at REAL,
  served_at REAL,
  servings INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (subject, place),
  UNIQUE (subject, item)
) STRICT;
CREATE TABLE IF NOT EXISTS answers (
  subject INTEGER NOT NULL,
  place INTEGER NOT NULL,
  kind TEXT NOT NULL,
  item TEXT NOT NULL,
  file TEXT NOT NULL,
  answer TEXT NOT NULL CHECK (answer IN ('A', 'B')),
  answered_at REAL NOT NULL,
  seconds REAL NOT NULL CHECK (seconds BETWEEN 0 AND 3600),  -- the browser's if likely, or ours
  server_seconds REAL NOT NULL,     -- from the last time the page was sent
  client_seconds REAL,              -- of the page being seen; NULL: not told, or not possible
  UNIQUE (subject, item),
  UNIQUE (subject, place),
  FOREIGN KEY (subject, place) REFERENCES places (subject, place)
) STRICT;
"""


class SubjectRow(NamedTuple):
  """A participant."""

  subject: int
  consented_at: float  # seconds since 1970
  finished_at: float | None
  design: str  # within between


class AnswerRow(NamedTuple):
  """An answer to what was shown; the key says under which condition, and whether it is right."""

  subject: int
  place: int  # from 1, in the order in which they were asked
  kind: str  # practice check item
  item: str
  file: str
  condition: str  # '': the server does not know it
  answer: str  # A B
  seconds: float


class Place(NamedTuple):
  """The question at a place of a participant's sequence."""

  place: int
  kind: str
  item: str
  file: str


class State(NamedTuple):
  """The position of a participant."""

  subject: int
  design: str
  answered: int
  total: int
  practice: int  # how many of them are practice
  next: Place | None
  started: bool  # the first question has been sent
  finished: bool
  withdrawn: bool
  code: str


class Unlikely(Exception):
  """An answer that can't be this participant's next one; nothing was stored."""


class Store:
  """The file of a study, opened by one server at a time.

  Args:
    path: made if need be.
    facts: settings that must not change while people answer; the first server writes them.

  Raises:
    ValueError: the file is in a bucket, of another study, open in another server, or no study.
    OSError: it can't be written.
  """

  def __init__(self, path: pathlib.Path, facts: Mapping[str, str]):
    if files.is_remote(path):
      raise ValueError(
        f"{path}: answers are kept in SQLite, which needs a disk. Copy WORKDIR/study to this"
        " machine and give --config.workdir=FOLDER; copy answers.sqlite back when the study is over"
      )
    files.check_writable(path.parent)
    self.path = path
    self._lock = _lock(path.with_suffix(".lock"))
    try:
      self._connection = _open(path)
      _check_facts(self._connection, path, facts)
    except BaseException:
      os.close(self._lock)
      raise
    self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
    self._closed = False
    self._thread = threading.Thread(target=self._work, name="answers", daemon=True)
    self._thread.start()

  def submit(
    self, operation: Callable[[sqlite3.Connection], _T], *, erase: bool = False
  ) -> "concurrent.futures.Future[_T]":
    """The operation's result, once its changes are on the disk; they are undone if it raises.

    With `erase`, once what it deleted is gone from the disk, the write-ahead log included.
    """
    future: concurrent.futures.Future[_T] = concurrent.futures.Future()
    if self._closed:
      future.set_exception(RuntimeError("the store is closed"))
    else:
      self._queue.put((operation, future, erase))
    return future

  def close(self) -> None:
    """Ends when all that was submitted is on the disk."""
    if self._closed:
      return
    self._closed = True
    self._queue.put(None)
    self._thread.join()
    os.close(self._lock)

  def _work(self) -> None:
    connection, ended = self._connection, False
    while not ended:
      batch = [self._queue.get()]
      while len(batch) < _AT_ONCE and not self._queue.empty():
        batch.append(self._queue.get())
      ended = None in batch
      self._transact([entry for entry in batch if entry is not None])
    while not self._queue.empty():
      if (entry := self._queue.get()) is not None:
        entry[1].set_exception(RuntimeError("the store is closed"))
    connection.close()

  def _transact(self, batch: list[Any]) -> None:
    # From here on a caller can't cancel.
    batch = [entry for entry in batch if entry[1].set_running_or_notify_cancel()]
    connection, done = self._connection, []
    try:
      connection.execute("BEGIN IMMEDIATE")
      for operation, future, _ in batch:
        connection.execute("SAVEPOINT one")
        try:
          done.append((future, operation(connection), None))
        except sqlite3.OperationalError:
          raise  # the disk, not the request
        except Exception as error:
          connection.execute("ROLLBACK TO one")
          done.append((future, None, error))
        connection.execute("RELEASE one")
      connection.execute("COMMIT")
    except Exception as error:  # a full disk, say: nothing of the batch is stored
      with contextlib.suppress(sqlite3.Error):
        connection.execute("ROLLBACK")
      for _, future, _ in batch:
        future.set_exception(error)
      return
    if any(erase for _, _, erase in batch):
      # Wait no longer for readers of the file: other callers wait meanwhile.
      connection.execute("PRAGMA busy_timeout=1000")
      with contextlib.suppress(
        sqlite3.Error
      ):  # then the log is truncated by the next one or at the end
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
      connection.execute("PRAGMA busy_timeout=30000")
    for future, result, error in done:
      if error is None:
        future.set_result(result)
      else:
        future.set_exception(error)


def _lock(path: pathlib.Path) -> int:
  """Locks a file until this process ends, however it ends."""
  handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
  try:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError:
    os.close(handle)
    raise ValueError(
      f"another server has {path.with_suffix('.sqlite')}; stop it, or ask with that one"
    ) from None
  return handle


def _open(path: pathlib.Path) -> sqlite3.Connection:
  # Made with these rights, and SQLite gives its -wal and -shm the same.
  os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
  connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
  try:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA secure_delete=ON")  # who withdraws is not left in free pages
    connection.executescript(_SCHEMA)
  except sqlite3.DatabaseError as error:
    connection.close()
    raise ValueError(
      f"{path} can't be used ({error}); it may be damaged: keep it, and move it away to begin anew"
    ) from error
  return connection


def _check_facts(
  connection: sqlite3.Connection, path: pathlib.Path, facts: Mapping[str, str]
) -> None:
  ours = {"format": str(FORMAT), **facts}
  theirs = dict(connection.execute("SELECT name, value FROM facts"))
  if connection.execute("SELECT count(*) FROM subjects").fetchone()[0] == 0:
    theirs = {}  # without participants they bind nobody
  differing = [
    f"{name} is {theirs[name]} there and {value} here"
    for name, value in ours.items()
    if theirs.get(name, value) != value
  ]
  if differing:
    connection.close()
    raise ValueError(
      f"{path} has answers of another study: {'; '.join(differing)}. Go on with those settings, or"
      " move it away to begin anew"
    )
  with connection:
    connection.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", list(ours.items()))


def hashed(token: str) -> str:
  """The hash that is stored in place of a secret."""
  return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


# --- operations: what is done in a transaction ----------------------------------------------------


class Newcomer(NamedTuple):
  """The plan of a new participant, fixed at consent."""

  slot: int
  cell: str
  places: list[Place]


def enrol(
  connection: sqlite3.Connection,
  *,
  visit: str,
  design: str,
  most: int,
  drop_out: float,
  tokens: Callable[[int], tuple[str, str]],
  plan: Callable[[int, int], Newcomer],
  now: float,
) -> tuple[int, str] | None:
  """A new participant in the lowest free slot, and a session; None where the study is full.

  Args:
    visit: token of the consent form; a form sent twice gives its participant another session.
    most: participants, active or finished.
    drop_out: seconds without a request after which a participant's slot is free again.
    tokens: subject -> secret of the personal link, completion code.
    plan: (slot, subject) -> the questions.
    now: seconds since 1970.
  """
  there = connection.execute("SELECT subject FROM subjects WHERE visit = ?", (hashed(visit),))
  if row := there.fetchone():
    return row[0], add_session(connection, row[0], now)
  held = {
    slot
    for (slot,) in connection.execute(
      "SELECT slot FROM subjects WHERE design = ? AND withdrawn_at IS NULL"
      " AND (finished_at IS NOT NULL OR seen_at > ?)",
      (design, now - drop_out),
    )
  }
  count = connection.execute(
    "SELECT count(*) FROM subjects WHERE withdrawn_at IS NULL"
    " AND (finished_at IS NOT NULL OR seen_at > ?)", (now - drop_out,),
  ).fetchone()[0]  # fmt: skip
  if count >= most:
    return None
  slot = next(number for number in range(len(held) + 1) if number not in held)
  subject = connection.execute("SELECT coalesce(max(subject), 0) + 1 FROM subjects").fetchone()[0]
  link, code = tokens(subject)
  newcomer = plan(slot, subject)
  connection.execute(
    "INSERT INTO subjects (subject, visit, resume, code, design, slot, cell, consented_at, seen_at)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    (subject, hashed(visit), hashed(link), code, design, slot, newcomer.cell, now, now),
  )
  connection.executemany(
    "INSERT INTO places (subject, place, kind, item, file) VALUES (?, ?, ?, ?, ?)",
    [(subject, *place) for place in newcomer.places],
  )
  return subject, add_session(connection, subject, now)


def add_session(connection: sqlite3.Connection, subject: int, now: float) -> str:
  """A new session; returns the secret of its cookie."""
  token = secrets.token_urlsafe(24)
  connection.execute("INSERT INTO sessions VALUES (?, ?, ?)", (hashed(token), subject, now))
  connection.execute(
    "DELETE FROM sessions WHERE subject = ? AND session NOT IN"
    " (SELECT session FROM sessions WHERE subject = ? ORDER BY begun_at DESC, rowid DESC LIMIT ?)",
    (subject, subject, _SESSIONS),
  )
  return token


def resume(connection: sqlite3.Connection, link: str, now: float) -> str | None:
  """A session for the owner of a personal link; None if the link is unknown."""
  row = connection.execute(
    "SELECT subject FROM subjects WHERE resume = ? AND withdrawn_at IS NULL", (hashed(link),)
  ).fetchone()
  return None if row is None else add_session(connection, row[0], now)


def end_session(connection: sqlite3.Connection, session: str) -> None:
  """Deletes a session; its cookie is invalid from now on."""
  connection.execute("DELETE FROM sessions WHERE session = ?", (hashed(session),))


def find(connection: sqlite3.Connection, session: str, now: float) -> State | None:
  """The participant and position of a session cookie, or None if unknown or expired."""
  row = connection.execute(
    "SELECT s.subject, s.design, s.finished_at, s.withdrawn_at, s.code FROM sessions AS e"
    " JOIN subjects AS s USING (subject) WHERE e.session = ? AND e.begun_at > ?",
    (hashed(session), now - SESSION_SECONDS),
  ).fetchone()
  if row is None:
    return None
  subject = row[0]
  total, practice, served = connection.execute(
    "SELECT count(*), sum(kind = 'practice'), sum(servings) FROM places WHERE subject = ?",
    (subject,),
  ).fetchone()
  answered = connection.execute(
    "SELECT count(*) FROM answers WHERE subject = ?", (subject,)
  ).fetchone()[0]
  return State(
    subject=subject, design=row[1], answered=answered, total=total, practice=practice or 0,
    next=find_place(connection, subject, answered + 1), started=bool(served),
    finished=row[2] is not None, withdrawn=row[3] is not None, code=row[4],
  )  # fmt: skip


def find_place(connection: sqlite3.Connection, subject: int, place: int) -> Place | None:
  """The question at a place of the participant's sequence."""
  row = connection.execute(
    "SELECT place, kind, item, file FROM places WHERE subject = ? AND place = ?", (subject, place)
  ).fetchone()
  return None if row is None else Place(*row)


def find_answer(connection: sqlite3.Connection, subject: int, place: int) -> str | None:
  """The participant's answer at a place, A or B; None without one."""
  row = connection.execute(
    "SELECT answer FROM answers WHERE subject = ? AND place = ?", (subject, place)
  ).fetchone()
  return None if row is None else row[0]


def serve(connection: sqlite3.Connection, session: str, now: float) -> State | None:
  """As `find`; also notes that the next question is sent now."""
  state = find(connection, session, now)
  if state is not None and state.next is not None and not state.withdrawn:
    connection.execute(
      "UPDATE places SET servings = servings + 1, served_at = ?,"
      " first_served_at = coalesce(first_served_at, ?) WHERE subject = ? AND place = ?",
      (now, now, state.subject, state.next.place),
    )
    connection.execute("UPDATE subjects SET seen_at = ? WHERE subject = ?", (now, state.subject))
  return state


def answer(
  connection: sqlite3.Connection, session: str, item: str, choice: str, client: float | None,
  now: float,
) -> tuple[State, Place] | None:  # fmt: skip
  """Stores an answer; sent again it changes nothing. None if the session is unknown or expired.

  Returns:
    The new position, and the place that was answered.

  Raises:
    Unlikely: there is another answer; the item is not the next one, or was never sent.
  """
  state = find(connection, session, now)
  if state is None:
    return None
  subject = state.subject
  if state.withdrawn:
    raise Unlikely("You have withdrawn from the study; nothing more is stored.")
  row = connection.execute(
    "SELECT p.place, p.kind, p.item, p.file, p.served_at, a.answer FROM places AS p"
    " LEFT JOIN answers AS a USING (subject, place) WHERE p.subject = ? AND p.item = ?",
    (subject, item),
  ).fetchone()
  if row is None:
    raise Unlikely("That question is not one of yours; nothing was stored.")
  place, served_at, given = Place(*row[:4]), row[4], row[5]
  if given == choice:
    return state, place
  if given is not None:
    raise Unlikely("You have answered that question already; the first answer counts.")
  if state.next != place or served_at is None:
    raise Unlikely("That question is not the one that comes next; nothing was stored.")
  server = min(max(now - served_at, 0.0), MOST_SECONDS)
  if client is not None and not 0 < client <= min(server + _SLACK, MOST_SECONDS):
    client = None
  connection.execute(
    "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    (subject, *place, choice, now, server if client is None else client, server, client),
  )
  connection.execute(
    "UPDATE subjects SET seen_at = ?, finished_at = iif(? >= ?, ?, NULL) WHERE subject = ?",
    (now, state.answered + 1, state.total, now, subject),
  )
  after = find(connection, session, now)
  assert after is not None
  return after, place


def comment(connection: sqlite3.Connection, subject: int, text: str) -> None:
  """Stores a participant's comment; the last one counts."""
  connection.execute(
    "UPDATE subjects SET comment = ? WHERE subject = ?", (text[:MOST_COMMENT], subject)
  )


def withdraw(connection: sqlite3.Connection, subject: int, now: float) -> None:
  """Deletes a participant's answers and comment, and frees the slot."""
  connection.execute("DELETE FROM answers WHERE subject = ?", (subject,))
  connection.execute(
    "UPDATE subjects SET withdrawn_at = coalesce(withdrawn_at, ?), finished_at = NULL, comment = ''"
    " WHERE subject = ?",
    (now, subject),
  )


def is_open(connection: sqlite3.Connection) -> bool:
  """Whether the operator lets people begin."""
  row = connection.execute("SELECT value FROM facts WHERE name = 'enrolment'").fetchone()
  return row is None or row[0] == "open"


def set_open(connection: sqlite3.Connection, opened: bool) -> None:
  connection.execute(
    "INSERT OR REPLACE INTO facts VALUES ('enrolment', ?)", ("open" if opened else "closed",)
  )


class Cell(NamedTuple):
  """Counts of the participants in a group or turn."""

  cell: str
  begun: int
  active: int  # seen within the drop-out time, not finished
  finished: int
  withdrawn: int


class Overview(NamedTuple):
  """What an operator sees; nothing about correctness."""

  cells: list[Cell]
  answers: int
  last_hour: int
  last_minute: int
  opened: bool
  comments: list[str]


def overview(connection: sqlite3.Connection, drop_out: float, now: float) -> Overview:
  cells = connection.execute(
    "SELECT cell, count(*), sum(finished_at IS NULL AND withdrawn_at IS NULL AND seen_at > ?),"
    " sum(finished_at IS NOT NULL), sum(withdrawn_at IS NOT NULL) FROM subjects"
    " GROUP BY cell ORDER BY cell", (now - drop_out,),
  ).fetchall()  # fmt: skip
  counts = connection.execute(
    "SELECT count(*), coalesce(sum(answered_at > ?), 0), coalesce(sum(answered_at > ?), 0)"
    " FROM answers", (now - 3600, now - 60),
  ).fetchone()  # fmt: skip
  comments = connection.execute(
    "SELECT comment FROM subjects WHERE comment != '' ORDER BY subject DESC LIMIT 50"
  )
  total, hour, minute = counts
  return Overview(
    [Cell(*cell) for cell in cells], total, hour, minute, is_open(connection),
    [text for (text,) in comments],
  )  # fmt: skip


# --- reading --------------------------------------------------------------------------------------


def read_study(path: pathlib.Path) -> tuple[list[SubjectRow], list[AnswerRow]]:
  """All participants and answers, whether or not a server runs; without those who withdrew.

  Raises:
    ValueError: there is no such file, or it is no study.
  """
  if files.is_remote(path):
    raise ValueError(f"{path}: copy it to a disk of this machine: SQLite reads from disks alone")
  if not path.exists():
    raise ValueError(f"{path} is missing; ask people first, with --config.job=study")
  with _reading(path) as connection:
    subjects = connection.execute(
      "SELECT subject, consented_at, finished_at, design FROM subjects"
      " WHERE withdrawn_at IS NULL ORDER BY subject"
    ).fetchall()
    answers = connection.execute(
      "SELECT subject, place, kind, item, file, '', answer, seconds FROM answers"
      " ORDER BY subject, place"
    ).fetchall()
  return [SubjectRow(*row) for row in subjects], [AnswerRow(*row) for row in answers]


def read_fact(path: pathlib.Path, name: str) -> str:
  """A setting that the server noted at its start, such as `fingerprint`; '' without it."""
  with _reading(path) as connection:
    row = connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
  return row[0] if row else ""


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[sqlite3.Connection]:
  """A snapshot of the file: changes made meanwhile are not seen."""
  connection = None
  try:
    connection = sqlite3.connect(path, isolation_level=None, timeout=30)
    connection.execute("PRAGMA query_only=ON")
    connection.execute("BEGIN")
    yield connection
  except sqlite3.Error as error:
    raise ValueError(f"{path} can't be read as a study's answers: {error}") from error
  finally:
    if connection is not None:
      connection.close()
