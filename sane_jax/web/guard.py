"""Access control for every application: hosts, tokens, request sizes and rates, response headers.

`Guard` is ASGI middleware. It admits a request that names an allowed host, has the token where one
is set, comes from our own pages where it changes something, is small enough and not too frequent.
Response headers let browsers run our scripts alone.
"""

import base64
import hashlib
import hmac
import http
import json
import logging
import math
import secrets
import time
import urllib.parse
import uuid
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, NamedTuple

import cachetools

LOOPBACK = ("127.0.0.1", "localhost", "::1")
POLICY = (
  "default-src 'none'; img-src 'self' data: blob:; style-src 'self'; script-src 'self';"
  " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
  "content-security-policy": POLICY,
  "x-content-type-options": "nosniff",
  "x-frame-options": "DENY",
  "referrer-policy": "same-origin",
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-resource-policy": "same-origin",
  "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
_SAFE = ("GET", "HEAD", "OPTIONS")
_ACCESS, _CSRF = "access", "csrf"  # cookies
_MOST_CLIENTS = 10_000  # remembered at a time
_MOST_QUERY = 8 << 10  # bytes of a query string
_LOG = logging.getLogger("sane_jax.web")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Limit(NamedTuple):
  """How often one client address may request paths that begin with `prefix`."""

  prefix: str
  per_second: float
  burst: int  # at once, after a pause
  methods: tuple[str, ...] = ()  # all by default


class Refusal(Exception):
  """A request that is answered with a status and a sentence, by `Guard` or by an application."""

  def __init__(self, status: int, message: str, headers: dict[str, str] | None = None):
    super().__init__(message)
    self.status, self.message, self.headers = status, message, headers or {}


class Guard:
  """ASGI middleware around an application.

  Args:
    app: what is guarded.
    token: whoever asks must have it: in the address once (?token=...), then in a cookie. '' for
      none.
    hosts: names by which the server may be called, without ports; None for any. On loopback they
      keep a foreign page from reaching it by a name that resolves to this machine.
    max_body: bytes of a request's body.
    limits: of these, the first whose prefix and method fit a request holds.
    secret: from which form tokens are made; random by default, and then forms that are open do not
      survive a restart of the server.
    render_refusal: makes a page of (status, title, message) for people; plain text by default.
  """

  def __init__(
    self,
    app: App,
    *,
    token: str = "",
    hosts: Sequence[str] | None = LOOPBACK,
    max_body: int = 64 << 10,
    limits: Sequence[Limit] = (Limit("/", 200, 400),),
    secret: bytes | None = None,
    render_refusal: Callable[[int, str, str], str] | None = None,
  ):
    self._app, self._token, self._max_body = app, token, max_body
    self._hosts = None if hosts is None else frozenset(name.lower() for name in hosts)
    self._secret = secret or secrets.token_bytes(32)
    self._buckets = [(limit, _Buckets(limit)) for limit in limits]
    self._render = render_refusal

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
      if scope["type"] == "lifespan":
        await self._app(scope, receive, send)
        return
      await send({"type": "websocket.close", "code": 1008})  # there are none
      return
    request = _Request(scope)
    fresh: list[str] = []  # cookies to set
    begun = ended = False

    async def guarded_send(message: MutableMapping[str, Any]) -> None:
      nonlocal begun, ended
      if request.refusal is not None and not begun:
        raise request.refusal  # whatever the application made of a body that was cut short
      ended = message["type"] == "http.response.body" and not message.get("more_body")
      if message["type"] == "http.response.start":
        begun = True
        there = {name.lower() for name, _ in message.get("headers", ())}
        headers = list(message.get("headers", ()))
        extra = dict(_HEADERS) | {"cache-control": "no-store"}
        headers += [(k.encode(), v.encode()) for k, v in extra.items() if k.encode() not in there]
        headers += [(b"set-cookie", cookie.encode()) for cookie in fresh]
        message = {**message, "headers": headers}
      await send(message)

    try:
      if self._admit(request, fresh):
        await _respond(guarded_send, 303, b"", {"location": request.without("token")})
        return
      await self._app(scope, _limited(receive, request, self._max_body), guarded_send)
    except Exception as error:
      if ended:  # it is answered, and logged by `add_handlers`
        return
      if begun:  # half of a response has gone: nothing true can follow it
        raise
      refusal = request.refusal or _find_refusal(error) or _log(request, error)
      request.refusal = None
      await self._refuse(guarded_send, request, refusal)

  def _admit(self, request: "_Request", fresh: list[str]) -> bool:
    """Raises Refusal, or says whether the token has just been shown and is to leave the address."""
    if self._hosts is not None and request.host not in self._hosts:
      raise Refusal(
        421, f"This server is called {' or '.join(sorted(self._hosts))}, not {request.host!r}."
      )
    for limit, buckets in self._buckets:
      if request.path.startswith(limit.prefix) and request.method in (
        limit.methods or (request.method,)
      ):
        wait = buckets.take(request.client)
        if wait > 0:
          raise Refusal(
            429, f"Too many requests; try again in {math.ceil(wait)} s.",
            {"retry-after": str(math.ceil(wait))},
          )  # fmt: skip
        break
    if len(request.query) > _MOST_QUERY:
      raise Refusal(414, f"The address has more than {_MOST_QUERY} bytes after its path.")
    secure = "; Secure" if request.scheme == "https" else ""
    shown = False
    if self._token:
      access = self._derive("access", self._token)
      given = request.parameter("token")
      shown = given is not None and _same(given, self._token)
      if not shown and not _same(request.cookies.get(_ACCESS, ""), access):
        raise Refusal(
          401, "This server needs its token: open the whole link that it printed or that you were"
          " sent, which ends in ?token=...",
        )  # fmt: skip
      if shown:
        fresh.append(f"{_ACCESS}={access}; Path=/; HttpOnly; SameSite=Lax; Max-Age=2592000{secure}")
    nonce = request.cookies.get(_CSRF, "")
    if not 16 <= len(nonce) <= 64:
      nonce = secrets.token_urlsafe(18)
      fresh.append(f"{_CSRF}={nonce}; Path=/; HttpOnly; SameSite=Lax{secure}")
    request.scope.setdefault("state", {})["csrf"] = self._derive("form", nonce)
    if request.method not in _SAFE:
      self._check_origin(request)
    return shown and request.method == "GET"

  def _check_origin(self, request: "_Request") -> None:
    """What changes something comes from a page of ours. Browsers say where from; forms are checked
    by their token as well, see `check_form`."""
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site not in (None, "same-origin") or (
      origin is not None and urllib.parse.urlsplit(origin).netloc.lower() != request.netloc
    ):
      raise Refusal(403, "This was sent from a page of another site; open ours and try again.")

  def _derive(self, purpose: str, text: str) -> str:
    digest = hmac.digest(self._secret, f"{purpose}:{text}".encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")

  async def _refuse(self, send: Send, request: "_Request", refusal: Refusal) -> None:
    kind, body = _words(refusal, request.headers.get("accept", ""), self._render)
    await _respond(send, refusal.status, body, {"content-type": kind, **refusal.headers})


def add_handlers(app: Any, render_refusal: Callable[[int, str, str], str] | None = None) -> None:
  """Makes a FastAPI application answer refusals, wrong requests and its own errors as `Guard` does.

  What a client sent is not sent back, and what went wrong inside is in the log alone.
  """
  from fastapi import Request, Response
  from fastapi.exceptions import RequestValidationError
  from starlette.exceptions import HTTPException

  async def handle(request: Request, error: Exception) -> Response:
    if isinstance(error, RequestValidationError):
      where = {".".join(str(part) for part in e["loc"][1:]): e["msg"] for e in error.errors()}
      text = "; ".join(f"{name}: {why}" if name else why for name, why in where.items())
      refusal = Refusal(422, f"The request can't be understood: {text}.")
    elif isinstance(error, HTTPException):
      refusal = Refusal(error.status_code, str(error.detail), dict(error.headers or {}))
      if error.status_code == 404 and error.detail == "Not Found":
        refusal.message = "There is no such page here."
    else:
      refusal = _find_refusal(error) or _log(_Request(request.scope), error)
    kind, body = _words(refusal, request.headers.get("accept", ""), render_refusal)
    return Response(body, refusal.status, headers=refusal.headers | {"content-type": kind})

  for kind in (Refusal, RequestValidationError, HTTPException, Exception):
    app.add_exception_handler(kind, handle)


def _log(request: "_Request", error: BaseException) -> Refusal:
  """Logs an error; the refusal names the number it is logged under."""
  number = uuid.uuid4().hex[:8]
  _LOG.error("error %s in %s %s", number, request.method, request.path, exc_info=error)
  return Refusal(500, f"Something went wrong here; it is in the log as {number}.")


def _words(
  refusal: Refusal, accept: str, render: Callable[[int, str, str], str] | None
) -> tuple[str, bytes]:
  """A refusal for people who look at a page, or for programs; its media type and text."""
  if "text/html" in accept and render is not None:
    title = http.HTTPStatus(refusal.status).phrase
    text = render(refusal.status, title, refusal.message)
    return "text/html; charset=utf-8", text.encode("utf-8", "replace")
  return "application/json", json.dumps({"detail": refusal.message}).encode()


def form_token(request: Any) -> str:
  """The token that our forms and scripts send with every change."""
  return request.state.csrf


def check_form(request: Any, token: str) -> None:
  """Raises Refusal unless the token is the one of this visitor's page."""
  if not _same(token, request.state.csrf):
    raise Refusal(
      403, "This page is older than the server, or cookies are off. Go back, reload it, and try"
      " again; nothing that was saved is lost.",
    )  # fmt: skip


def _find_refusal(error: BaseException) -> Refusal | None:
  """A refusal, wherever frameworks wrapped it."""
  if isinstance(error, Refusal):
    return error
  if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
    return _find_refusal(error.exceptions[0])
  return None


def _same(one: str, other: str) -> bool:
  return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode("utf-8", "replace"))


class _Request:
  """The request of an ASGI scope."""

  def __init__(self, scope: Scope):
    self.scope, self.method, self.path = scope, scope["method"], scope["path"]
    self.scheme, self.query = scope.get("scheme", "http"), scope.get("query_string", b"")
    self.headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
    self.client = (scope.get("client") or ("",))[0]
    self.netloc = self.headers.get("host", "").lower()
    try:
      self.host = urllib.parse.urlsplit(f"//{self.netloc}").hostname or ""
    except ValueError:
      self.host = ""
    self.refusal: Refusal | None = None  # of a body that was too large
    self.cookies: dict[str, str] = {}
    for part in self.headers.get("cookie", "")[:8192].split(";"):
      name, mark, value = part.strip().partition("=")
      if mark:
        self.cookies.setdefault(name, value)

  def _pairs(self) -> list[tuple[str, str]]:
    return urllib.parse.parse_qsl(self.query.decode("latin-1"), keep_blank_values=True)

  def parameter(self, name: str) -> str | None:
    return next((v for k, v in self._pairs() if k == name), None)

  def without(self, name: str) -> str:
    """The address less one parameter."""
    rest = urllib.parse.urlencode([(k, v) for k, v in self._pairs() if k != name])
    path = "/" + urllib.parse.quote(self.path.lstrip("/\\"))  # never //another.host
    return path + (f"?{rest}" if rest else "")


class _Buckets:
  """A token bucket for each client address; the least recently seen are forgotten."""

  def __init__(self, limit: Limit):
    self._limit = limit
    self._levels: cachetools.LRUCache[str, tuple[float, float]] = cachetools.LRUCache(_MOST_CLIENTS)

  def take(self, client: str) -> float:
    """0, or how many seconds to wait."""
    now = time.monotonic()
    level, then = self._levels.get(client, (float(self._limit.burst), now))
    level = min(self._limit.burst, level + (now - then) * self._limit.per_second)
    wait = 0.0 if level >= 1 else (1 - level) / self._limit.per_second
    self._levels[client] = (level - (wait == 0), now)
    return wait


def _limited(receive: Receive, request: _Request, most: int) -> Receive:
  """The body as it comes, until it is larger than allowed."""
  refusal = Refusal(413, f"At most {_size(most)} can be sent; this is more.")
  declared = request.headers.get("content-length", "0")
  if not declared.isdigit() or int(declared) > most:
    raise refusal if declared.isdigit() else Refusal(400, "Its Content-Length is no number.")
  seen = 0

  async def limited() -> MutableMapping[str, Any]:
    nonlocal seen
    message = await receive()
    seen += len(message.get("body", b""))
    if seen > most:
      request.refusal = refusal
      raise refusal
    return message

  return limited


def _size(count: int) -> str:
  return f"{count / (1 << 20):.3g} MB" if count >= 1 << 20 else f"{count / 1024:.3g} kB"


async def _respond(send: Send, status: int, body: bytes, headers: dict[str, str]) -> None:
  sent = {"content-length": str(len(body)), **headers}
  await send(
    {
      "type": "http.response.start",
      "status": status,
      "headers": [(k.encode(), v.encode("latin-1", "replace")) for k, v in sent.items()],
    }
  )
  await send({"type": "http.response.body", "body": body})
