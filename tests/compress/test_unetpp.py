"""UNet++ is wired as in its paper, and every supervised depth can be cut out of it, exact to the last bit."""

from typing import Any

import pytest
import torch
from support.networks import random_network
from torch import Tensor, nn

from compress.models import all_logits, build, size_multiple
from compress.models.unetpp import UNetPlusPlus
from compress.prune.importance import scores_of

DEPTH = 4
STYLES = [{}, {"block": "residual", "squeeze_excite": True, "upsampling": "transposed"}, {"upsampling": "bilinear"}]


def network(seed: int = 0, **arguments: Any) -> UNetPlusPlus:
    made = random_network("unetpp", seed, **{"base": 4, "depth": DEPTH, **arguments})
    assert isinstance(made, UNetPlusPlus)
    return made


def images(multiple: int = 2**DEPTH, channels: int = 1) -> Tensor:
    return torch.randn(2, channels, multiple, 2 * multiple, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("style", STYLES, ids=["plain", "residual-se-transposed", "bilinear"])
@torch.inference_mode()
def test_nodes_are_wired_as_the_paper_defines_them(style: dict[str, Any]) -> None:
    """Equation 1 of arXiv:1807.10165, by recursion from the end; the network goes forward from the image."""
    made, image = network(**style), images()

    def node(i: int, j: int) -> Tensor:
        if j == 0:
            encoded: Tensor = made.down[i - 1](nn.functional.max_pool2d(node(i - 1, 0), 2)) if i else made.stem(image)
            return encoded
        up = made.nodes[f"{i}_{j}"]
        joined: Tensor = up.block(torch.cat([up.upsample(node(i + 1, j - 1)), *(node(i, k) for k in range(j))], 1))  # type: ignore[operator]
        return joined

    expected = [made.heads[str(j)](node(0, j)) for j in range(1, DEPTH + 1)]
    got = made.all_logits(image)
    assert len(got) == DEPTH
    for logits, wanted in zip(got, expected, strict=True):
        torch.testing.assert_close(logits, wanted)
    torch.testing.assert_close(made(image), expected[-1])


def test_rows_are_as_wide_as_the_levels_of_the_unet() -> None:
    made = network()
    widths = [4, 8, 16, 32, 32]
    assert sum(1 for _ in made.nodes) == DEPTH * (DEPTH + 1) // 2
    for name, up in made.nodes.items():
        i, j = map(int, name.split("_"))
        first = next(module for module in up.modules() if isinstance(module, nn.Conv2d))
        assert (first.in_channels, first.out_channels) == (widths[i + 1] + j * widths[i], widths[i])


@pytest.mark.parametrize("style", STYLES[:2], ids=["plain", "residual-se-transposed"])
@pytest.mark.parametrize("pruned", [False, True], ids=["whole", "pruned"])
@pytest.mark.parametrize("depth", range(1, DEPTH + 1))
@torch.inference_mode()
def test_a_network_cut_to_a_depth_gives_what_that_head_gave(depth: int, pruned: bool, style: dict[str, Any]) -> None:
    whole: nn.Module = network(**style)
    small: nn.Module = network(seed=1, **style, levels=depth)
    if pruned:
        plan = scores_of(whole, channels=1).plan(0.4, 2)
        whole = plan.apply(whole, channels=1)
        small = plan.within(small, channels=1).apply(small, channels=1)
    small.load_state_dict({name: whole.state_dict()[name] for name in small.state_dict()})
    expected = all_logits(whole, images())
    assert torch.equal(small(images()), expected[depth - 1])
    assert all(torch.equal(a, b) for a, b in zip(all_logits(small, images()), expected, strict=False))
    assert len(all_logits(small, images())) == depth
    assert size_multiple(small) == 2**depth
    assert small(images(2**depth)).shape[-2:] == (2**depth, 2 * 2**depth)


@pytest.mark.parametrize("depth", range(1, DEPTH + 1))
def test_no_more_is_built_than_a_depth_needs(depth: int) -> None:
    whole, small = network(), network(levels=depth)
    names, parameters = zip(*whole.named_parameters(), strict=True)
    loss = torch.stack([logits.sum() for logits in whole.all_logits(images())[:depth]]).sum()
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    needed = {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}
    assert {name for name, _ in small.named_parameters()} == needed


def test_without_deep_supervision_the_deepest_alone_has_a_head() -> None:
    deep, alone = network(), network(deep_supervision=False)
    assert len(all_logits(alone, images())) == 1
    with torch.inference_mode():
        alone.load_state_dict({name: deep.state_dict()[name] for name in alone.state_dict()})
        assert torch.equal(alone(images()), deep(images()))


def test_gradients_reach_every_parameter_only_through_all_heads() -> None:
    made = network().train()
    names, parameters = zip(*made.named_parameters(), strict=True)

    def reached(loss: Tensor) -> set[str]:
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        return {name for name, g in zip(names, gradients, strict=True) if g is not None and g.abs().sum() > 0}

    idle = {f"heads.{depth}.{part}" for depth in range(1, DEPTH) for part in ("weight", "bias")}
    assert reached(made(images()).square().sum()) == set(names) - idle
    assert reached(torch.stack([logits.square().sum() for logits in made.all_logits(images())]).sum()) == set(names)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"levels": 0}, "1 to 4, got 0"),
        ({"levels": 5}, "1 to 4, got 5"),
        ({"levels": 2, "deep_supervision": False}, "levels needs deep_supervision"),
        ({"base": 0}, "at least 1"),
    ],
)
def test_arguments_that_make_no_network_are_refused(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        build("unetpp", arguments)
