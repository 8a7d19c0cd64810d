"""One small trained checkpoint and what is made from it, shared by all tests of this folder."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from support.datasets import write_dataset
from support.networks import export_once
from support.recipes import TINY_RECIPE

from compress.checkpoint import Checkpoint
from compress.export_fp32 import export
from compress.prune import prune
from compress.quantize import quantize
from compress.train import train
from export.bundle import Bundle


@pytest.fixture(scope="session", autouse=True)
def _each_network_is_exported_once() -> Iterator[None]:
    """An export takes seconds; the same network gives the same graph."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("compress.export_fp32", "compress.prune.step", "compress.quantize.quantize"):
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
