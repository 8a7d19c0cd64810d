"""Servers for tests: one in a thread of this process around any predictor, one in a process of its own."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import uvicorn
from fastapi import FastAPI

from export.bundle import Bundle
from export.images import U8
from export.manifest import Manifest
from export.refine import Figures
from serve.app import create_app
from serve.predictor import Predictor
from serve.runner import server_config
from serve.settings import ServeSettings
from serve.tls import tls_context

_ROOT = Path(__file__).resolve().parents[2]


class GatedPredictor:
    """Answers as a bundle does, but waits while `gate` is closed (cleared). Remembers its inputs."""

    def __init__(self, bundle: Bundle) -> None:
        self.manifest: Manifest = bundle.manifest
        self.gate = threading.Event()
        self.gate.set()
        self.seen: list[U8] = []
        self._model = bundle.model(threads=1)

    def predict(self, images_NHWC: U8) -> U8:
        self._pass(images_NHWC)
        return self._model.masks(images_NHWC)

    def logits(self, images_NHWC: U8) -> Figures:
        self._pass(images_NHWC)
        return self._model.logits(images_NHWC)

    def _pass(self, images_NHWC: U8) -> None:
        self.seen.append(images_NHWC.copy())
        assert self.gate.wait(300), "a test left the gate closed"

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Hold every prediction back until the block is left."""
        self.gate.clear()
        try:
            yield
        finally:
            self.gate.set()


@contextlib.contextmanager
def serving(
    models: Sequence[Path] | Sequence[Predictor] | FastAPI,
    settings: ServeSettings | None = None,
    *,
    kernel_holds: int | None = None,
) -> Iterator[str]:
    """Serve models, or an application that was made of them, over a real socket from a thread; gives the base URL.

    `kernel_holds` is about how many bytes the kernel buffers for a client that does not read; by default, megabytes.
    """
    settings = settings or ServeSettings()
    app = models if isinstance(models, FastAPI) else create_app(models, settings)
    # asyncio turns Nagle's algorithm off only on sockets that name their protocol; with it, answers take 40 ms more.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    if kernel_holds is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, kernel_holds)
    listener.bind(("127.0.0.1", 0))
    config = server_config(app, app.state.service, tls_context(settings))
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        assert server.started, "the server did not start"
        yield f"{'https' if config.is_ssl else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()
        assert not thread.is_alive(), f"the server did not stop: {_unfinished(server, thread)}"


def _unfinished(server: uvicorn.Server, thread: threading.Thread) -> str:
    """What a server still waits for: the newest request of each open connection, its tasks, and where its thread is."""
    left, open_for = server.server_state, []
    for connection in left.connections:
        cycle = getattr(connection, "cycle", None)
        how = "" if cycle is None else f" {cycle.scope['path']}{' (answered)' if cycle.response_complete else ''}"
        open_for.append(f"{getattr(connection, 'client', None)}{how}")
    frame = sys._current_frames().get(thread.ident or 0)
    stack = "".join(traceback.format_stack(frame)) if frame else ""
    return f"open are {open_for}, running are {left.tasks}\n{stack}"


def until(condition: Callable[[], bool], *, seconds: float = 60.0) -> None:
    """Wait for `condition`; fails the test when it does not come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def metric(base_url: str, sample: str) -> float:
    """The value of one sample of /metrics, given as it is written there, labels included."""
    samples = metric_lines(base_url)
    assert sample in samples, f"/metrics shows no {sample}"
    return samples[sample]


def metric_lines(base_url: str, headers: dict[str, str] | None = None) -> dict[str, float]:
    """Every sample of /metrics, by its name and labels as written there."""
    text = httpx.get(f"{base_url}/metrics", headers=headers, timeout=60).raise_for_status().text
    split = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in split}


class ServerProcess:
    """`serve.runner.run` in a process of its own, with the exit status that the command line would give it."""

    _SCRIPT = """
import logging, sys
from pathlib import Path
from export.errors import SegpressError
from serve.runner import run
from serve.settings import ServeSettings
logging.basicConfig(level=logging.INFO, format="%(message)s")
try:
    run([Path(argument) for argument in sys.argv[2:]], ServeSettings.model_validate_json(sys.argv[1]))
except SegpressError as error:
    sys.exit(print(error, file=sys.stderr) or error.exit_status)
"""

    def __init__(self, bundles: Sequence[Path], settings: ServeSettings) -> None:
        self.log = ""
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", self._SCRIPT, settings.model_dump_json(), *map(str, bundles)],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(_ROOT)},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stderr is not None
        self._process.stderr.close()

    @property
    def base_url(self) -> str:
        """Where it listens, once it is ready."""
        until(lambda: "ready on" in self.log or self._process.poll() is not None, seconds=60)
        found = re.search(r"ready on (\S+)", self.log)
        assert found, f"the server did not start:\n{self.log}"
        return found[1]

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self, *, seconds: float = 30.0) -> int:
        """The exit status; negative for a signal."""
        status = self._process.wait(seconds)
        self._reader.join()
        return status

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.log += line


def process_log(words: Sequence[str], *, until: str | None = None, status: int = 0) -> str:
    """What `compress` with these words writes to standard error; SIGTERM ends it at a line with `until`, if given."""
    with subprocess.Popen(
        [sys.executable, "-m", "compress.cli.main", *words],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
    ) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if until is not None and until in line:
                process.send_signal(signal.SIGTERM)
    assert process.returncode == status, "".join(lines)
    return "".join(lines)
