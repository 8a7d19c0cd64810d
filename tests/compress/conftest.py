"""One small trained checkpoint and what is made from it, shared by all tests of this folder."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from support.datasets import write_dataset
from support.networks import export_once
from support.recipes import TINY_RECIPE

from compress.checkpoint import Checkpoint
from compress.export_fp32 import export
from compress.prune import prune
from compress.prune.probe import Measured
from compress.quantize import quantize
from compress.train import train
from export.bundle import Bundle


@pytest.fixture(scope="session", autouse=True)
def _each_network_is_exported_once() -> Iterator[None]:
    """An export takes seconds; the same network gives the same graph."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("compress.export_fp32", "compress.prune.step", "compress.quantize.source"):
            patch.setattr(import_module(name), "export_onnx", export_once)
        yield


@pytest.fixture(scope="session")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12, 5 and 6 grey images of 48x64 with two classes."""
    path = tmp_path_factory.mktemp("data") / "discs"
    return write_dataset(path, counts={"train": 12, "val": 5, "test": 6}, size=(48, 64))


@pytest.fixture(scope="session")
def trained(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """UNet-16 of depth 2, trained for some seconds."""
    return train(discs, tmp_path_factory.mktemp("runs") / "dense", TINY_RECIPE)


@pytest.fixture(scope="session")
def float_bundle(trained: Checkpoint, discs: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(trained.path, tmp_path_factory.mktemp("runs") / "dense-fp32", TINY_RECIPE, data=discs)


@pytest.fixture(scope="session")
def int8_bundle(trained: Checkpoint, discs: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return quantize(trained.path, discs, tmp_path_factory.mktemp("runs") / "dense-int8", TINY_RECIPE)


@pytest.fixture(scope="session")
def pruned(trained: Checkpoint, discs: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Half the channels of `trained` are gone."""
    return prune(trained.path, discs, tmp_path_factory.mktemp("runs") / "pruned", TINY_RECIPE)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runtime's clock, replaced: time goes with the square root of the weights. Graphs are bags of weights then."""
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
        return Measured(speedup, 12.0 / speedup)

    def weights_of(graph: Any) -> int:
        return sum(int(torch.tensor(list(t.dims)).prod()) for t in graph.graph.initializer if len(t.dims) == 4)

    def export(network: torch.nn.Module, path: Path, **_: Any) -> onnx.ModelProto:
        path.touch()
        tensors = [numpy_helper.from_array(p.detach().numpy()) for p in network.parameters()]
        return helper.make_model(helper.make_graph([], "weights", [], [], tensors))

    monkeypatch.setattr("compress.prune.step.LatencyProbe", Probe)
    monkeypatch.setattr("compress.prune.step.export_onnx", export)
    return asked
