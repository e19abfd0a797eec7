"""The pages in their order, and what happens to whoever leaves it."""

import collections
import html
import json
import logging
import re

import pytest
import study_export
from fastapi.testclient import TestClient

from sane_jax.study.server import app as app_lib
from sane_jax.study.server import store as store_lib

BASE = "http://127.0.0.1"
HTML = {"accept": "text/html"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  return study_export.export(tmp_path_factory.mktemp("study") / "export")


@pytest.fixture
def make(exported, tmp_path):
  """Servers of one study folder, one after the other."""
  stores = []

  def one(**options):
    if stores:
      stores.pop().close()
    app, store, questions = study_export.serve(tmp_path / "study", exported, **options)
    stores.append(store)
    return app, store, questions

  yield one
  for store in stores:
    store.close()


def visitor(app, base_url=BASE, **options):
  return TestClient(app, base_url=base_url, headers=HTML, raise_server_exceptions=False, **options)


def field(page, name):
  return html.unescape(re.search(rf'name="{name}" value="([^"]*)"', page.text).group(1))


def link_of(page):
  return html.unescape(re.search(r'id="link" value="([^"]*)"', page.text).group(1))


def consent(client):
  page = client.get("/")
  sent = {"token": field(page, "token"), "visit": field(page, "visit"), "agree": "yes"}
  page = client.post("/consent", data=sent)
  assert page.url.path == "/instructions"
  return page


def answer(client, choice="A", page=None, **changes):
  page = page or client.get("/task")
  sent = {"token": field(page, "token"), "item": field(page, "item"), "answer": choice}
  return client.post("/answer", data={**sent, "seconds": "0.001", **changes})


def finish(client):
  for _ in range(100):
    page = client.get("/task")
    if page.url.path == "/finish":
      return page
    answer(client, page=page)
  raise AssertionError("it does not end")


# --- the way through ------------------------------------------------------------------------------


def test_from_consent_to_the_code(make):
  app, store, questions = make(contact="The team <team@example.org>")
  client = visitor(app)
  page = client.get("/")
  assert "Before you begin" in page.text
  assert "The team &lt;team@example.org&gt;" in page.text
  page = consent(client)
  assert "First come 5 questions for practice" in page.text
  assert "12 questions" in page.text
  said, places = [], []
  for _ in range(100):
    page = client.get("/task")
    if page.url.path == "/finish":
      break
    said.append(re.search(r"(Practice|Question) \d+ of \d+", page.text).group())
    choice = "AB"[len(said) % 2]
    item = field(page, "item")
    page = answer(client, choice, page)
    if item in questions.answers:
      right = questions.answers[item]
      assert ("Right." if right == choice else "Not this time.") in page.text
      assert f"The model scored pair {right} higher." in page.text
    else:
      assert page.url.path in ("/task", "/finish")
    places.append(choice)
  assert said == [f"Practice {n} of 5" for n in range(1, 6)] + [
    f"Question {n} of 12" for n in range(1, 13)
  ]
  page = client.post(
    "/finish", data={"token": field(page, "token"), "comment": " well <b>done</b>"}
  )
  code = re.search(r"[A-Z2-7]{5}-[A-Z2-7]{5}", page.text).group()
  subjects, answers = store_lib.read_study(store.path)
  assert subjects[0].finished_at
  assert [a.answer for a in answers] == places
  kinds = collections.Counter(a.kind for a in answers)
  assert kinds == {"practice": 5, "item": 10, "check": 2}
  assert client.get("/task").url.path == "/finish"
  assert code in client.get("/thanks").text


def test_no_page_says_what_is_right_before_it_is_answered(make, exported):
  """But for its own practice, once answered, a subject's pages are the same whatever is right."""
  app, _, questions = make()
  client = visitor(app)
  consent(client)
  key = set((exported / "key" / "conditions.csv").read_text().split())
  assert key
  for _ in range(17):
    page = client.get("/task")
    for word in ("scored higher</span>", "is-right", "Right.", "predicted", 'sane"', "condition"):
      assert word not in page.text
    # Feedback on what is not answered, or is no practice, is not given.
    place = client.get("/api/progress").json()["answered"] + 1
    assert client.get(f"/feedback?place={place}").url.path == "/task"
    answer(client, page=page)
    got = client.get(f"/feedback?place={place}").url.path
    assert got == ("/feedback" if place <= 5 else "/finish" if place == 17 else "/task")
  for shown in questions.shown:
    assert shown not in page.text  # names of files stay here


def test_all_that_a_subject_writes_is_text(make):
  app, store, _ = make()
  client = visitor(app)
  consent(client)
  page = finish(client)
  nasty = "<script>alert(1)</script>\x00\x1b[31m" + "x" * 3000
  client.post("/finish", data={"token": field(page, "token"), "comment": nasty})
  page = visitor(app).get(f"/operator?key={key_of(store)}")
  assert "&lt;script&gt;" in page.text
  assert "<script>alert" not in page.text
  assert page.text.count("x") < 2500


def test_names_of_attributes_are_text(make):
  app, _, _ = make()
  client = visitor(app)
  consent(client)
  texts = []
  for _ in range(17):
    page = client.get("/task")
    texts.append(page.text)
    answer(client, page=page)
  assert any("naïve &lt;b&gt;$x_1$&lt;/b&gt; 青" in text for text in texts)
  assert not any("<b>$x" in text for text in texts)
  alts = [html.unescape(alt) for text in texts for alt in re.findall(r'alt="([^"]*)"', text)]
  assert len(alts) == 34
  assert any("“striped”" in alt for alt in alts)
  assert {alt[:6] for alt in alts} == {"Pair A", "Pair B"}


def test_pictures_are_looked_up_by_names_that_nobody_guesses(make, exported):
  app, _, questions = make()
  client = visitor(app)
  consent(client)
  page = client.get("/task")
  addresses = re.findall(r'src="(/picture/[^"]*)"', page.text)
  got = client.get(addresses[0])
  assert got.headers["content-type"] == "image/png"
  assert "private" in got.headers["cache-control"]
  there = questions.shown[next(iter(questions.shown))]
  item = next(iter(questions.files))
  for name in (
    "%2e%2e", "..%2fitems.csv", "%2e%2e%2fkey%2fanswers.csv", "..%2f..%2fsecret", "key", item,
    next(iter(questions.shown)) + "_a.png", "x" * 5000,
  ):  # fmt: skip
    got = client.get(f"/picture/{name}")
    assert got.status_code in (404, 414), name
    assert there.pictures[0].data not in got.content


# --- who leaves the way ---------------------------------------------------------------------------


def test_a_form_that_is_sent_again_changes_nothing(make):
  app, store, _ = make()
  client = visitor(app)
  consent(client)
  page = client.get("/task")
  for _ in range(3):
    assert answer(client, "A", page).status_code == 200
  got = answer(client, "B", page)
  assert got.status_code == 409
  assert "the first answer counts" in got.text
  assert [a.answer for a in store_lib.read_study(store.path)[1]] == ["A"]


def test_forged_answers_are_refused_and_logged(make, caplog):
  app, store, questions = make()
  client = visitor(app)
  consent(client)
  page = client.get("/task")
  mine = field(page, "item")
  other = next(i for i in questions.items["item"] if i != mine)
  with caplog.at_level(logging.WARNING, logger="sane_jax.study.server"):
    assert answer(client, page=page, item=other).status_code == 409  # his, but later
    assert answer(client, page=page, item="of nobody").status_code == 409
  assert caplog.text.count("refused") == 2
  assert answer(client, "C", page).status_code == 422
  assert answer(client, "", page).status_code == 422
  assert answer(client, page=page, token="x").status_code == 403
  got = client.post("/answer", data={"item": mine, "answer": "A", "token": field(page, "token")},
                    headers={"origin": "http://evil.example"})  # fmt: skip
  assert got.status_code == 403
  assert store_lib.read_study(store.path)[1] == []


def test_sessions_of_others_are_refused(make, caplog):
  app, store, _ = make()
  one, other = visitor(app), visitor(app)
  consent(one)
  consent(other)
  page = one.get("/task")
  # The item of another, with the own session and token.
  theirs = other.get("/task")
  if field(page, "item") != field(theirs, "item"):
    got = answer(other, page=theirs, item=field(page, "item"))
    assert got.status_code == 409
  stranger = visitor(app)
  stranger.cookies.set(app_lib.SESSION, "x" * 32)
  with caplog.at_level(logging.WARNING, logger="sane_jax.study.server"):
    token = field(stranger.get("/"), "token")
    got = answer(stranger, page=page, token=token)
  assert got.status_code == 403
  assert "Open your personal link" in got.text
  assert "refused" in caplog.text
  for path in ("/task", "/instructions", "/pause", "/thanks", "/finish", "/feedback?place=1"):
    got = stranger.get(path)
    assert got.status_code == 403, path
    assert "personal link" in got.text
  assert "is not known any more" in stranger.get("/").text
  assert store_lib.read_study(store.path)[1] == []


def test_expired_sessions_say_so(make, monkeypatch):
  app, _, _ = make()
  client = visitor(app)
  consent(client)
  now = app_lib.time.time()
  monkeypatch.setattr(app_lib.time, "time", lambda: now + store_lib.SESSION_SECONDS + 60)
  got = client.get("/task")
  assert got.status_code == 403
  assert "away for too long" in got.text


def test_the_personal_link_works_elsewhere(make):
  app, store, _ = make()
  client = visitor(app)
  link = link_of(consent(client))
  for _ in range(3):
    answer(client)
  other = visitor(app)
  page = other.get(link)
  assert page.url.path == "/task"
  assert "Practice 4 of 5" in page.text
  answer(other, page=page)
  assert "Practice 5 of 5" in client.get("/task").text  # both go on
  assert len(store_lib.read_study(store.path)[0]) == 1
  assert link_of(other.get("/pause")) == link
  assert visitor(app).get("/resume?link=nobody").status_code == 404
  assert visitor(app).get("/resume").status_code == 404


def test_the_link_carries_the_invitation(make):
  app, _, _ = make(token="t" * 20, public_url="https://study.example.org")
  safe = BASE.replace("http:", "https:")  # cookies are sent there alone
  client = visitor(app, safe)
  assert client.get("/").status_code == 401
  page = client.get("/?token=" + "t" * 20)
  assert page.status_code == 200
  link = link_of(consent(client))
  assert link.startswith("https://study.example.org/resume?link=")
  page = visitor(app, safe).get(link.removeprefix("https://study.example.org"))
  assert page.url.path == "/instructions"
  assert "token" not in str(page.url)


def test_cookies_are_for_the_server_alone(make):
  app, _, _ = make(public_url="https://study.example.org")
  client = visitor(app)
  page = client.get("/")
  sent = {"token": field(page, "token"), "visit": field(page, "visit"), "agree": "yes"}
  got = client.post("/consent", data=sent, follow_redirects=False)
  cookie = next(c for c in got.headers.get_list("set-cookie") if c.startswith("study_session"))
  for part in ("HttpOnly", "SameSite=lax", "Secure", "Path=/", "Max-Age="):
    assert part in cookie


def test_consent_is_given(make):
  app, store, _ = make()
  client = visitor(app)
  page = client.get("/")
  sent = {"token": field(page, "token"), "visit": field(page, "visit")}
  assert client.post("/consent", data=sent).status_code == 422
  assert client.post("/consent", data={**sent, "agree": "yes", "visit": "x"}).status_code == 422
  assert client.post("/consent", data={**sent, "agree": "yes", "token": "x"}).status_code == 403
  for _ in range(2):
    assert client.post("/consent", data={**sent, "agree": "yes"}).url.path == "/instructions"
  assert len(store_lib.read_study(store.path)[0]) == 1


def test_own_words_of_consent_are_paragraphs_of_text(make):
  app, _, _ = make(consent="First {count} <b>.\n\nSecond.")
  page = visitor(app).get("/")
  assert "<p>First {count} &lt;b&gt;.</p>" in page.text
  assert "<p>Second.</p>" in page.text
  app, _, _ = make()
  assert "17 questions" in visitor(app).get("/").text


def test_the_study_closes(make, monkeypatch):
  app, store, _ = make(closes=app_lib.read_date("2100-01-01"), max_subjects=2)
  early = visitor(app)
  consent(early)
  consent(visitor(app))
  client = visitor(app)
  page = client.get("/")
  sent = {"token": field(page, "token"), "visit": field(page, "visit"), "agree": "yes"}
  got = client.post("/consent", data=sent)
  assert got.status_code == 403
  assert "Enough people take part" in got.text
  monkeypatch.setattr(app_lib.time, "time", lambda: app_lib.read_date("2100-01-01") + 5)
  assert "The study is over" in client.get("/").text
  assert client.post("/consent", data=sent).status_code == 403
  assert len(store_lib.read_study(store.path)[0]) == 2


def test_who_began_can_finish_after_the_end(make):
  app, _, _ = make(closes=app_lib.time.time() + 3600)
  client = visitor(app)
  consent(client)
  app, _, _ = make(closes=app_lib.time.time() - 1)
  again = visitor(app, cookies=client.cookies)
  assert answer(again).status_code == 200
  assert "The study is over" in visitor(app).get("/").text


def test_answers_are_deleted_on_demand(make):
  app, store, _ = make()
  client = visitor(app)
  link = link_of(consent(client))
  answer(client)
  store.submit(lambda db: store_lib.comment(db, 1, "my own words")).result(20)
  token = field(client.get("/pause"), "token")
  assert client.post("/withdraw", data={"token": token}).status_code == 422
  assert "are deleted" in client.post("/withdraw", data={"token": token, "sure": "yes"}).text
  assert store_lib.read_study(store.path) == ([], [])
  for path in store.path.parent.glob("answers.sqlite*"):  # the log of changes, too
    assert b"my own words" not in path.read_bytes()
  assert client.get("/task").status_code == 403
  assert visitor(app).get(link).status_code == 404


def test_a_device_is_left_to_another(make):
  app, store, _ = make()
  client = visitor(app)
  consent(client)
  client.post("/leave", data={"token": field(client.get("/pause"), "token")})
  assert "Before you begin" in client.get("/").text
  consent(client)
  assert len(store_lib.read_study(store.path)[0]) == 2


def test_a_restart_is_not_noticed(make):
  app, _, _ = make()
  client = visitor(app)
  link = link_of(consent(client))
  page = client.get("/task")
  app, _, _ = make()
  again = visitor(app, cookies=client.cookies)
  got = answer(again, page=page)  # a form that was open all the time
  assert got.url.path == "/feedback"
  assert visitor(app).get(link).url.path == "/task"
  pictures = re.findall(r'src="(/picture/[^"]*)"', page.text)
  assert again.get(pictures[0]).status_code == 200


# --- the operator ---------------------------------------------------------------------------------


def key_of(store):
  return app_lib.operator_token((store.path.parent / "secret").read_bytes())


def test_the_operator_sees_numbers_and_no_answers(make):
  app, store, questions = make(design="between")
  for n in range(3):
    client = visitor(app)
    consent(client)
    if n == 0:
      finish(client)
  operator = visitor(app)
  assert operator.get("/operator").status_code == 401
  assert operator.get("/operator?key=wrong").status_code == 401
  assert operator.get("/api/operator").status_code == 401
  page = operator.get(f"/operator?key={key_of(store)}")
  assert page.url.query == b""
  got = operator.get("/api/operator").json()
  assert (got["open"], got["answers"], got["answers_last_minute"]) == (True, 17, 17)
  assert sorted(cell["begun"] for cell in got["cells"]) == [1, 1, 1]
  assert sum(cell["finished"] for cell in got["cells"]) == 1
  assert {cell["cell"] for cell in got["cells"]} <= set(questions.groups)
  assert got["free_bytes"] > 0
  token = field(page, "token")
  operator.post("/operator/enrolment", data={"token": token, "opened": "no"})
  assert "Nobody can begin at the moment" in visitor(app).get("/").text
  assert "Enrolment is closed" in operator.get("/operator").text
  app, store, _ = make(design="between")  # and so it stays
  assert "Nobody can begin at the moment" in visitor(app).get("/").text
  operator = visitor(app, cookies=operator.cookies)
  operator.post("/operator/enrolment", data={"token": token, "opened": "yes"})
  assert "Before you begin" in visitor(app).get("/").text


def test_subjects_are_no_operators(make):
  app, _, _ = make()
  client = visitor(app)
  consent(client)
  token = field(client.get("/pause"), "token")
  assert client.get("/operator").status_code == 401
  got = client.post("/operator/enrolment", data={"token": token, "opened": "no"})
  assert got.status_code == 401
  assert "Before you begin" in visitor(app).get("/").text


# --- programs, headers, logs ----------------------------------------------------------------------


def test_programs_answer_as_pages_do(make):
  app, store, questions = make()
  client = visitor(app)
  consent(client)
  token = field(client.get("/task"), "token")
  for n in range(17):
    client.get("/task")
    there = client.get("/api/progress").json()
    assert (there["answered"], there["total"]) == (n, 17)
    sent = {"item": there["next_item"], "answer": "B", "token": token, "seconds": 0.001}
    got = client.post("/api/answer", json=sent)
    assert got.status_code == 200
    if there["next_kind"] == "practice":
      assert got.json()["right"] == (questions.answers[there["next_item"]] == "B")
    else:
      assert got.json()["right"] is None
  assert got.json()["finished"]
  assert len(store_lib.read_study(store.path)[1]) == 17
  assert client.post("/api/answer", json={**sent, "token": "x"}).status_code == 403
  assert client.post("/api/answer", json={**sent, "answer": "C"}).status_code == 422


def test_there_are_no_documentation_pages(make):
  app, _, _ = make()
  client = visitor(app)
  for path in ("/docs", "/redoc", "/openapi.json"):
    assert client.get(path).status_code == 404
  schema = client.get("/api/openapi.json").json()
  assert {"/api/progress", "/api/answer", "/api/operator"} <= set(schema["paths"])


def test_pages_hold_no_scripts_or_styles_of_their_own(make):
  app, store, _ = make()
  client = visitor(app)
  texts = [client.get("/").text, consent(client).text, client.get("/task").text]
  texts += [client.get("/pause").text, answer(client).text, finish(client).text]
  texts.append(visitor(app).get(f"/operator?key={key_of(store)}").text)
  for text in texts:
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son[a-z]+=|javascript:", text)
    assert '<html lang="en">' in text


def test_nothing_of_a_visitor_is_stored_but_answers(make):
  app, store, _ = make()
  client = visitor(app)
  client.headers["user-agent"] = "AgentOfSmith/9.9"
  client.headers["x-forwarded-for"] = "203.0.113.77"
  consent(client)
  answer(client)
  store.close()
  data = b"".join(path.read_bytes() for path in store.path.parent.iterdir() if path.is_file())
  for trace in (b"AgentOfSmith", b"203.0.113", b"testclient"):
    assert trace not in data


def test_logs_hold_no_secrets(make, caplog):
  with caplog.at_level(logging.DEBUG):
    app, store, _ = make(token="t" * 20)
    client = visitor(app)
    client.get("/?token=" + "t" * 20)
    link = link_of(consent(client))
    answer(client)
    answer(client, item="forged")
    visitor(app).get(link)
    client.get("/resume?link=wrongwrongwrong")
    client.get(f"/operator?key={key_of(store)}")
  ours = [r.getMessage() for r in caplog.records if r.name.startswith(("sane_jax", "uvicorn"))]
  text = json.dumps(ours)
  assert "refused" in text
  for secret in ("t" * 20, link.partition("link=")[2], key_of(store), "wrongwrong",
                 client.cookies[app_lib.SESSION]):  # fmt: skip
    assert secret not in text


def test_what_can_not_be_stored_is_not_thanked_for(make, monkeypatch):
  import sqlite3

  app, store, _ = make()
  client = visitor(app)
  consent(client)
  page = client.get("/task")

  def full(*_, **__):
    raise sqlite3.OperationalError("database or disk is full")

  with monkeypatch.context() as patched:
    patched.setattr(store_lib, "answer", full)
    got = answer(client, page=page)
  assert got.status_code == 503
  assert "could not be stored" in got.text
  assert got.headers["retry-after"]
  assert answer(client, page=page).status_code == 200
  assert len(store_lib.read_study(store.path)[1]) == 1


def test_too_many_requests_wait(make):
  app, _, _ = make(limits=app_lib.LIMITS)
  client = visitor(app)
  codes = [client.get("/resume?link=guess").status_code for _ in range(70)]
  assert codes.count(404) in range(60, 64)
  assert codes[-1] == 429
  assert client.get("/").status_code == 200
