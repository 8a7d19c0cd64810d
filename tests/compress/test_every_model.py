"""One suite for every network: it can be saved, pruned, exported and quantized, and keeps its answers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
import torch
from support.checkpoints import write_checkpoint
from support.datasets import write_dataset
from support.networks import exported, random_network
from support.pruning import logits, masked
from torch import Tensor, nn

from compress.checkpoint import normalised
from compress.data.folder import open_dataset
from compress.data.loader import TrainingImages
from compress.models import FACTORIES, all_logits, size_multiple
from compress.prune.evidence import Evidence
from compress.prune.importance import scores_of
from compress.quantize.ptq import Quantizer, with_quantized_logits
from compress.settings.fit import FitSettings
from compress.settings.prune import Criterion, PruneSettings
from export.images import U8
from export.parity import batches, float_parity, int8_parity
from export.runtime import OnnxModel
from export.to_onnx import with_outputs

OWN = f"{Path(__file__).resolve().parents[2] / 'examples' / 'own_model.py'}:LinkNet"
CHANNELS, CLASSES = 2, 3


@dataclass(frozen=True)
class Kind:
    """A factory and the arguments it is called with."""

    factory: str
    arguments: Mapping[str, Any]


SHAPE = {"channels": CHANNELS, "classes": CLASSES}
SMALL = {**SHAPE, "base": 8, "depth": 2}
ATTENDS = {"bottleneck_attention": True}
KINDS = {
    "unet": Kind("unet", SMALL),
    "unet, residual": Kind("unet", {**SMALL, "block": "residual", "dropout": 0.2}),
    "unet, squeeze-excite": Kind("unet", {**SMALL, "squeeze_excite": True}),
    "unet, bilinear": Kind("unet", {**SMALL, "upsampling": "bilinear"}),
    "unet, transposed": Kind("unet", {**SMALL, "upsampling": "transposed"}),
    "unet, added skips": Kind("unet", {**SMALL, "skip": "add"}),
    "unet, attention": Kind("unet", {**SMALL, "block": "residual", "stochastic_depth": 0.2, **ATTENDS}),
    "unetpp": Kind("unetpp", SMALL),
    "unetpp, one head": Kind("unetpp", {**SMALL, "deep_supervision": False}),
    "resnet18": Kind("encoder-unet", {**SHAPE, "encoder": "resnet18", "pretrained": False, "base": 8}),
    "efficientnet-lite0": Kind(
        "encoder-unet", {**SHAPE, "encoder": "efficientnet-lite0", "pretrained": False, "base": 8}
    ),
    "resnet18, attention": Kind(
        "encoder-unet", {**SHAPE, "encoder": "resnet18", "pretrained": False, "base": 8, **ATTENDS}
    ),
    "own": Kind(OWN, {**SHAPE, "width": 8, "depth": 2}),
}
EVERY = pytest.mark.parametrize("name", KINDS)
# A ResNet is slow to export, and its attention is exported like that of a UNet.
EVERY_EXPORT = pytest.mark.parametrize("name", [name for name in KINDS if name != "resnet18, attention"])


@cache
def made(name: str) -> nn.Module:
    return random_network(KINDS[name].factory, **KINDS[name].arguments)


@cache
def halved(name: str) -> nn.Module:
    network = scores_of(made(name), channels=CHANNELS).plan(0.5, 2).apply(made(name), channels=CHANNELS)
    return settled(network)


def settled(network: nn.Module) -> nn.Module:
    """With BatchNorm statistics of `pictures`: otherwise activations grow with depth, and rounding decides all."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the plain average
    with torch.no_grad():
        network.train()(normalised(torch.from_numpy(np.stack(list(pictures(4)))).permute(0, 3, 1, 2)))
    return network.eval()


@cache
def graph_of_halved(name: str) -> onnx.ModelProto:
    """Exports take seconds, so only the pruned network is exported: it is the harder case."""
    return exported(halved(name), channels=CHANNELS)


def noise(name: str, count: int, *multiples: int) -> Tensor:
    multiple = size_multiple(made(name))
    generator = torch.Generator().manual_seed(1)
    return torch.rand((count, CHANNELS, *(multiple * by for by in multiples)), generator=generator) * 2 - 1


def pictures(count: int) -> Iterator[U8]:
    """Blocks of 16x16 equal pixels, so that neighbours agree as they do in photographs."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        coarse = rng.integers(0, 256, (6, 8, CHANNELS), dtype=np.uint8)
        yield np.kron(coarse, np.ones((16, 16, 1), np.uint8))


def sizes(multiple: int) -> tuple[tuple[int, int], ...]:
    """Odd multiples, none of which the exporter traced."""
    return (multiple * (48 // multiple | 1), multiple * (80 // multiple | 1)), (multiple, 3 * multiple)


def test_no_factory_is_left_out() -> None:
    assert {kind.factory for kind in KINDS.values()} == {*FACTORIES, OWN}


@EVERY
def test_logits_have_the_size_of_the_image(name: str) -> None:
    network = made(name)
    with torch.inference_mode():
        for multiples in ((1, 1), (3, 2)):
            images = noise(name, 2, *multiples)
            heads = all_logits(network, images)
            assert {tuple(each.shape) for each in heads} == {(2, CLASSES, *images.shape[2:])}
            assert torch.equal(heads[-1], network(images))


@EVERY
def test_a_batch_equals_its_singles(name: str) -> None:
    network, images = made(name), noise(name, 2, 3, 2)
    with torch.inference_mode():
        singles = torch.cat([network(image[None]) for image in images])
        torch.testing.assert_close(network(images), singles, rtol=1e-4, atol=1e-4 * float(singles.abs().max()))


@EVERY
def test_a_checkpoint_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    network, kind = made(name), KINDS[name]
    rebuilt = write_checkpoint(tmp_path / "ckpt", network, factory=kind.factory, **kind.arguments).network()
    state, expected = rebuilt.state_dict(), network.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    with torch.inference_mode():
        assert torch.equal(rebuilt(noise(name, 1, 2, 3)), network(noise(name, 1, 2, 3)))


@EVERY
def test_half_of_its_channels_can_go(name: str) -> None:
    weights = [sum(p.numel() for p in network.parameters()) for network in (halved(name), made(name))]
    assert weights[0] < 0.5 * weights[1]


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    counts = {"train": 4, "val": 1, "test": 1}
    classes = ("ground", "one", "two")
    path = tmp_path_factory.mktemp("data") / "discs"
    data = write_dataset(path, counts=counts, size=(32, 64), channels=CHANNELS, classes=classes)
    images = TrainingImages(open_dataset(data, channels=CHANNELS), size=None, crop=None, multiple=32)
    return Evidence(images, CLASSES, FitSettings(batch_size=80), torch.device("cpu"))


@EVERY
@pytest.mark.parametrize("criterion", get_args(Criterion))
def test_what_a_criterion_cuts_could_as_well_have_been_silenced(
    name: str, criterion: Criterion, evidence: Evidence
) -> None:
    scores = scores_of(made(name), criterion, channels=CHANNELS, evidence=evidence)
    plans = {scores.plan(ratio, multiple) for ratio, multiple in ((0.4, 2), (0.8, PruneSettings().channel_multiple))}
    for plan in plans:
        pruned = plan.apply(made(name), channels=CHANNELS)
        silenced = masked(made(name), plan, CHANNELS)
        torch.testing.assert_close(logits(pruned, CHANNELS), logits(silenced, CHANNELS))


@EVERY_EXPORT
@pytest.mark.slow
def test_the_exported_graph_gives_the_same_answers(name: str) -> None:
    graph, multiple = graph_of_halved(name), size_multiple(made(name))
    shipped, with_logits = (OnnxModel(each.SerializeToString()) for each in (with_outputs(graph, "mask"), graph))
    inputs = batches(list(pictures(4)), multiple, sizes(multiple))
    float_parity(halved(name), shipped, with_logits, inputs, images="blocks").require()


@EVERY_EXPORT
@pytest.mark.slow
def test_the_int8_graph_gives_the_answers_of_the_graph_as_written(name: str) -> None:
    graph, multiple = with_outputs(graph_of_halved(name), "mask"), size_multiple(made(name))
    quantized = Quantizer(graph, pictures(4), target="auto").quantized("minmax").graph
    as_written, step = with_quantized_logits(quantized)
    parity = int8_parity(
        OnnxModel(quantized.SerializeToString()),
        OnnxModel(as_written.SerializeToString(), optimised=False),
        batches(list(pictures(4)), multiple, sizes(multiple)[:1]),
        logit_step=step,
        images="blocks",
    )
    # These networks are untrained: a deep one is unsure of most pixels, and rounding passes through all its layers.
    # A graph that computed something else would differ in tens of per cent of the pixels.
    parity.model_copy(update={"pixel_tolerance": 0.01}).require()
