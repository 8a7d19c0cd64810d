"""Building blocks of networks: each option against its formula, and weights initialised for the layer that follows."""

import math

import pytest
import torch
import torch.nn.functional as F
from support.networks import random_network
from torch import Tensor, nn

from compress.models import build
from compress.models.blocks import (
    BlockStyle,
    ConvBlock,
    Residual,
    SqueezeExcite,
    StochasticDepth,
    Up,
    Upsampling,
)

UPSAMPLINGS: tuple[Upsampling, ...] = ("nearest", "bilinear", "transposed")
IMAGES = torch.randn(2, 8, 6, 10, generator=torch.Generator().manual_seed(0))

OPTIONS = {
    "residual": (BlockStyle(block="residual"), Residual),
    "squeeze-excite": (BlockStyle(squeeze_excite=True), SqueezeExcite),
    "dropout": (BlockStyle(dropout=0.5), nn.Dropout2d),
    "stochastic depth": (BlockStyle(block="residual", stochastic_depth=0.5), StochasticDepth),
}


def block(channels_out: int = 8, style: BlockStyle | None = None) -> ConvBlock:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return ConvBlock(8, channels_out, *([style] if style else [])).eval()


def conv_bn(x: Tensor, convolution: nn.Module, norm: nn.Module) -> Tensor:
    """Convolution and BatchNorm in eval mode, by torch's functions."""
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    x = F.conv2d(x, convolution.weight, padding=convolution.kernel_size[0] // 2)
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)


@torch.inference_mode()
def test_a_plain_block_is_two_convolutions() -> None:
    made = block(16)
    x = F.relu(conv_bn(IMAGES, made[0], made[1]))
    torch.testing.assert_close(made(IMAGES), F.relu(conv_bn(x, made[3], made[4])))


@pytest.mark.parametrize("channels_out", [8, 16], ids=["identity", "projection"])
@torch.inference_mode()
def test_a_residual_block_adds_its_input_before_the_last_relu(channels_out: int) -> None:
    made = block(channels_out, BlockStyle(block="residual"))
    residual = made[0]
    assert isinstance(residual, Residual)
    body = residual.body
    x = F.relu(conv_bn(IMAGES, body[0], body[1]))
    x = conv_bn(x, body[3], body[4])
    shortcut = residual.shortcut
    x = x + (conv_bn(IMAGES, *shortcut) if isinstance(shortcut, nn.Sequential) else IMAGES)
    torch.testing.assert_close(made(IMAGES), F.relu(x))
    assert isinstance(shortcut, nn.Identity) == (channels_out == 8)


@torch.inference_mode()
def test_channel_attention_is_a_gate_that_sees_all_means() -> None:
    attention = SqueezeExcite(8).eval()
    squeeze, excite = attention.gate[1], attention.gate[3]
    assert isinstance(squeeze, nn.Conv2d)
    assert isinstance(excite, nn.Conv2d)
    hidden = F.relu(F.linear(IMAGES.mean((2, 3)), squeeze.weight[..., 0, 0], squeeze.bias))
    gate = torch.sigmoid(F.linear(hidden, excite.weight[..., 0, 0], excite.bias))
    torch.testing.assert_close(attention(IMAGES), IMAGES * gate[..., None, None])


@pytest.mark.parametrize(("channels", "squeezed"), [(4, 8), (128, 8), (256, 16), (512, 32)])
def test_the_squeeze_is_a_sixteenth_but_never_a_needle_s_eye(channels: int, squeezed: int) -> None:
    squeeze = SqueezeExcite(channels).gate[1]
    assert isinstance(squeeze, nn.Conv2d)
    assert squeeze.out_channels == squeezed


@pytest.mark.parametrize("kind", ["plain", "residual"])
@torch.inference_mode()
def test_attention_stands_before_the_addition(kind: str) -> None:
    """With its gate shut, a residual block gives the ReLU of its input, and a plain one zeros."""
    made = block(8, BlockStyle(block=kind, squeeze_excite=True))  # type: ignore[arg-type]
    [attention] = [module for module in made.modules() if isinstance(module, SqueezeExcite)]
    excite = attention.gate[3]
    assert isinstance(excite, nn.Conv2d)
    nn.init.zeros_(excite.weight)
    nn.init.constant_(excite.bias, -1e4)  # type: ignore[arg-type]
    torch.testing.assert_close(made(IMAGES), F.relu(IMAGES) if kind == "residual" else torch.zeros(2, 8, 6, 10))


@torch.inference_mode()
def test_dropout_takes_whole_channels_and_only_in_training() -> None:
    made = ConvBlock(8, 512, BlockStyle(dropout=0.25))
    nn.init.ones_(made[4].bias)  # type: ignore[arg-type]
    torch.manual_seed(0)
    gone = (made.train()(IMAGES) == 0).flatten(2).float().mean(2)
    # A channel is kept, with some zeros from ReLU, or it is all zeros.
    assert gone.eq(1).float().mean() == pytest.approx(0.25, abs=0.05)
    assert not made.eval()(IMAGES).flatten(2).eq(0).all(2).any()


@pytest.mark.parametrize("channels_out", [8, 16], ids=["identity", "projection"])
def test_stochastic_depth_skips_what_a_block_adds_image_by_image(channels_out: int) -> None:
    """A skipped image keeps only the shortcut; a kept addition is divided by its probability, so the mean stays."""
    residual = block(channels_out, BlockStyle(block="residual", stochastic_depth=0.25))[0]
    assert isinstance(residual, Residual)
    images = IMAGES[:1].expand(4000, -1, -1, -1)
    with torch.inference_mode():
        whole, shortcut = residual(images[:1]), residual.shortcut(images[:1])
        # Only the random part is in training mode: BatchNorm keeps its statistics.
        next(module for module in residual.modules() if isinstance(module, StochasticDepth)).train()
        torch.manual_seed(0)
        given = residual(images)
    skipped = (given == shortcut).flatten(1).all(1)
    assert skipped.float().mean() == pytest.approx(0.25, abs=0.03)
    kept = given[~skipped]
    torch.testing.assert_close(kept, (shortcut + (whole - shortcut) / 0.75).expand_as(kept))
    torch.testing.assert_close(given.mean(0, keepdim=True), whole, rtol=0.05, atol=0.1)
    # The same seed skips the same images.
    torch.manual_seed(0)
    assert torch.equal(residual(images), given)


def test_stochastic_depth_keeps_to_its_probability_in_bfloat16() -> None:
    """Its steps just below one are 1/256, coarser than the share of 1/1000 that is kept."""
    depth, images = StochasticDepth(0.999).train(), torch.ones(100_000, 1, 1, 1, dtype=torch.bfloat16)
    torch.manual_seed(0)
    given = depth(images)
    assert given.dtype == torch.bfloat16
    assert given.count_nonzero() / len(given) == pytest.approx(1e-3, rel=0.4)


@pytest.mark.parametrize("factory", ["unet", "unetpp"])
def test_stochastic_depth_is_nothing_but_training(factory: str) -> None:
    """Weights of the same names and values give the same bits without it; in training, answers differ each time."""
    with_it = random_network(factory, block="residual", stochastic_depth=0.5)
    without = random_network(factory, block="residual")
    assert with_it.state_dict().keys() == without.state_dict().keys()
    image = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(with_it(image), without(image))
        assert not torch.equal(with_it.train()(image), with_it(image))
    with pytest.raises(ValueError, match="stochastic_depth needs block = 'residual', got 'plain'"):
        build(factory, {"stochastic_depth": 0.5})


@pytest.mark.parametrize("factory", ["unet", "unetpp"])
@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_of_the_network_is_one_of_each_of_its_blocks(factory: str, option: str) -> None:
    style, kind = OPTIONS[option]
    plain, styled = random_network(factory), random_network(factory, **vars(style))
    blocks = [module for module in styled.modules() if isinstance(module, ConvBlock)]
    assert len(blocks) == sum(isinstance(module, ConvBlock) for module in plain.modules()) > 4
    assert all(sum(isinstance(module, kind) for module in made.modules()) == 1 for made in blocks)
    assert not any(isinstance(module, kind) for module in plain.modules())


@pytest.mark.parametrize("skip", ["concat", "add"])
@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_a_step_up_without_a_skip_takes_none(upsampling: Upsampling, skip: str) -> None:
    step = Up(8, 0, 4, upsampling, skip)  # type: ignore[arg-type]
    assert step(IMAGES).shape == (2, 4, 12, 20)


@torch.inference_mode()
def test_a_step_up_doubles_the_resolution_in_the_way_that_is_asked_for() -> None:
    steps = {kind: Up(8, 0, 4, kind).eval() for kind in UPSAMPLINGS}
    kernel, bias = steps["transposed"].upsample.parameters()  # type: ignore[union-attr]
    larger = {
        "nearest": IMAGES.repeat_interleave(2, 2).repeat_interleave(2, 3),
        "bilinear": F.interpolate(IMAGES, scale_factor=2, mode="bilinear"),
        "transposed": F.conv_transpose2d(IMAGES, kernel, bias, stride=2),
    }
    for kind, step in steps.items():
        torch.testing.assert_close(step(IMAGES), step.block(larger[kind]))


@torch.inference_mode()
def test_a_step_up_joins_several_maps_in_their_order() -> None:
    a, b = torch.randn(2, 3, 12, 20), torch.randn(2, 5, 12, 20)
    step = Up(8, 8, 4, "nearest", "concat").eval()
    torch.testing.assert_close(step(IMAGES, a, b), step(IMAGES, torch.cat([a, b], 1)))
    larger = IMAGES.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(step(IMAGES, a, b), step.block(torch.cat([larger, a, b], 1)))


def test_weights_start_as_what_follows_them_wants() -> None:
    """Kaiming (by fan out) before a ReLU; Xavier where a sigmoid, a softmax or nothing follows; biases zero."""
    torch.manual_seed(0)
    network = build(
        "unet",
        {
            "base": 64,
            "depth": 2,
            "classes": 40,
            "block": "residual",
            "squeeze_excite": True,
            "upsampling": "transposed",
        },
    )
    seen = set()
    for name, layer in network.named_modules():
        if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            continue
        area = math.prod(layer.kernel_size)
        before_relu = layer.bias is None or name.endswith("gate.1")
        fans = layer.out_channels * area if before_relu else (layer.in_channels + layer.out_channels) * area
        # The standard deviation of n samples has a relative error of about 1 / sqrt(2 n).
        tolerance = 4 / math.sqrt(2 * layer.weight.numel())
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fans), rel=tolerance), name
        assert layer.bias is None or not layer.bias.any()
        seen.add((type(layer), before_relu, layer.kernel_size))
    assert len(seen) == 4
