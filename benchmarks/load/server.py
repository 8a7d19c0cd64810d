"""The server under test: `compress serve`'s own runner, in a process of its own."""

import logging
import multiprocessing
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from export.errors import SegpressError, UsageError, WorkFailedError
from serve.settings import ServeSettings

_POLL_SECONDS = 0.05
_START_SECONDS = 120.0

_NOT_MEASURED = {
    "port": "the bench takes a free one",
    "grace_seconds": "the bench stops its server without a grace period",
    "tls_cert": "the load is sent over HTTP",
    "tls_key": "the load is sent over HTTP",
    "api_keys": "the load is sent without a key",
}
"""Settings that would keep the load from the server, or that the bench overrides, and why."""


def settings_of(given: Sequence[str]) -> ServeSettings:
    """Settings of a server to be measured: the defaults, with each `NAME=VALUE` in place of its own.

    Raises UsageError with everything that is wrong, and for settings that a bench cannot use.
    """
    settings = ServeSettings().with_given(given)
    names = dict.fromkeys(setting.partition("=")[0] for setting in given)
    problems = [f"{name}: {_NOT_MEASURED[name]}" for name in names if name in _NOT_MEASURED]
    if ":" in settings.host:
        problems.append(
            f"host={settings.host}: the load is sent over IPv4; give a name or an address such as 127.0.0.1"
        )
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise UsageError(f"a bench of the server cannot use these settings; leave them out:{lines}")
    return settings


@dataclass(frozen=True)
class Server:
    """A server that is ready."""

    url: str
    pid: int


@contextmanager
def serving(bundle: Path, settings: ServeSettings) -> Iterator[Server]:
    """Serve `bundle` on a free port while the block lasts.

    Raises WorkFailedError, with the server's own message, if it does not start.
    """
    given = settings.model_copy(update={"port": free_port(settings.host), "grace_seconds": 0.0})
    context = multiprocessing.get_context("spawn")  # a fork would copy the runtime's locks without its threads
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, bundle, given), daemon=True)
    process.start()
    theirs.close()
    url = f"http://{given.host}:{given.port}"
    try:
        end = time.monotonic() + _START_SECONDS
        while not _is_ready(url):
            if not process.is_alive():
                raise WorkFailedError(f"the server did not start: {_last_words(ours, process.exitcode)}")
            if time.monotonic() > end:
                raise WorkFailedError(f"the server was not ready within {_START_SECONDS:g} s")
            time.sleep(_POLL_SECONDS)
        assert process.pid is not None
        yield Server(url, process.pid)
    finally:
        process.terminate()
        process.join(given.drain_seconds + 5)
        process.kill()
        process.join()
        ours.close()


def _last_words(server: Connection, status: int | None) -> str:
    with suppress(EOFError, OSError):  # poll is also true once its end of the pipe is closed
        if server.poll():
            return str(server.recv())
    if status is not None and status < 0:
        return f"it was ended by {signal.Signals(-status).name}, as the kernel does when memory runs out"
    return f"it ended with exit status {status}; its messages are above"


def _serve(parent: Connection, bundle: Path, settings: ServeSettings) -> None:
    from serve.runner import run

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        run([bundle], settings)
    except SegpressError as error:
        parent.send(str(error))
        raise SystemExit(error.exit_status) from error


def _is_ready(url: str) -> bool:
    with suppress(URLError, HTTPException, OSError), urlopen(f"{url}/v2/health/ready", timeout=5) as response:
        return bool(response.status == 200)
    return False


def free_port(host: str) -> int:
    """A port of `host` that was free a moment ago."""
    with socket.create_server((host, 0)) as listener:
        return int(listener.getsockname()[1])
