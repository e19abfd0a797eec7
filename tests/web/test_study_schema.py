"""Whatever the application's own OpenAPI allows is asked, and nothing goes wrong inside."""

import logging
import os
import re

import hypothesis
import pytest
import study_export
from fastapi.testclient import TestClient

from sane_jax.study.server import app as app_lib
from sane_jax.study.server import store as store_lib

schemathesis = pytest.importorskip("schemathesis")
EXAMPLES = int(os.environ.get("SANE_JAX_STUDY_EXAMPLES", "12"))  # an operation


def start(folder):
  app, store, _ = study_export.serve(folder / "study", study_export.export(folder / "export"))
  client = TestClient(app, base_url="http://127.0.0.1")
  page = client.get("/")
  token, visit = (
    re.search(rf'name="{n}" value="([^"]*)"', page.text)[1] for n in ("token", "visit")
  )
  client.post("/consent", data={"token": token, "visit": visit, "agree": "yes"})
  key = app_lib.operator_token((store.path.parent / "secret").read_bytes())
  client.get(f"/operator?key={key}")
  return app, store, client, token


@pytest.fixture(scope="module")
def running(tmp_path_factory):
  made = start(tmp_path_factory.mktemp("schema"))
  yield made
  made[1].close()


@pytest.fixture
def schema(running):
  return schemathesis.openapi.from_asgi("/api/openapi.json", running[0])


def test_no_request_breaks_it(schema, running, caplog):
  """As nobody, and as a subject and operator whose form tokens are right."""
  app, _, client, token = running
  codes = set()

  def ask(operation):
    @hypothesis.settings(
      max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
      suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(case=operation.as_strategy())
    def each(case):
      for known in (False, True):
        case.headers = {**dict(case.headers or {}), "host": "127.0.0.1"}
        case.cookies = dict(client.cookies) if known else {}
        if known and isinstance(case.body, dict) and "token" in case.body:
          case.body = {**case.body, "token": token}
        response = case.call(app=app)
        assert response.status_code < 500, response.text
        codes.add(response.status_code)

    each()

  with caplog.at_level(logging.ERROR, logger="sane_jax.web"):
    asked = [result.ok() for result in schema.get_all_operations()]
    for operation in asked:
      ask(operation)
  assert len(asked) >= 18
  assert {200, 401, 403, 404, 422} <= codes
  assert not [r for r in caplog.records if r.name.startswith("sane_jax")]


def test_all_pages_are_asked(schema):
  paths = set(schema.raw_schema["paths"])
  assert {"/", "/consent", "/answer", "/feedback", "/picture/{name}", "/api/answer"} <= paths
  assert len(paths) >= 16


def test_what_breaks_is_seen(running, monkeypatch):
  """The check can fail."""
  client = running[2]
  monkeypatch.setattr(store_lib, "find", lambda *_: 1 / 0)
  quiet = TestClient(
    client.app, base_url="http://127.0.0.1", raise_server_exceptions=False, cookies=client.cookies
  )
  assert quiet.get("/task").status_code == 500
