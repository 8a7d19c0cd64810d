"""How each server is started, and what its requests look like."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO
from urllib.error import URLError
from urllib.request import urlopen

from benchmarks.load.client import Target
from benchmarks.load.server import free_port
from benchmarks.peers.apps.model import MODEL, PORT, WORKERS
from export.bundle import Bundle
from export.errors import UsageError, WorkFailedError

OURS = "segpress"
_APPS = Path(__file__).parent / "apps"
_START_SECONDS = 120.0
_STOP_SECONDS = 30.0


@dataclass(frozen=True)
class Job:
    """What a server is to do."""

    bundle: Bundle
    port: int
    workers: int
    folder: Path
    """For its settings while it runs."""


@dataclass(frozen=True)
class Kind:
    """One framework."""

    start: Callable[[str, Job], list[str]]
    """Takes the interpreter of its environment; returns a command line."""
    path: Callable[[Job], str]
    health: str
    request: Callable[[Target, bytes, str], bytes]
    """A whole request with a file of a media type."""


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    name: str
    target: Target
    health: str
    process: "subprocess.Popen[bytes]"
    request: Callable[[Target, bytes, str], bytes]

    def post(self, file: bytes, media_type: str) -> bytes:
        return self.request(self.target, file, media_type)

    def terminate(self) -> int | None:
        """Send SIGTERM; return the exit status, or None if it has to be killed."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            return None


def _raw(target: Target, file: bytes, media_type: str) -> bytes:
    return target.post(file, media_type)


def _form(target: Target, file: bytes, media_type: str) -> bytes:
    boundary = uuid.uuid5(uuid.NAMESPACE_URL, "segpress").hex
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="image"\r\n'
        f"Content-Type: {media_type}\r\n\r\n"
    )
    body = head.encode() + file + f"\r\n--{boundary}--\r\n".encode()
    return target.post(body, f"multipart/form-data; boundary={boundary}")


def _base64(target: Target, file: bytes, _: str) -> bytes:
    tensor = {
        "name": "image",
        "shape": [1, 1],
        "datatype": "BYTES",
        "parameters": {"content_type": "base64"},
        "data": [base64.b64encode(file).decode()],
    }
    return target.post(json.dumps({"inputs": [tensor]}).encode(), "application/json")


def _ours(python: str, job: Job) -> list[str]:
    command = "import sys; from compress.cli.main import main; sys.argv[0] = 'compress'; main()"
    given = ["--port", str(job.port), "--concurrency", str(job.workers), "--grace", "0"]
    return [python, "-c", command, "serve", str(job.bundle.path.resolve()), *given]


def _app(name: str) -> Callable[[str, Job], list[str]]:
    return lambda python, _: [python, str(_APPS / f"{name}.py")]


def _bentoml(python: str, job: Job) -> list[str]:
    serve = ["-m", "bentoml", "serve", "bentoml_app:Segment", "--working-dir", str(_APPS)]
    return [python, *serve, "--host", "127.0.0.1", "--port", str(job.port)]


def _mlserver(python: str, job: Job) -> list[str]:
    server = {
        "host": "127.0.0.1",
        "http_port": job.port,
        "grpc_port": free_port("127.0.0.1"),
        "metrics_port": free_port("127.0.0.1"),
        "parallel_workers": job.workers,
    }
    model = {"name": "tiny", "implementation": "mlserver_app.Segment"}
    (job.folder / "settings.json").write_text(json.dumps(server), encoding="utf-8")
    (job.folder / "model-settings.json").write_text(json.dumps(model), encoding="utf-8")
    return [python, "-m", "mlserver.cli.main", "start", str(job.folder)]


KINDS: Mapping[str, Kind] = {
    OURS: Kind(_ours, lambda job: f"/v1/models/{job.bundle.manifest.name}/segment", "/v2/health/ready", _raw),
    "litserve": Kind(_app("litserve_app"), lambda _: "/predict", "/health", _form),
    "mosec": Kind(_app("mosec_app"), lambda _: "/inference", "/", _raw),
    "bentoml": Kind(_bentoml, lambda _: "/segment", "/readyz", _form),
    "mlserver": Kind(_mlserver, lambda _: "/v2/models/tiny/infer", "/v2/health/ready", _base64),
}


def interpreters(given: Mapping[str, Path]) -> dict[str, str]:
    """Interpreters by name, ours first; each of `given` is an environment's folder, or its interpreter.

    Raises UsageError for an unknown name, and for an environment that does not exist.
    """
    found = {OURS: sys.executable}
    for name, place in given.items():
        if name not in KINDS or name == OURS:
            raise UsageError(f"there is no peer {name}; choose {', '.join(kind for kind in KINDS if kind != OURS)}")
        python = place / "bin" / "python" if place.is_dir() else place
        if not python.exists():
            raise UsageError(f"{name}: {place} is no environment; `make peers` makes them in build/peers")
        # Absolute, since it is started in another folder; not resolved, since a venv's interpreter is a link out of it.
        found[name] = str(python.absolute())
    return found


@contextmanager
def running(name: str, python: str, bundle: Bundle, workers: int) -> Iterator[Running]:
    """Serve `bundle`'s graph by one of KINDS while the block lasts, with its output hidden.

    Raises WorkFailedError, with the last line of that output, if it does not become ready.
    """
    kind = KINDS[name]
    with TemporaryDirectory() as folder, TemporaryFile() as log:
        job = Job(bundle, free_port("127.0.0.1"), workers, Path(folder))
        environment = os.environ | {
            MODEL: str(bundle.model_path.resolve()),
            WORKERS: str(workers),
            PORT: str(job.port),
            "PYTHONPATH": str(_APPS) if name != OURS else os.pathsep.join(sys.path),
        }
        process = subprocess.Popen(
            kind.start(python, job), env=environment, stdout=log, stderr=log, start_new_session=True, cwd=folder
        )
        try:
            target = Target.of(f"http://127.0.0.1:{job.port}{kind.path(job)}")
            _wait(name, process, f"http://127.0.0.1:{job.port}{kind.health}", log)
            yield Running(name, target, kind.health, process, kind.request)
        finally:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
            # Processes that it started may outlive it.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(name: str, process: "subprocess.Popen[bytes]", url: str, log: IO[bytes]) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        with suppress(URLError, HTTPException, OSError), urlopen(url, timeout=5) as response:
            if response.status == 200:
                return
        if process.poll() is not None:
            break
        time.sleep(0.2)
    log.seek(0)
    last = (log.read().decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
    raise WorkFailedError(f"{name} did not become ready: {last}")
