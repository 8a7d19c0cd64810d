"""The programs that the peers run, without their frameworks: they must use the model as our server does."""

import asyncio
import importlib.util
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest
from support.bundles import tiny_bundle

import benchmarks.peers.apps.model as shared

APPS = Path(shared.__file__).parent
OPTIONS = (
    "intra_op_num_threads",
    "inter_op_num_threads",
    "execution_mode",
    "graph_optimization_level",
    "enable_cpu_mem_arena",
    "enable_mem_pattern",
    "use_deterministic_compute",
)


class Busy:
    """A model that counts how many of its runs are under way at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = 0
        self.most = 0

    def segment(self, file: bytes) -> bytes:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(0.02)
        with self._lock:
            self._now -= 1
        return file


def module(name: str, **contents: object) -> ModuleType:
    found = ModuleType(name)
    vars(found).update(contents)
    return found


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """Imports one of the apps with stand-ins for the modules that it imports."""

    def load(name: str, **modules: ModuleType) -> ModuleType:
        for module_name, contents in modules.items():
            monkeypatch.setitem(sys.modules, module_name.replace("__", "."), contents)
        spec = importlib.util.spec_from_file_location(name, APPS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        found = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
        return found

    return load


def test_a_worker_of_mlserver_runs_one_image_at_a_time(app: Callable[..., ModuleType]) -> None:
    """MLServer gets one worker per run, and so has as many runs at once as our server."""

    class Codec:
        decode_input = staticmethod(lambda tensor: [tensor])
        encode_output = staticmethod(lambda _, masks: masks)

    loaded: Any = app(
        "mlserver_app",
        mlserver=module("mlserver", MLModel=type("MLModel", (), {"name": "tiny"})),
        mlserver__codecs=module("mlserver.codecs", Base64Codec=Codec),
        mlserver__types=module("mlserver.types", InferenceRequest=object, InferenceResponse=SimpleNamespace),
        model=module("model", Model=Busy),
    )

    async def crowd() -> tuple[int, list[Any]]:
        segment = loaded.Segment()
        await segment.load()
        answers = await asyncio.gather(*(segment.predict(SimpleNamespace(inputs=[b"%d" % i])) for i in range(8)))
        return segment.model.most, answers

    most, answers = asyncio.run(crowd())
    assert most == 1
    assert [answer.outputs for answer in answers] == [[[b"%d" % i]] for i in range(8)]


def test_the_session_of_the_peers_has_the_options_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The options decide which weights are integers, and how threads wait."""
    made: list[Any] = []

    class Recorded(ort.SessionOptions):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.entries: dict[str, str] = {}
            made.append(self)

        def add_session_config_entry(self, key: str, value: str) -> None:
            self.entries[key] = value
            super().add_session_config_entry(key, value)

    bundle = tiny_bundle(tmp_path / "tiny")
    monkeypatch.setenv(shared.MODEL, str(bundle.model_path))
    monkeypatch.setattr(ort, "SessionOptions", Recorded)
    bundle.model(threads=1)
    shared.Model()
    ours, theirs = (
        options.entries | {name: getattr(options, name) for name in OPTIONS} for options in (made[0], made[-1])
    )
    assert made[0] is not made[-1]
    assert theirs == ours
