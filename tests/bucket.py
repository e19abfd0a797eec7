"""An S3 bucket on this machine, as real to its clients as a server on a port can be."""

import contextlib
import logging
import os

import fsspec

NAME = "sane-jax-test"


@contextlib.contextmanager
def served(cache):
  """Serves an empty bucket, to which the environment leads; gives fsspec's file system of it.

  Args:
    cache: folder for local copies, in place of the user's.
  """
  from moto.server import ThreadedMotoServer

  logging.getLogger("werkzeug").setLevel(logging.ERROR)
  server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
  server.start()
  host, port = server.get_host_and_port()
  settings = {
    "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "somebody",
    "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true", "XDG_CACHE_HOME": str(cache),
  }  # fmt: skip
  before = {name: os.environ.get(name) for name in settings}
  os.environ.update(settings)
  forget_clients()
  try:
    store = fsspec.filesystem("s3", use_listings_cache=False)
    store.mkdir(NAME)
    yield store
  finally:
    for name, value in before.items():
      if value is None:
        del os.environ[name]
      else:
        os.environ[name] = value
    forget_clients()
    server.stop()


def forget_clients():
  """Clients keep the address and the credentials that they found first."""
  from etils.epath import backend

  fsspec.get_filesystem_class("s3").clear_instance_cache()
  type(backend.fsspec_backend)._get_filesystem.cache_clear()
