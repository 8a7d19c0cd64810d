"""UNet-N is what the documents say it is, for every kind of upsampling and skip."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.networks import random_unet
from torch import Tensor, nn

from compress.bundling import macs
from compress.models import build, size_multiple
from export.errors import UsageError

UPSAMPLINGS, SKIPS = ("nearest", "bilinear", "transposed"), ("concat", "add", "none")


def unet(**arguments: Any) -> nn.Module:
    """A UNet on the meta device: shapes without memory."""
    with torch.device("meta"):
        return build("unet", arguments)


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]


def test_unet_64_is_the_one_of_the_documents() -> None:
    network = unet(base=64, channels=3, classes=2)
    found = convolutions(network)
    assert len(found) == 19
    assert [layer.out_channels for layer in found] == [
        *(64, 64, 128, 128, 256, 256, 512, 512, 512, 512),
        *(256, 256, 128, 128, 64, 64, 64, 64),
        2,
    ]
    # The decoder concatenates the upsampled map and the unchanged skip.
    assert [layer.in_channels for layer in found[10:18:2]] == [1024, 512, 256, 128]
    assert all(layer.kernel_size == (3, 3) and layer.bias is None for layer in found[:-1])
    assert found[-1].kernel_size == (1, 1)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(13.4e6, rel=0.01)
    with torch.device("meta"):
        assert macs(network, 3, (256, 256)) == pytest.approx(31.1e9, rel=0.01)


@pytest.mark.parametrize(
    ("depth", "widths"),
    [(1, [8, 16]), (2, [8, 16, 32]), (3, [8, 16, 32, 64]), (4, [8, 16, 32, 64, 64]), (5, [8, 16, 32, 64, 64, 64])],
)
def test_widths_double_down_to_eight_times_the_base(depth: int, widths: list[int]) -> None:
    network = unet(base=8, depth=depth)
    encoder = convolutions(network)[: 2 * (depth + 1)]
    assert [layer.out_channels for layer in encoder[::2]] == widths
    assert size_multiple(network) == 2**depth


@settings(max_examples=25)
@given(
    st.sampled_from(UPSAMPLINGS),
    st.sampled_from(SKIPS),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([1, 3]),
    st.integers(1, 5),
)
def test_logits_have_the_size_of_the_image(
    upsampling: str, skip: str, depth: int, rows: int, columns: int, channels: int, classes: int
) -> None:
    arguments = {"upsampling": upsampling, "skip": skip, "depth": depth, "channels": channels, "classes": classes}
    network = unet(base=4, **arguments)
    height, width = rows * 2**depth, columns * 2**depth
    logits = network(torch.zeros(2, channels, height, width, device="meta"))
    assert logits.shape == (2, classes, height, width)


def test_the_plain_network_has_the_names_of_the_checkpoints_that_exist() -> None:
    def block(name: str) -> set[str]:
        norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        return {f"{name}.{i}.weight" for i in (0, 3)} | {f"{name}.{i}.{part}" for i in (1, 4) for part in norm}

    names = block("stem") | block("down.0") | block("up.0.block") | {"head.weight", "head.bias"}
    assert unet(depth=1).state_dict().keys() == names
    assert unet(depth=1, skip="add", upsampling="nearest").state_dict().keys() == names | {
        "up.0.upsample.0.weight",
        "up.0.upsample.0.bias",
    }


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize("style", [{}, {"block": "residual", "squeeze_excite": True}], ids=["plain", "residual-se"])
def test_gradients_reach_every_parameter(upsampling: str, skip: str, style: dict[str, Any]) -> None:
    network = random_unet(base=4, upsampling=upsampling, skip=skip, **style).train()
    # Seeded: for some images, the single hidden unit of a gate is inactive, and no gradient passes it.
    images = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    network(images).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("skip", SKIPS)
def test_skips_carry_detail_unless_there_are_none(skip: str) -> None:
    """Pooling lets one of four pixels through; the others reach the logits only through a skip."""
    network = random_unet(base=4, depth=2, skip=skip)
    seen: list[Tensor] = []
    network.get_submodule("stem").register_forward_hook(lambda _, __, out: seen.append(out))
    logits = network(torch.randn(2, 1, 16, 16))
    (gradient,) = torch.autograd.grad(logits.square().sum(), seen)
    share = float((gradient != 0).float().mean())
    assert 0.1 < share <= 0.25 if skip == "none" else share > 0.9


def test_logits_of_an_image_do_not_depend_on_its_batch() -> None:
    network, images = random_unet(base=4), torch.randn(3, 1, 16, 16)
    with torch.inference_mode():
        together = network(images)
        for i in range(3):
            torch.testing.assert_close(network(images[i : i + 1])[0], together[i], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("arguments", [{"base": 0}, {"depth": 0}, {"classes": 0}, {"channels": -1}])
def test_arguments_that_make_no_network_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        build("unet", arguments)
    with pytest.raises(TypeError):
        build("unet", {"colour": "blue"})
    with pytest.raises(UsageError, match="no network is called 'resnet'; known: unet, "):
        build("resnet", {})
