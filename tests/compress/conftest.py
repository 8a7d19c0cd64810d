"""One small trained checkpoint and the artefacts made from it, shared by all tests and processes of this folder."""

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from support.datasets import write_dataset
from support.networks import export_once
from support.quantizing import patch
from support.recipes import TINY_RECIPE
from support.shared import shared

from compress import checkpoint
from compress.checkpoint import Checkpoint
from compress.export_fp32 import export
from compress.prune import prune
from compress.prune.probe import Measured
from compress.quantize import quantize
from compress.train import train
from export.bundle import Bundle
from export.timing import Samples


@pytest.fixture(scope="session", autouse=True)
def _each_network_is_exported_once() -> Iterator[None]:
    """Reuse exports: each takes seconds, and the same network gives the same graph."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("compress.export_fp32", "compress.prune.step", "compress.quantize.source"):
            patch.setattr(import_module(name), "export_onnx", export_once)
        yield


@pytest.fixture(scope="session")
def discs() -> Path:
    """12, 5 and 6 grey images of 48x64 with two classes."""
    with shared("discs") as path:
        if not path.exists():
            write_dataset(path, counts={"train": 12, "val": 5, "test": 6}, size=(48, 64))
        return path


# Each of these steps reuses what another process has already made.


@pytest.fixture(scope="session")
def trained(discs: Path) -> Checkpoint:
    """UNet-16 of depth 2, trained for some seconds."""
    with shared("dense") as out:
        return train(discs, out, TINY_RECIPE)


@pytest.fixture(scope="session")
def float_bundle(trained: Checkpoint, discs: Path) -> Bundle:
    with shared("dense-fp32") as out:
        return export(trained.path, out, TINY_RECIPE, data=discs)


@pytest.fixture(scope="session")
def int8_bundle(trained: Checkpoint, discs: Path) -> Bundle:
    with shared("dense-int8") as out:
        return quantize(trained.path, discs, out, TINY_RECIPE)


@pytest.fixture(scope="session")
def pruned(trained: Checkpoint, discs: Path) -> Checkpoint:
    """`trained` with half of its channels removed."""
    with shared("pruned") as out:
        return prune(trained.path, discs, out, TINY_RECIPE)


@pytest.fixture(scope="session")
def spoilt(trained: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """A checkpoint that INT8 breaks, and the names of the two layers to blame, as an analysis lists them.

    One channel is a thousand times too large, and the layer that reads it compensates. The answers are the same, but
    8 bits over that range lose all the other channels.
    """
    network = trained.network()
    layers = list(network.get_submodule("up.1.block"))  # type: ignore[call-overload]
    norm, reader = layers[1], layers[3]
    with torch.no_grad():
        norm.weight[0] *= 1000
        norm.bias[0] *= 1000
        reader.weight[:, 0] /= 1000
    folder = tmp_path_factory.mktemp("spoilt")
    checkpoint.save(folder, network, trained.card)
    return folder, {"up.1.block.0", "up.1.block.3"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    """Let a test choose the milliseconds of the float parent and the INT8 child."""

    def wind(parent: float, child: float) -> None:
        def fake(models: dict[str, Any], *, rounds: int) -> dict[str, Samples]:
            for run in models.values():
                run()
            return {"parent": Samples((parent,) * rounds), "child": Samples((child,) * rounds)}

        patch(monkeypatch, "interleaved", fake, "compress.quantize.judge")

    return wind


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the runtime's clock: time goes as the square root of the number of weights. Graphs hold only weights."""
    asked: list[str] = []

    class Probe:
        def __init__(self, parent: Any, *, size: tuple[int, int], **_: Any) -> None:
            self.size = size
            self._parent = weights_of(parent)

        def parent_milliseconds(self) -> float:
            return 12.0

        def speedup(self, network: torch.nn.Module) -> float:
            asked.append("probe")
            return float((self._parent / sum(p.numel() for p in network.parameters() if p.ndim == 4)) ** 0.5)

        def measure(self, graph: Any) -> Measured:
            asked.append("exported")
            return measured(0.97 * float((self._parent / weights_of(graph)) ** 0.5))

    def measured(speedup: float) -> Measured:
        return Measured(speedup, 12.0 / speedup, disturbed=0.02)

    def weights_of(graph: Any) -> int:
        return sum(int(torch.tensor(list(t.dims)).prod()) for t in graph.graph.initializer if len(t.dims) == 4)

    def export(network: torch.nn.Module, path: Path, **_: Any) -> onnx.ModelProto:
        path.touch()
        tensors = [numpy_helper.from_array(p.detach().numpy()) for p in network.parameters()]
        return helper.make_model(helper.make_graph([], "weights", [], [], tensors))

    monkeypatch.setattr("compress.prune.step.LatencyProbe", Probe)
    monkeypatch.setattr("compress.prune.step.export_onnx", export)
    return asked
