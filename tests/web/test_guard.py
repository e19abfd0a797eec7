"""Who may ask, how much and how often; and that what goes wrong inside stays inside."""

import logging
import re
from typing import Annotated

import pytest
from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.responses import HTMLResponse
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from sane_jax.web import guard, pages

HTML = {"accept": "text/html"}


def make(**options):
  """What is guarded, and what it was asked for."""
  app, seen = FastAPI(), []
  looks = pages.Pages(["sane_jax.report", "sane_jax.web"])
  guard.add_handlers(app, looks.refusal)
  looks.add_static(app)

  @app.get("/")
  def home(request: Request):
    return HTMLResponse(guard.form_token(request))

  @app.post("/change")
  def change(request: Request, token: Annotated[str, Form()] = ""):
    guard.check_form(request, token)
    seen.append("changed")
    return {"done": True}

  @app.post("/upload")
  def upload(file: Annotated[UploadFile, File()]):
    seen.append(file.file.read())
    return {"bytes": len(seen[-1])}

  @app.get("/breaks")
  def breaks():
    raise RuntimeError("secret <b>inside</b>")

  @app.get("/refuses")
  def refuses():
    raise guard.Refusal(409, "Not <twice>.")

  options = {"render_refusal": looks.refusal, "limits": ()} | options
  return guard.Guard(app, **options), seen


def client(app, base_url="http://127.0.0.1:8000", **options):
  return TestClient(app, base_url=base_url, raise_server_exceptions=False, **options)


def test_pages_run_our_scripts_alone():
  app, _ = make()
  got = client(app).get("/")
  policy = got.headers["content-security-policy"]
  assert "default-src 'none'" in policy
  assert "unsafe" not in policy
  assert got.headers["x-content-type-options"] == "nosniff"
  assert got.headers["cache-control"] == "no-store"
  assert "HttpOnly" in got.headers["set-cookie"]
  for path in ("/none", "/breaks"):
    assert client(app).get(path).headers["content-security-policy"] == policy


def test_a_foreign_name_for_this_machine_is_refused():
  app, _ = make()
  for name in ("evil.example", "127.0.0.1.evil.example", "", "[::1", "localhost@evil.example"):
    got = client(app).get("/", headers={"host": name})
    assert got.status_code in (400, 421), name
  for name in ("localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST"):
    assert client(app).get("/", headers={"host": name}).status_code == 200, name
  assert client(make(hosts=None)[0]).get("/", headers={"host": "any"}).status_code == 200


def test_what_changes_something_comes_from_our_pages():
  app, seen = make()
  visitor = client(app)
  token = visitor.get("/").text
  assert visitor.post("/change", data={"token": token}).status_code == 200
  own = {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"}
  assert visitor.post("/change", data={"token": token}, headers=own).status_code == 200
  for foreign in (
    {"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"},
    {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-site"},
    {"origin": "http://127.0.0.1:9000"},
  ):  # fmt: skip
    assert visitor.post("/change", data={"token": token}, headers=foreign).status_code == 403
  assert visitor.post("/change", data={"token": "x"}).status_code == 403
  assert visitor.post("/change").status_code == 403
  other = client(app)
  other.get("/")
  assert other.post("/change", data={"token": token}).status_code == 403, "another's token"
  assert len(seen) == 2


def test_the_token_is_asked_for_and_leaves_the_address():
  app, _ = make(token="a" * 24, hosts=None)
  visitor = client(app)
  assert visitor.get("/").status_code == 401
  assert visitor.get("/?token=aaaa").status_code == 401
  assert visitor.post("/change", data={"token": "a" * 24}).status_code == 401
  got = visitor.get("/?token=" + "a" * 24 + "&view=%2F3", follow_redirects=False)
  assert got.status_code == 303
  assert got.headers["location"] == "/?view=%2F3"
  assert "a" * 24 not in got.headers["set-cookie"]
  assert visitor.get("/").status_code == 200
  assert client(app).get("/").status_code == 401, "another visitor"
  got = client(app).get("//evil.example/?token=" + "a" * 24, follow_redirects=False)
  assert not got.headers.get("location", "/").startswith("//")


def test_bodies_are_bounded_declared_or_not():
  app, seen = make(max_body=10_000)
  visitor = client(app)
  assert visitor.post("/upload", files={"file": b"x" * 9_000}).status_code == 200
  got = visitor.post("/upload", files={"file": b"x" * 20_000})
  assert got.status_code == 413
  assert "9.77 kB" in got.json()["detail"]

  def chunks():
    yield b'--b\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n\r\n'
    for _ in range(100):
      yield b"x" * 1000
    yield b"\r\n--b--\r\n"

  kind = {"content-type": "multipart/form-data; boundary=b"}
  assert visitor.post("/upload", content=chunks(), headers=kind).status_code == 413
  assert [len(data) for data in seen] == [9_000]


def test_requests_that_are_too_frequent_wait(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(guard.time, "monotonic", lambda: now[0])
  app, _ = make(limits=(guard.Limit("/up", 1, 2, ("POST",)), guard.Limit("/", 10, 5)))
  visitor = client(app)
  codes = [visitor.get("/").status_code for _ in range(7)]
  assert codes == [200] * 5 + [429] * 2
  assert visitor.get("/").headers["retry-after"] == "1"
  codes = [visitor.post("/upload", files={"file": b"x"}).status_code for _ in range(3)]
  assert codes == [200, 200, 429]
  now[0] = 0.1
  assert [visitor.get("/").status_code for _ in range(2)] == [200, 429]


def test_clients_that_are_remembered_are_bounded():
  buckets = guard._Buckets(guard.Limit("/", 1, 1))
  for number in range(guard._MOST_CLIENTS + 50):
    buckets.take(str(number))
  assert len(buckets._levels) == guard._MOST_CLIENTS


def test_what_goes_wrong_inside_is_in_the_log_alone(caplog):
  app, _ = make()
  with caplog.at_level(logging.ERROR, logger="sane_jax.web"):
    got = client(app).get("/breaks", headers=HTML)
  assert got.status_code == 500
  assert "secret" not in got.text
  number = re.search(r"log as (\w{8})", got.text).group(1)
  assert number in caplog.text
  assert "secret <b>inside</b>" in caplog.text


def test_refusals_are_pages_for_people_and_json_for_programs():
  app, _ = make()
  got = client(app).get("/refuses")
  assert (got.status_code, got.json()) == (409, {"detail": "Not <twice>."})
  got = client(app).get("/refuses", headers=HTML)
  assert "Not &lt;twice&gt;." in got.text
  assert "<h1>Conflict</h1>" in got.text
  got = client(app).get("/<script>", headers=HTML)
  assert got.status_code == 404
  assert "<script" not in got.text
  got = client(app).post("/upload")
  assert got.status_code == 422
  assert "file" in got.json()["detail"]


@pytest.mark.parametrize(
  "name", ["../guard.py", "guard.py", "%2e%2e/guard.py", "..%2fguard.py", ""]
)
def test_static_files_are_a_list_and_no_folder(name):
  app, _ = make()
  assert client(app).get(f"/static/{name}").status_code in (404, 307)


def test_static_files_are_kept_by_browsers_until_they_change():
  app, _ = make()
  got = client(app).get("/static/page.css")
  assert got.headers["content-type"].startswith("text/css")
  assert "immutable" in got.headers["cache-control"]
  again = client(app).get("/static/page.css", headers={"if-none-match": got.headers["etag"]})
  assert again.status_code == 304


def test_there_are_no_websockets():
  app, _ = make()
  with (
    pytest.raises(WebSocketDisconnect) as closed,
    client(app).websocket_connect("ws://127.0.0.1:8000/"),
  ):
    pass
  assert closed.value.code == 1008
