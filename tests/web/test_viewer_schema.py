"""Whatever the application's own OpenAPI allows is answered, or refused with a reason."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from web import viewer_tools as tools

from sane_jax.web import guard

schemathesis = pytest.importorskip("schemathesis")


@pytest.fixture(scope="module")
def viewer(tmp_path_factory):
  folder = tmp_path_factory.mktemp("viewer")
  (folder / "photos").mkdir()
  paths = tools.draw_photos(folder / "photos", np.random.default_rng(0))
  return tools.Viewer([tools.build(folder / "index", paths)], max_upload=1 << 16)


OPERATIONS = [
  "GET /api/status", "GET /api/images", "GET /api/images/random", "GET /api/images/{key}/picture",
  "GET /api/nearest", "GET /api/pair", "GET /api/contrast", "GET /api/attributes",
  "POST /api/uploads", "POST /api/measurements", "GET /api/tasks/{task}",
  "DELETE /api/tasks/{task}",
]  # fmt: skip


def test_no_question_breaks_the_server(viewer):
  guarded = guard.Guard(viewer.app, hosts=None, limits=(), max_body=1 << 16)
  client = viewer.client()
  client._transport.app = guarded  # whose form tokens these are
  token = tools.token_of(client)
  cookies = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
  schema = schemathesis.openapi.from_asgi("/api/openapi.json", guarded)
  operations = {op.ok().label: op.ok() for op in schema.get_all_operations()}
  assert sorted(operations) == sorted(OPERATIONS)
  answered = set()
  for label, operation in operations.items():

    @hypothesis.settings(
      max_examples=60, deadline=None, database=None, derandomize=True,
      suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(case=operation.as_strategy(), row=strategies.integers(0, 11))
    def ask(case, row):
      label = case.operation.label
      parameters = dict(case.query or {})
      for name in ("query", "reference", "a", "b", "image"):
        if name in parameters and row % 2:  # or nothing would get behind the look-up
          parameters[name] = viewer.key(row - len(name) % 3)
          parameters.pop("view", None)
      case.query = parameters
      case.headers = dict(case.headers or {}) | {"x-form-token": token, "cookie": cookies}
      got = case.call()
      assert got.status_code < 500, (label, parameters, got.text)
      if got.status_code < 300:
        answered.add(label)
      elif got.status_code >= 400 and got.content:
        assert "detail" in got.json()

    ask()
  # Random bytes are no photo, no key and no task.
  assert answered >= {*OPERATIONS[:3], *OPERATIONS[4:7]}
