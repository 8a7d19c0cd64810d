"""What the networks are built from: convolution blocks, and the step that doubles the resolution.

BatchNorm directly follows its convolution, so that an exporter can fold it. Every convolution is initialised where it
is made, for what follows it: `kaiming` before a ReLU, `xavier` before a sigmoid, a softmax or nothing.

Names: N batch, C channels, H height, W width.
"""

from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from compress.models.parts import Addition

Upsampling = Literal["nearest", "bilinear", "transposed"]
Skip = Literal["concat", "add", "none"]
Block = Literal["plain", "residual"]

Convolution = TypeVar("Convolution", nn.Conv2d, nn.ConvTranspose2d)

SQUEEZE_REDUCTION = 16
NARROWEST_SQUEEZE = 8
"""A sixteenth of a narrow block would be one or two channels, too few to carry information."""


@dataclass(frozen=True)
class BlockStyle:
    """What a `ConvBlock` is made of; the fields are those of the recipe's model section."""

    block: Block = "plain"
    squeeze_excite: bool = False
    dropout: float = 0.0
    """Probability that a channel is zeroed in training."""
    stochastic_depth: float = 0.0
    """Probability that an image skips the body of a residual block in training."""

    def __post_init__(self) -> None:
        if self.stochastic_depth and self.block != "residual":
            raise ValueError(f"stochastic_depth needs block = 'residual', got {self.block!r}")


PLAIN = BlockStyle()


class ConvBlock(nn.Sequential):
    """Two 3x3 convolutions, each followed by BatchNorm and ReLU; height and width are kept.

    A residual block adds its input before the last ReLU (He et al. 2016, arXiv:1512.03385), through a 1x1 convolution
    where the widths differ. Channel attention follows the convolutions, in a residual block before the addition;
    spatial dropout (Tompson et al. 2015, arXiv:1411.4280) is last. Stochastic depth ends the body of a residual block.
    """

    def __init__(self, channels_in: int, channels_out: int, style: BlockStyle = PLAIN) -> None:
        layers: list[nn.Module] = [
            *conv_bn(channels_in, channels_out, 3),
            nn.ReLU(inplace=True),
            *conv_bn(channels_out, channels_out, 3),
        ]
        attention = [SqueezeExcite(channels_out)] if style.squeeze_excite else []
        if style.block == "residual":
            depth = [StochasticDepth(style.stochastic_depth)] if style.stochastic_depth else []
            layers = [Residual(channels_in, channels_out, [*layers, *attention, *depth]), nn.ReLU(inplace=True)]
        else:
            layers = [*layers, nn.ReLU(inplace=True), *attention]
        if style.dropout:
            layers.append(nn.Dropout2d(style.dropout))
        super().__init__(*layers)


class Residual(Addition, nn.Module):
    """The input plus what `layers` make of it. Source: He et al. 2016 (arXiv:1512.03385)."""

    def __init__(self, channels_in: int, channels_out: int, layers: list[nn.Module]) -> None:
        super().__init__()
        self.adds = True
        self.body = nn.Sequential(*layers)
        same = channels_in == channels_out
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv_bn(channels_in, channels_out, 1))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        out: Tensor = self.shortcut(x_NCHW)
        return self.body(x_NCHW) + out if self.adds else out

    def inner(self) -> str | None:
        """See `Addition`."""
        alone = self.adds and not any(isinstance(module, SqueezeExcite) for module in self.body)
        return "body.0" if alone and isinstance(self.shortcut, nn.Identity) else None

    def drop(self) -> None:
        """See `Addition`."""
        self.adds = False
        del self.body


class StochasticDepth(nn.Module):
    """In training, zero each image with `probability` and divide the others by the probability of being kept, which
    preserves the expected value. In eval mode, the identity.

    Source: Huang et al. 2016 (arXiv:1603.09382), but drawn for each image separately, and scaled in training instead of
    at inference. A BatchNorm before it also sees the images that are zeroed.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if not self.training:
            return x_NCHW
        # Drawn in float32: bfloat16 has too few numbers in 0..1 to match a probability.
        kept = torch.rand(len(x_NCHW), 1, 1, 1, device=x_NCHW.device) >= self.probability
        return torch.where(kept, x_NCHW / (1 - self.probability), 0)


class SqueezeExcite(nn.Module):
    """Multiply each channel by a gate in 0..1, computed from the means of all channels.

    Source: Hu et al. 2018 (arXiv:1709.01507).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(channels // SQUEEZE_REDUCTION, NARROWEST_SQUEEZE)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            kaiming(nn.Conv2d(channels, squeezed, 1)),
            nn.ReLU(inplace=True),
            xavier(nn.Conv2d(squeezed, channels, 1)),
            nn.Sigmoid(),
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        out: Tensor = x_NCHW * self.gate(x_NCHW)
        return out


class Up(nn.Module):
    """Double the resolution of `x`, join maps of that resolution, convolve.

    `channels_skip` is the sum over all maps that will be joined, 0 if there are none. Where the level below has been
    removed, there is no `x` and no `upsample`, and the joined maps alone are convolved.
    """

    def __init__(
        self,
        channels_in: int,
        channels_skip: int,
        channels_out: int,
        upsampling: Upsampling = "nearest",
        skip: Skip = "concat",
        style: BlockStyle = PLAIN,
    ) -> None:
        super().__init__()
        self.skip = skip
        channels_up = channels_skip if skip == "add" and channels_skip else channels_in
        self.upsample: nn.Module | None = _upsample(channels_in, channels_up, upsampling)
        self.block = ConvBlock(channels_up + (channels_skip if skip == "concat" else 0), channels_out, style)

    def forward(self, x_NCHW: Tensor | None, *skips_NCHW: Tensor) -> Tensor:
        below = [] if x_NCHW is None or self.upsample is None else [self.upsample(x_NCHW)]
        if self.skip == "concat":
            maps = [*below, *skips_NCHW]
            x = maps[0] if len(maps) == 1 else torch.cat(maps, dim=1)
        elif self.skip == "add":
            x = sum(skips_NCHW, start=below[0])
        else:
            (x,) = below
        out: Tensor = self.block(x)
        return out


def conv_bn(channels_in: int, channels_out: int, kernel: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """A convolution without bias that keeps height and width, and its BatchNorm; a ReLU should follow."""
    convolution = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
    return kaiming(convolution), nn.BatchNorm2d(channels_out)


def kaiming(convolution: Convolution) -> Convolution:
    """Initialise `convolution` for a ReLU. Source: He et al. 2015 (arXiv:1502.01852)."""
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return _without_bias(convolution)


def xavier(convolution: Convolution) -> Convolution:
    """Initialise `convolution` for a sigmoid, a softmax, or nothing. Source: Glorot and Bengio 2010 (AISTATS)."""
    nn.init.xavier_normal_(convolution.weight)
    return _without_bias(convolution)


def _without_bias(convolution: Convolution) -> Convolution:
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return convolution


def _upsample(channels_in: int, channels_out: int, upsampling: Upsampling) -> nn.Module:
    if upsampling == "transposed":
        return xavier(nn.ConvTranspose2d(channels_in, channels_out, 2, stride=2))
    resize = (
        nn.Upsample(scale_factor=2, mode="nearest")
        if upsampling == "nearest"
        else nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    )
    if channels_in == channels_out:
        return resize
    return nn.Sequential(xavier(nn.Conv2d(channels_in, channels_out, 1)), resize)
