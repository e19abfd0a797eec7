"""Starts an application on an address of this machine, and reports its link."""

import contextlib
import errno
import ipaddress
import secrets
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from sane_jax.web.guard import LOOPBACK, App

LEAST_TOKEN = 16  # letters


class Address(NamedTuple):
  """Where a server listens, and who may ask.

  Attributes:
    host: address or name to listen on.
    port: 0 for a free one.
    token: that all must show; '' on loopback.
    hosts: by which names it may be called, None for any.
  """

  host: str
  port: int
  token: str
  hosts: tuple[str, ...] | None


def choose_address(host: str, port: int, token: str, setting: str) -> Address:
  """The address that is asked for; one that others can reach gets a token.

  Args:
    host: '' or a loopback address for this machine alone.
    port: 0 for a free one.
    token: made up where it is needed and not given.
    setting: what the settings are called, for messages: '--config.serve'.

  Raises:
    ValueError: a port or a token that can't be.
  """
  if not 0 <= port <= 65535:
    raise ValueError(f"{setting}.port is 0 (a free one) to 65535; given {port}")
  if token and (len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable()):
    raise ValueError(
      f"{setting}.token has {LEAST_TOKEN} letters, digits or signs, or more; leave it out and one"
      " is made"
    )
  host = host or LOOPBACK[0]
  if is_loopback(host):
    return Address(host, port, token, LOOPBACK)
  return Address(host, port, token or secrets.token_urlsafe(24), None)


def is_loopback(host: str) -> bool:
  """Whether only this machine can reach that address."""
  if host.lower() in LOOPBACK:
    return True
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return False


def bind(address: Address, setting: str) -> socket.socket:
  """A listening socket.

  Raises:
    OSError: the port is in use, or no such address; says what to do.
  """
  try:
    info = socket.getaddrinfo(
      address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(info[0], info[1])
  except OSError as error:
    raise OSError(f"{address.host} is no address of this machine ({error})") from error
  try:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(info[4])
    listener.listen(1024)
  except OSError as error:
    listener.close()
    if error.errno == errno.EADDRINUSE:
      raise OSError(
        f"port {address.port} of {address.host} is in use; stop what uses it, or give another with"
        f" {setting}.port=PORT (0 for any that is free)"
      ) from error
    if error.errno == errno.EACCES:
      raise OSError(
        f"port {address.port} needs rights that this user lacks; give one above 1023 with"
        f" {setting}.port=PORT"
      ) from error
    raise OSError(f"can't listen on {address.host}, port {address.port}: {error}") from error
  return listener


def link(address: Address, listener: socket.socket, scheme: str = "http") -> str:
  """What to open in a browser."""
  host, port = address.host, listener.getsockname()[1]
  if host in ("0.0.0.0", "::"):  # all addresses of this machine: its name is one that others know
    host = socket.gethostname()
  host = f"[{host}]" if ":" in host else host
  return f"{scheme}://{host}:{port}/" + (f"?token={address.token}" if address.token else "")


def run(
  app: App, address: Address, setting: str, *, certificate: str = "", certificate_key: str = "",
  on_ready: Callable[[str], None] = print, threads: int = 0,
) -> None:  # fmt: skip
  """Serves until SIGINT or SIGTERM, and returns; requests that have begun are answered first.

  Args:
    app: ASGI application, guarded.
    address: from `choose_address`.
    setting: as there.
    certificate, certificate_key: files for https; '' for http.
    on_ready: called with the link as soon as requests are answered.
    threads: for routes that are no coroutines; the library's default if 0.

  Raises:
    OSError: see `bind`.
    ValueError: the extra `web` is not installed.
  """
  with needing_libraries():
    import uvicorn
  listener = bind(address, setting)
  scheme = "https" if certificate else "http"

  class Server(uvicorn.Server):
    async def startup(self, sockets: Any = None) -> None:
      await super().startup(sockets)
      if threads:
        import anyio.to_thread

        anyio.to_thread.current_default_thread_limiter().total_tokens = threads
      if self.started:
        on_ready(link(address, listener, scheme))

    def handle_exit(self, sig: int, frame: Any) -> None:
      # A server that shuts down as asked was not interrupted: raise nothing afterwards.
      if self.should_exit and sig == signal.SIGINT:
        self.force_exit = True
      self.should_exit = True

  options: dict[str, Any] = {}
  if certificate:
    options = {"ssl_certfile": certificate, "ssl_keyfile": certificate_key or None}
  server = Server(
    uvicorn.Config(
      app, log_level="warning", access_log=False, server_header=False, proxy_headers=False,
      ws="none", lifespan="on", timeout_graceful_shutdown=10, timeout_keep_alive=30, **options,
    )
  )  # fmt: skip
  with contextlib.closing(listener):
    server.run(sockets=[listener])


@contextlib.contextmanager
def needing_libraries() -> Iterator[None]:
  """Imports of what stands on the extra `web`.

  Raises:
    ValueError: it is not installed; says how to.
  """
  try:
    yield
  except ImportError as error:
    raise ValueError(
      f"this job needs {error.name}: install the web libraries with"
      " python -m pip install 'sane_jax[web]'"
    ) from error
