"""What is stored, in which order, and for whom; with and without a crash."""

import collections
import sqlite3
import stat
import threading

import pytest
import study_export

from sane_jax.study.server import app as app_lib
from sane_jax.study.server import questions as questions_lib
from sane_jax.study.server import store as store_lib
from sane_jax.study.server.store import Newcomer, Place, Store, Unlikely

DAY = 86400.0


@pytest.fixture
def store(tmp_path):
  made = Store(tmp_path / "answers.sqlite", {"fingerprint": "f"})
  yield made
  made.close()


def do(store, operation):
  return store.submit(operation).result(timeout=20)


def plan(slot, subject):
  places = [Place(n, "item", f"item {n}", f"file {n}") for n in (1, 2, 3)]
  return Newcomer(slot, f"cell {slot % 5}", places)


def enrol(store, visit, now=0.0, most=100, plan=plan, design="within"):
  return do(
    store,
    lambda db: store_lib.enrol(
      db, visit=visit, design=design, most=most, drop_out=DAY, plan=plan, now=now,
      tokens=lambda subject: (f"link {subject}", f"code {subject}"),
    ),
  )  # fmt: skip


def answer(store, session, item, choice, client=None, now=10.0):
  return do(store, lambda db: store_lib.answer(db, session, item, choice, client, now))


def serve(store, session, now=1.0):
  return do(store, lambda db: store_lib.serve(db, session, now))


def slots(store):
  return [s for (s,) in do(store, lambda db: db.execute("SELECT slot FROM subjects").fetchall())]


# --- answers --------------------------------------------------------------------------------------


def test_answers_are_read_as_they_were_given(store):
  _, session = enrol(store, "v", now=5.0)
  for n, choice in ((1, "A"), (2, "B")):
    serve(store, session, now=10.0 * n)
    answer(store, session, f"item {n}", choice, client=2.5, now=10.0 * n + 4)
  subjects, answers = store_lib.read_study(store.path)
  assert subjects == [(1, 5.0, None, "within")]
  assert answers == [
    (1, 1, "item", "item 1", "file 1", "", "A", 2.5),
    (1, 2, "item", "item 2", "file 2", "", "B", 2.5),
  ]
  serve(store, session, now=50.0)
  state, _ = answer(store, session, "item 3", "A", now=60.0)
  assert state.finished
  subjects, answers = store_lib.read_study(store.path)
  assert subjects[0].finished_at == 60.0
  assert answers[2].seconds == 10.0  # nothing was told: from serving to answering


def test_the_same_answer_twice_is_one(store):
  _, session = enrol(store, "v")
  serve(store, session)
  answer(store, session, "item 1", "A", now=2.0)
  again, place = answer(store, session, "item 1", "A", now=9.0)
  assert (again.answered, place.place) == (1, 1)
  assert len(store_lib.read_study(store.path)[1]) == 1


def test_the_first_answer_counts(store):
  _, session = enrol(store, "v")
  serve(store, session)
  answer(store, session, "item 1", "A")
  with pytest.raises(Unlikely, match="the first answer counts"):
    answer(store, session, "item 1", "B")
  assert [a.answer for a in store_lib.read_study(store.path)[1]] == ["A"]


@pytest.mark.parametrize(
  ("item", "served", "words"),
  [
    ("item 2", True, "not the one that comes next"),
    ("item 1", False, "not the one that comes next"),
    ("another", True, "not one of yours"),
  ],
)
def test_nobody_skips_ahead(store, item, served, words):
  _, session = enrol(store, "v")
  if served:
    serve(store, session)
  with pytest.raises(Unlikely, match=words):
    answer(store, session, item, "A")
  assert store_lib.read_study(store.path)[1] == []


def test_a_session_of_nobody_stores_nothing(store):
  _, session = enrol(store, "v")
  serve(store, session)
  assert answer(store, session + "x", "item 1", "A") is None
  late = store_lib.SESSION_SECONDS + 1
  assert answer(store, session, "item 1", "A", now=late) is None, "too old"
  assert do(store, lambda db: store_lib.find(db, "", 0.0)) is None


@pytest.mark.parametrize(
  ("client", "kept"),
  [(3.0, 3.0), (None, 8.0), (-1.0, 8.0), (0.0, 8.0), (1e9, 8.0), (float("inf"), 8.0), (11.0, 8.0)],
)
def test_times_that_can_not_be_are_ours(store, client, kept):
  _, session = enrol(store, "v")
  serve(store, session, now=2.0)
  answer(store, session, "item 1", "A", client=client, now=10.0)
  assert store_lib.read_study(store.path)[1][0].seconds == kept


def test_times_are_bounded(store):
  _, session = enrol(store, "v", now=1.0)
  serve(store, session, now=2.0)
  answer(store, session, "item 1", "A", now=1e6)
  assert store_lib.read_study(store.path)[1][0].seconds == store_lib.MOST_SECONDS
  serve(store, session, now=1e6)
  answer(store, session, "item 2", "A", now=1e6 - 50)  # somebody set the clock back
  assert store_lib.read_study(store.path)[1][1].seconds == 0.0


def test_the_database_itself_takes_no_second_answer(store):
  _, session = enrol(store, "v")
  serve(store, session)
  answer(store, session, "item 1", "A")
  row = "INSERT INTO answers VALUES (1, ?, 'item', ?, 'f', ?, 0, 1, 1, NULL)"
  for values in ((2, "item 1", "B"), (1, "item 2", "B"), (2, "item 2", "C"), (9, "item 9", "A")):
    with pytest.raises(sqlite3.IntegrityError):
      do(store, lambda db, values=values: db.execute(row, values))


def test_who_withdraws_is_forgotten(store):
  _, session = enrol(store, "v")
  serve(store, session)
  answer(store, session, "item 1", "A")
  do(store, lambda db: store_lib.comment(db, 1, "mine"))
  do(store, lambda db: store_lib.withdraw(db, 1, 20.0))
  assert store_lib.read_study(store.path) == ([], [])
  assert do(store, lambda db: store_lib.overview(db, DAY, 20.0)).comments == []
  assert do(store, lambda db: store_lib.resume(db, "link 1", 20.0)) is None
  with pytest.raises(Unlikely, match="withdrawn"):
    answer(store, session, "item 1", "A")
  enrol(store, "w", now=21.0)
  assert slots(store) == [0, 0]  # the place is given to another


def kept(store):
  """All that is on the disk, the log of changes too."""
  return b"".join(p.read_bytes() for p in store.path.parent.glob("answers.sqlite*"))


def test_nothing_of_who_withdrew_is_left_on_the_disk(store):
  """Neither in free pages nor in the log of changes, while the server goes on."""
  _, session = enrol(store, "v")
  serve(store, session)
  do(store, lambda db: store_lib.comment(db, 1, "a comment to be forgotten"))
  store.close()
  assert b"to be forgotten" in kept(store)
  again = Store(store.path, {"fingerprint": "f"})
  do(again, lambda db: store_lib.comment(db, 1, "another to be forgotten"))
  again.submit(lambda db: store_lib.withdraw(db, 1, 20.0), erase=True).result(timeout=20)
  left = kept(again)
  overwrites = do(again, lambda db: db.execute("PRAGMA secure_delete").fetchone())
  again.close()
  assert b"to be forgotten" not in left
  assert overwrites == (1,)  # whatever this machine's SQLite does by default
  assert left


def test_who_reads_the_file_holds_up_nobody_who_withdraws(store):
  enrol(store, "v")
  reader = sqlite3.connect(store.path, isolation_level=None)
  reader.execute("BEGIN")
  reader.execute("SELECT count(*) FROM subjects").fetchone()
  store.submit(lambda db: store_lib.withdraw(db, 1, 20.0), erase=True).result(timeout=10)
  reader.close()
  assert store_lib.read_study(store.path) == ([], [])


def test_a_personal_link_opens_a_session(store):
  _, session = enrol(store, "v")
  other = do(store, lambda db: store_lib.resume(db, "link 1", 1.0))
  assert other not in (None, session)
  for each in (session, other):
    assert do(store, lambda db, each=each: store_lib.find(db, each, 2.0)).subject == 1
  assert do(store, lambda db: store_lib.resume(db, "link 2", 1.0)) is None
  do(store, lambda db: store_lib.end_session(db, session))
  assert do(store, lambda db: store_lib.find(db, session, 2.0)) is None
  for _ in range(40):
    last = do(store, lambda db: store_lib.resume(db, "link 1", 3.0))
  assert do(store, lambda db: store_lib.find(db, last, 4.0)).subject == 1
  count = do(store, lambda db: db.execute("SELECT count(*) FROM sessions").fetchone()[0])
  assert count == 20


def test_no_secret_is_in_the_file(store):
  _, session = enrol(store, "a visit that is long")
  store.close()
  data = b"".join(path.read_bytes() for path in store.path.parent.iterdir())
  for secret in (session, "link 1", "a visit that is long"):
    assert secret.encode() not in data


# --- balance --------------------------------------------------------------------------------------


def test_a_form_of_consent_sent_twice_is_one_subject(store):
  one, two = enrol(store, "v"), enrol(store, "v")
  assert one[0] == two[0] == 1
  assert one[1] != two[1]
  assert slots(store) == [0]


def test_places_of_those_who_are_gone_are_given_anew(store):
  sessions = [enrol(store, f"v{n}", now=0.0)[1] for n in range(5)]
  serve(store, sessions[1], now=0.9 * DAY)
  for n in (1, 2, 3):  # the third finishes
    serve(store, sessions[2], now=n)
    answer(store, sessions[2], f"item {n}", "A", now=n + 0.5)
  for n in range(4):
    enrol(store, f"w{n}", now=1.5 * DAY)
  assert slots(store) == [0, 1, 2, 3, 4, 0, 3, 4, 5]


def test_the_study_is_full_of_those_who_are_there(store):
  assert all(enrol(store, f"v{n}", most=3) for n in range(3))
  assert enrol(store, "late", most=3) is None
  assert enrol(store, "later", most=3, now=2 * DAY)


def test_simultaneous_arrivals_are_balanced(store):
  """Forty threads at once: slots 0 to 39, each once."""
  start = threading.Barrier(40)

  def arrive(number):
    start.wait()
    enrol(store, f"v{number}")

  threads = [threading.Thread(target=arrive, args=(n,)) for n in range(40)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert sorted(slots(store)) == list(range(40))


# --- the writer -----------------------------------------------------------------------------------


def test_one_who_fails_does_not_harm_the_others(store):
  gate = threading.Event()
  waiting = store.submit(lambda db: gate.wait(20))  # the rest becomes one transaction

  def bad(db):
    db.execute("INSERT INTO facts VALUES ('bad', '1')")
    raise KeyError("no")

  futures = [
    store.submit(lambda db: db.execute("INSERT INTO facts VALUES ('one', '1')")), store.submit(bad),
    store.submit(lambda db: db.execute("INSERT INTO facts VALUES ('two', '2')")),
  ]  # fmt: skip
  gate.set()
  waiting.result(20)
  with pytest.raises(KeyError):
    futures[1].result(20)
  futures[2].result(20)
  names = {n for (n,) in do(store, lambda db: db.execute("SELECT name FROM facts").fetchall())}
  assert {"one", "two"} <= names
  assert "bad" not in names


def test_a_full_disk_is_told_to_all_who_wait(store):
  _, session = enrol(store, "v")
  serve(store, session)
  pages = do(store, lambda db: db.execute("PRAGMA page_count").fetchone()[0])
  do(store, lambda db: db.execute(f"PRAGMA max_page_count={pages}").fetchone())
  with pytest.raises(sqlite3.OperationalError, match="full"):
    do(store, lambda db: db.execute("INSERT INTO facts VALUES ('x', ?)", ("x" * 1_000_000,)))
  do(store, lambda db: db.execute("PRAGMA max_page_count=1000000").fetchone())
  answer(store, session, "item 1", "A")  # and it goes on
  assert len(store_lib.read_study(store.path)[1]) == 1


def test_who_stops_waiting_does_not_stop_the_writer(store):
  gate = threading.Event()
  store.submit(lambda db: gate.wait(20))
  given_up = store.submit(lambda db: 1)
  assert given_up.cancel()
  gate.set()
  assert do(store, lambda db: 2) == 2


def test_what_is_committed_is_flushed(store):
  assert do(store, lambda db: db.execute("PRAGMA journal_mode").fetchone()[0]) == "wal"
  assert do(store, lambda db: db.execute("PRAGMA synchronous").fetchone()[0]) == 2  # FULL


# --- files ----------------------------------------------------------------------------------------


def test_the_file_is_ours_alone(store):
  assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
  with pytest.raises(ValueError, match=r"another server has .*answers\.sqlite"):
    Store(store.path, {"fingerprint": "f"})


def test_another_study_is_refused(store):
  enrol(store, "v")
  store.close()
  with pytest.raises(ValueError, match=r"answers of another study: fingerprint is f there and g"):
    Store(store.path, {"fingerprint": "g"})
  again = Store(store.path, {"fingerprint": "f"})
  assert slots(again) == [0]
  again.close()


def test_nobody_is_bound_by_a_study_that_nobody_took(store):
  store.close()
  Store(store.path, {"fingerprint": "g"}).close()
  assert store_lib.read_fact(store.path, "fingerprint") == "g"


@pytest.mark.parametrize("place", ["gs://bucket/study", "s3://bucket/study"])
def test_a_bucket_is_no_disk(place):
  from sane_jax.runs import files

  with pytest.raises(ValueError, match=r"SQLite, which needs a disk\. Copy"):
    Store(files.at(place) / "answers.sqlite", {})
  with pytest.raises(ValueError, match="copy it to a disk"):
    store_lib.read_study(files.at(place) / "answers.sqlite")


def test_what_is_no_study_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"is missing; ask people first, with --config\.job=study"):
    store_lib.read_study(tmp_path / "answers.sqlite")
  (tmp_path / "answers.sqlite").write_bytes(b"no database at all, and more of that" * 40)
  with pytest.raises(ValueError, match="can't be read as a study's answers"):
    store_lib.read_study(tmp_path / "answers.sqlite")
  with pytest.raises(ValueError, match="may be damaged: keep it"):
    Store(tmp_path / "answers.sqlite", {})


def test_the_secret_is_kept_and_is_ours_alone(tmp_path):
  path = tmp_path / "secret"
  secret = app_lib.read_secret(path)
  assert len(secret) == 32
  assert app_lib.read_secret(path) == secret
  assert stat.S_IMODE(path.stat().st_mode) == 0o600
  path.write_bytes(b"cut")
  with pytest.raises(ValueError, match="has 3 bytes and not 32"):
    app_lib.read_secret(path)


# --- who is asked what ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
  folder = study_export.export(tmp_path_factory.mktemp("export"), items=12, practice=5, checks=3)
  return questions_lib.read_export(folder)


def conditions(questions):
  """file -> letter of its condition."""
  return {f: group for groups in questions.files.values() for group, f in groups.items()}


def of_kind(newcomer, kind):
  return [p for p in newcomer.places if p.kind == kind]


def test_over_five_subjects_each_item_is_shown_under_each_condition(questions):
  letters = conditions(questions)
  seen = collections.Counter()
  for slot in range(10):
    places = of_kind(questions_lib.make_plan(questions, "within", 12, slot, slot + 1), "item")
    assert len({p.item for p in places}) == 12
    mine = collections.Counter(letters[p.file] for p in places)
    assert set(mine.values()) == {2, 3}  # all five conditions, equally often
    seen.update((p.item, letters[p.file]) for p in places)
  assert len(seen) == 60
  assert set(seen.values()) == {2}


def test_between_each_subject_sees_one_condition(questions):
  letters, blocks = conditions(questions), []
  for block in range(6):
    groups = []
    for turn in range(5):
      made = questions_lib.make_plan(questions, "between", 12, 5 * block + turn, 1)
      mine = {letters[p.file] for p in made.places if p.kind != "check"}
      assert mine == {made.cell}
      groups.append(made.cell)
    assert sorted(groups) == list(questions.groups)
    blocks.append(tuple(groups))
  assert len(set(blocks)) > 1


@pytest.mark.parametrize("design", ["within", "between"])
def test_few_items_a_subject_use_all_items_equally(questions, design):
  seen = collections.Counter()
  for slot in range(15):  # three fives of four items are all twelve
    places = of_kind(questions_lib.make_plan(questions, design, 4, slot, slot), "item")
    assert len({p.item for p in places}) == 4
    seen.update((p.item, p.file) for p in places)
  assert len(seen) == 60
  assert set(seen.values()) == {1}


def test_practice_comes_first_and_checks_stand_apart(questions):
  letters = conditions(questions)
  where, orders = set(), set()
  for subject in range(20):
    made = questions_lib.make_plan(questions, "within", 12, subject, subject)
    assert [p.place for p in made.places] == list(range(1, 21))
    kinds = [p.kind for p in made.places]
    assert kinds[:5] == ["practice"] * 5
    assert sorted(letters[p.file] for p in made.places[:5]) == list(questions.groups)
    where.add(tuple(i - 5 for i, kind in enumerate(kinds) if kind == "check"))
    orders.add(tuple(p.item for p in made.places))
  assert len(where) == 1, "the same for all"
  (places,) = where
  assert [place // 5 for place in places] == [0, 1, 2], "one in each third of 15"
  assert len(orders) == 20


def test_the_same_seed_gives_the_same_plan(questions):
  one, two = (questions_lib.make_plan(questions, "within", 12, 3, 7) for _ in range(2))
  assert one == two


@pytest.mark.parametrize("count", [0, 13])
def test_as_many_items_as_there_are(questions, count):
  with pytest.raises(ValueError, match=rf"items_per_subject is 1 to 12.*given {count}"):
    questions_lib.count_items(questions, count)


def test_the_server_never_opens_the_key(tmp_path, monkeypatch):
  import pathlib

  folder = study_export.export(tmp_path / "export")
  opened, read = [], pathlib.Path.read_bytes
  monkeypatch.setattr(
    pathlib.Path, "read_bytes", lambda path: opened.append(path.relative_to(folder)) or read(path)
  )
  questions_lib.read_export(folder)
  assert {str(p) for p in opened if p.parts[0] == "key"} == {"key/fingerprint.json"}
  for path in (folder / "key").iterdir():
    path.unlink()
  (folder / "key").rmdir()
  questions_lib.read_export(folder)  # none is needed


def test_a_key_of_another_export_is_refused(tmp_path):
  folder = study_export.export(tmp_path / "export")
  other = study_export.export(tmp_path / "other", key=4)
  (folder / "key" / "fingerprint.json").write_bytes((other / "fingerprint.json").read_bytes())
  with pytest.raises(ValueError, match=r"key file mismatch: .*key/fingerprint\.json is not of the"):
    questions_lib.read_export(folder)


def test_what_was_changed_or_lost_is_named(tmp_path):
  def broken(name, change):
    folder = study_export.export(tmp_path / f"{name}{len(list(tmp_path.iterdir()))}", items=2)
    path = next(folder.glob(name))
    change(path)
    with pytest.raises(ValueError, match=r"run --config\.job=simulate_study again") as told:
      questions_lib.read_export(folder)
    return str(told.value)

  def add(path):
    path.write_bytes(path.read_bytes() + b"\n")

  assert "items.csv was changed" in broken("items.csv", add)
  assert "practice.csv was changed" in broken("practice.csv", add)
  assert "pictures of" in broken("items/*/*_a.png", add)
  assert "is missing" in broken("items/*/*_b.png", lambda path: path.unlink())
  assert "no picture" in broken("items/*/*_b.png", lambda path: path.write_bytes(b"no"))
  assert "is damaged" in broken("fingerprint.json", lambda path: path.write_text("[]"))
  assert "is missing" in broken("fingerprint.json", lambda path: path.unlink())


@pytest.mark.parametrize(
  ("text", "seconds"),
  [("", None), ("1970-01-01", 86400.0), ("1970-01-02T01:00", 90000.0),
   ("1970-01-01T01:00+01:00", 0.0)],
)  # fmt: skip
def test_dates(text, seconds):
  assert app_lib.read_date(text) == seconds


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"design": "both"}, "within or between; given 'both'"),
    ({"max_subjects": 0}, "max_subjects is 1 or more"),
    ({"drop_out": 1.0}, "drop_out_hours"),
    ({"drop_out": float("nan")}, "drop_out_hours"),
    ({"public_url": "study.example.org"}, "public_url begins with https"),
  ],
)
def test_settings_that_do_not_do_are_named(fields, words):
  with pytest.raises(ValueError, match=words):
    app_lib.check_settings(app_lib.Settings(**fields))
  with pytest.raises(ValueError, match=r"closes is a date"):
    app_lib.read_date("tomorrow")
