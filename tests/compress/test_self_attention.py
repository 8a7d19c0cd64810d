"""Self-attention at the bottleneck: compared with torch's own, and taken all the way to a bundle."""

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from support.datasets import write_dataset
from support.fits import fit, splits
from support.networks import random_network, randomised
from support.pruning import logits, masked
from support.recipes import TINY_SETTINGS
from torch import Tensor, nn

from compress.bundling import macs
from compress.export_fp32 import export
from compress.models import build, size_multiple
from compress.models.parts import Parts
from compress.models.plan import Dependencies
from compress.models.self_attention import SelfAttention
from compress.prune import prune
from compress.prune.importance import scores_of
from compress.quantize import quantize
from compress.recipe import Recipe
from compress.steps import read_record
from compress.train.train import train
from export.bundle import verify
from export.profiling import optimised_graph

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "unet": ("unet", {"base": 8, "depth": 3}),
    "unet, residual": ("unet", {"base": 8, "block": "residual", "skip": "add"}),
    "unetpp": ("unetpp", {"base": 8}),
    "resnet18": ("encoder-unet", {"encoder": "resnet18", "pretrained": False, "base": 4}),
    "lite0": ("encoder-unet", {"encoder": "efficientnet-lite0", "pretrained": False, "base": 4}),
}
EVERY = pytest.mark.parametrize("name", NETWORKS)
MAP = torch.randn(2, 8, 5, 7, generator=torch.Generator().manual_seed(0))


def network(name: str, *, attends: bool = True, **arguments: Any) -> nn.Module:
    factory, rest = NETWORKS[name]
    return random_network(factory, **{**rest, **arguments}, bottleneck_attention=attends)


def image(made: nn.Module, count: int = 2) -> Tensor:
    side = 2 * size_multiple(made)
    return torch.randn(count, 1, side, 2 * side, generator=torch.Generator().manual_seed(1))


def attention_of(made: nn.Module) -> SelfAttention:
    (found,) = (module for module in made.modules() if isinstance(module, SelfAttention))
    return found


def random_attention(channels: int) -> SelfAttention:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = randomised(SelfAttention(channels))
    assert isinstance(made, SelfAttention)
    return made


def tokens(x_NCHW: Tensor) -> Tensor:
    """Positions as rows, [N, P, C]."""
    return x_NCHW.flatten(2).transpose(1, 2)


@torch.inference_mode()
def test_it_is_the_attention_of_torch_added_to_its_input() -> None:
    made = random_attention(8)
    query, key, value = (tokens(make(MAP)) for make in (made.query, made.key, made.value))
    taken = F.scaled_dot_product_attention(query, key, value)
    expected = MAP + made.output(taken.transpose(1, 2).reshape(2, 4, 5, 7))
    torch.testing.assert_close(made(MAP), expected)
    assert (expected - MAP).abs().mean() > 0.1


@torch.inference_mode()
def test_it_is_a_multihead_attention_of_one_head() -> None:
    made = random_attention(8)
    oracle = nn.MultiheadAttention(4, 1, kdim=8, vdim=8, batch_first=True)
    identity = torch.eye(4)
    oracle.q_proj_weight.copy_(identity)
    for name in ("key", "value"):
        getattr(oracle, f"{name[0]}_proj_weight").copy_(getattr(made, name).weight[..., 0, 0])
    oracle.in_proj_bias.copy_(torch.cat([torch.zeros(4), made.key.bias, made.value.bias]))  # type: ignore[list-item]
    oracle.out_proj.weight.copy_(identity)
    oracle.out_proj.bias.zero_()
    taken, _ = oracle(tokens(made.query(MAP)), tokens(MAP), tokens(MAP))
    torch.testing.assert_close(made(MAP), MAP + made.output(taken.transpose(1, 2).reshape(2, 4, 5, 7)))


def test_it_starts_as_the_identity_and_learns_to_be_more() -> None:
    made = SelfAttention(8)
    assert torch.equal(made(MAP), MAP)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    for _ in range(2):  # while its scale is zero, nothing else has a gradient
        optimizer.zero_grad()
        (made(MAP) - MAP.roll(2, 3)).square().sum().backward()
        optimizer.step()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in made.parameters())


@EVERY
@torch.inference_mode()
def test_a_fresh_network_answers_as_one_without_it_and_later_sees_the_whole_image(name: str) -> None:
    torch.manual_seed(0)
    factory, arguments = NETWORKS[name]
    full = {"channels": 1, "classes": 3, **arguments}
    made, plain = build(factory, {**full, "bottleneck_attention": True}).eval(), build(factory, full).eval()
    assert plain.state_dict().keys() < made.state_dict().keys()
    plain.load_state_dict({key: tensor for key, tensor in made.state_dict().items() if key in plain.state_dict()})
    torch.testing.assert_close(made(image(made)), plain(image(made)))
    nn.init.ones_(attention_of(made).output[1].weight)  # type: ignore[arg-type]
    assert not torch.allclose(made(image(made)), plain(image(made)))


@EVERY
@pytest.mark.parametrize(("ratio", "multiple"), [(0.3, 1), (0.7, 4)])
def test_pruned_it_is_the_whole_one_without_those_channels(name: str, ratio: float, multiple: int) -> None:
    made = network(name)
    plan = scores_of(made, "random", channels=1).plan(ratio, multiple)
    within = plan.widths()["attention.query"]
    assert within[1] < within[0]
    pruned = plan.apply(made, channels=1)
    torch.testing.assert_close(logits(pruned, 1), logits(masked(made, plan, 1), 1))
    attention = attention_of(pruned)
    convolutions = (attention.query, attention.key, attention.value)
    assert {convolution.out_channels for convolution in convolutions} == {within[1]}
    assert Dependencies(copy.deepcopy(pruned), 1).widths() == plan.kept()


@pytest.mark.parametrize("count", [1, 2])
def test_with_the_deepest_level_it_goes(count: int) -> None:
    made = network("unet")
    parts = Parts.of(made, Dependencies(copy.deepcopy(made), 1).channel_groups())
    assert len(parts.levels) == 2
    assert "attention.query" in parts.levels[0]
    plain = network("unet", attends=False)
    without = Parts.of(plain, Dependencies(copy.deepcopy(plain), 1).channel_groups())
    assert parts.levels[0] - {"attention.query"} == without.levels[0]
    assert parts.levels[1:] == without.levels[1:]
    smaller = copy.deepcopy(made)
    for _ in range(count):
        smaller.drop_level()  # type: ignore[operator]
    assert not any(isinstance(module, SelfAttention) for module in smaller.modules())


@torch.inference_mode()
def test_a_depth_of_a_unetpp_that_never_saw_it_is_cut_without_it() -> None:
    whole = network("unetpp", depth=3)
    for levels in (1, 2, 3):
        part = build(
            "unetpp",
            {"channels": 1, "classes": 3, "base": 8, "depth": 3, "levels": levels, "bottleneck_attention": True},
        ).eval()
        part.load_state_dict({key: whole.state_dict()[key] for key in part.state_dict()})
        heads = whole.all_logits(image(whole))  # type: ignore[operator]
        assert torch.equal(part(image(whole)), heads[levels - 1])
        assert any(isinstance(module, SelfAttention) for module in part.modules()) == (levels == 3)


def test_its_products_count() -> None:
    """For each image, 1x1 convolutions of 4 C^2 / 2 at each of P positions, and two products of P^2 C / 2."""
    made, plain = (network("unet", attends=attends) for attends in (True, False))
    size = (64, 128)
    width, places = 64, (64 // 8) * (128 // 8)
    assert macs(made, 1, size) - macs(plain, 1, size) == 2 * width**2 * places + places**2 * width


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_trains_in(precision: Any, tmp_path: Path) -> None:
    made = network("unet", classes=2)
    before = copy.deepcopy(attention_of(made).state_dict())
    fitted = fit(made, splits(tmp_path / "discs"), tmp_path / "fit", precision=precision)
    assert all(tensor.isfinite().all() for tensor in fitted.weights.values())
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, fitted.weights[f"attention.{name}"])}
    assert moved >= {"query.weight", "key.weight", "value.weight", "output.0.weight", "output.1.weight"}


SETTINGS = [*TINY_SETTINGS, "model.base=8", "model.bottleneck_attention=true", "prune.channel_multiple=4"]


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "discs", size=(48, 64))


@pytest.fixture(scope="module")
def pruned(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained and cut to half of its channels."""
    runs, recipe = tmp_path_factory.mktemp("runs"), Recipe.load(None, SETTINGS)
    dense = train(discs, runs / "dense", recipe)
    assert dense.card.arguments["bottleneck_attention"] is True
    return prune(dense.path, discs, runs / "pruned", recipe).path


@pytest.mark.slow(first=True)
def test_it_goes_the_whole_way(pruned: Path, discs: Path, tmp_path: Path) -> None:
    """The export itself proves the float bundle's parity at several batches and sizes, and quantize that of INT8."""
    export(pruned, tmp_path / "float", data=discs)
    made = quantize(pruned, discs, tmp_path / "int8", Recipe.load(None, SETTINGS))
    for bundle in ("float", "int8"):
        verify(tmp_path / bundle)
    record = read_record(made.path)
    assert record is not None
    assert record["result"]["miou"] > record["result"]["miou_parent"] - 0.05
    # The products and the softmax between them have integer kernels: nothing of it stays in float.
    graph = onnx.load_from_string(optimised_graph((made.path / "model.onnx").read_bytes())).graph
    found = Counter(node.op_type for node in graph.node)
    assert (found["QLinearMatMul"], found["QLinearSoftmax"], found["MatMul"], found["Softmax"]) == (2, 1, 0, 0)
    assert made.manifest.float_layers == ()


def test_its_integers_are_trained(pruned: Path, discs: Path, tmp_path: Path) -> None:
    settings = [*SETTINGS, "quantize.mode=qat", "quantize.finetune.epochs=1", "quantize.finetune.batch_size=4"]
    made = quantize(pruned, discs, tmp_path / "int8", Recipe.load(None, settings))
    record = read_record(made.path)
    assert record is not None
    result = record["result"]
    assert result["miou_qat"] > result["miou_parent"] - 0.05
    assert result["miou_qat"] != result["miou_ptq"]  # with the integers that were calibrated it would be the same
