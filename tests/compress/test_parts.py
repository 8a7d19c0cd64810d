"""Removing whole parts: the smaller network answers as the whole one does when the part outputs only zeros."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from support.networks import random_network, random_unet
from torch import Tensor, nn

from compress import checkpoint, models
from compress.checkpoint import ModelCard
from compress.models.parts import Parts
from compress.models.plan import Dependencies, GroupCut, PruningPlan
from export.errors import UsageError

UNETS: dict[str, dict[str, Any]] = {
    "plain": {},
    "transposed": {"upsampling": "transposed"},
    "bilinear": {"upsampling": "bilinear"},
    "attention": {"squeeze_excite": True},
}
BLOCKS: dict[str, tuple[str, dict[str, Any], str]] = {
    "unet": ("unet", {"block": "residual", "base": 8, "depth": 4}, "body"),
    "resnet": ("encoder-unet", {"encoder": "resnet18", "pretrained": False, "base": 4}, "bn2"),
    "efficientnet": ("encoder-unet", {"encoder": "efficientnet-lite0", "pretrained": False, "base": 4}, "body"),
}


def parts_of(network: nn.Module) -> Parts:
    return Parts.of(network, Dependencies(network, 1).channel_groups())


def plan_without(network: nn.Module, gone: frozenset[str], kept: float = 1.0) -> PruningPlan:
    """A plan that removes the groups `gone` and keeps the share `kept` of the others."""
    widths = Dependencies(network, 1).widths()
    left = {name: 0 if name in gone else max(1, int(kept * width)) for name, width in widths.items()}
    return PruningPlan(
        cuts=tuple(
            GroupCut(layer=name, width=width, remove=tuple(range(left[name], width))) for name, width in widths.items()
        )
    )


@contextmanager
def silent(network: nn.Module, *modules: str) -> Iterator[None]:
    """Make the outputs of `modules` zero."""
    with ExitStack() as stack:
        for name in modules:
            handle = network.get_submodule(name).register_forward_hook(lambda _module, _given, out: out * 0)
            stack.callback(handle.remove)
        yield


def images() -> Tensor:
    return torch.randn(2, 1, 32, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("style", UNETS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_without_its_deepest_levels_a_unet_is_what_it_was_with_zeros_from_below(style: str, count: int) -> None:
    network = random_unet(base=8, depth=4, **UNETS[style])
    levels = parts_of(network).levels
    assert len(levels) == 3
    gone = frozenset[str]().union(*levels[:count])
    plan = plan_without(network, gone)
    smaller = plan.apply(network, channels=1)
    with silent(network, f"up.{count - 1}.upsample"):
        expected = network(images())
    assert torch.allclose(smaller(images()), expected, atol=1e-5)
    assert models.size_multiple(smaller) == 2 ** (4 - count)
    assert sum(map(torch.numel, smaller.parameters())) < sum(map(torch.numel, network.parameters()))
    assert Dependencies(smaller, 1).widths().keys() == Dependencies(network, 1).widths().keys() - gone
    # Cutting the levels one after the other gives the same network.
    steps = network
    for level in levels[:count]:
        steps = plan_without(steps, level).apply(steps, channels=1)
    assert torch.equal(steps(images()), smaller(images()))


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_that_adds_nothing_gives_what_it_is_given(kind: str) -> None:
    factory, arguments, added = BLOCKS[kind]
    network = random_network(factory, channels=1, classes=2, **arguments)
    additions = parts_of(network).additions
    assert additions
    for gone in ({min(additions)}, set(additions)):
        smaller = plan_without(network, frozenset(gone)).apply(network, channels=1)
        with silent(network, *(f"{additions[name]}.{added}" for name in gone)):
            expected = network(images())
        assert torch.allclose(smaller(images()), expected, atol=1e-4)
        assert Dependencies(smaller, 1).widths().keys() == Dependencies(network, 1).widths().keys() - gone


@pytest.mark.parametrize(
    ("factory", "arguments"),
    [
        ("unet", {"base": 8, "skip": "add"}),
        ("unet", {"base": 8, "skip": "none"}),
        ("unet", {"base": 8, "depth": 1}),
        ("unet", {"base": 8, "depth": 4, "block": "residual", "squeeze_excite": True}),
        ("unetpp", {"base": 8}),
    ],
)
def test_where_nothing_can_go_as_a_whole_there_are_no_parts(factory: str, arguments: dict[str, Any]) -> None:
    parts = parts_of(random_network(factory, channels=1, classes=2, **arguments))
    assert parts.levels == ()
    assert parts.additions == {}


def test_a_plan_that_leaves_half_a_part_is_refused_by_name() -> None:
    network = random_unet(base=8, depth=3)
    deepest, above, *_ = parts_of(network).levels
    for gone, named in (
        ({"stem.0"}, ["stem.0"]),
        (deepest - {"down.2.3"}, ["down.2.0"]),
        (above, sorted(above)),
        (deepest | {"up.0.block.0"}, ["up.0.block.0"]),
    ):
        with pytest.raises(UsageError) as refused:
            plan_without(network, frozenset(gone)).apply(network, channels=1)
        problems = [line for line in str(refused.value).splitlines() if line.startswith("  - ")]
        assert problems == [f"  - {name}: no channel would be left" for name in named]


def test_a_network_without_parts_is_saved_and_cut_on(tmp_path: Path) -> None:
    network = random_unet(base=16, depth=3, classes=2)
    deepest, above, *_ = parts_of(network).levels
    first = plan_without(network, deepest, kept=0.75)
    cut = first.apply(network, channels=1)
    second = plan_without(cut, above, kept=0.5)
    again = second.apply(cut, channels=1)
    both = first.then(second)
    assert torch.equal(both.apply(network, channels=1)(images()), again(images()))
    assert both.kept().keys() == first.kept().keys()
    with pytest.raises(UsageError, match="the second plan does not fit what the first leaves"):
        first.then(plan_without(network, frozenset()))
    card = ModelCard(
        factory="unet",
        arguments={"channels": 1, "classes": 2, "base": 16, "depth": 3},
        channels=1,
        classes=("background", "disc"),
        colours=((0, 0, 0), (255, 255, 255)),
        size=None,
        size_multiple=4,
        parents={},
        pruning=(first, second),
    )
    checkpoint.save(tmp_path, again, card)
    loaded = checkpoint.load(tmp_path).network().eval()
    assert torch.equal(loaded(images()), again(images()))
