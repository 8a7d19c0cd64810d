"""What the networks are built from: convolution blocks, and the step that doubles the resolution.

BatchNorm stands directly after its convolution, so that an exporter folds it. Every convolution is initialised for
what follows it, where it is made: `kaiming` before a ReLU, `xavier` before a sigmoid, a softmax or nothing.

Names: N batch, C channels, H height, W width.
"""

from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

Upsampling = Literal["nearest", "bilinear", "transposed"]
Skip = Literal["concat", "add", "none"]
Block = Literal["plain", "residual"]

Convolution = TypeVar("Convolution", nn.Conv2d, nn.ConvTranspose2d)

SQUEEZE_REDUCTION = 16
NARROWEST_SQUEEZE = 8
"""A sixteenth of a narrow block would be one or two channels, through which nothing can be told."""


@dataclass(frozen=True)
class BlockStyle:
    """What a `ConvBlock` is made of; the fields are those of the recipe's model section."""

    block: Block = "plain"
    squeeze_excite: bool = False
    dropout: float = 0.0
    """Probability with which a channel is zero in training."""
    stochastic_depth: float = 0.0
    """Probability with which an image skips the body of a residual block in training."""

    def __post_init__(self) -> None:
        if self.stochastic_depth and self.block != "residual":
            raise ValueError(f"stochastic_depth skips what residual blocks add, and these are {self.block}")


PLAIN = BlockStyle()


class ConvBlock(nn.Sequential):
    """Two 3x3 convolutions, each followed by BatchNorm and ReLU; height and width stay.

    A residual block adds its input before the last ReLU (He et al. 2016, arXiv:1512.03385), through a 1x1 convolution
    where the widths differ. Channel attention comes last, in a residual block before the addition; then spatial
    dropout (Tompson et al. 2015, arXiv:1411.4280). Stochastic depth is the end of what a residual block adds.
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


class Residual(nn.Module):
    """The sum of the input and of what `layers` make of it. Source: He et al. 2016 (arXiv:1512.03385)."""

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
        """See `compress.models.parts.Addition`."""
        alone = self.adds and not any(isinstance(module, SqueezeExcite) for module in self.body)
        return "body.0" if alone and isinstance(self.shortcut, nn.Identity) else None

    def drop(self) -> None:
        """See `compress.models.parts.Addition`."""
        self.adds = False
        del self.body


class StochasticDepth(nn.Module):
    """In training, nothing of an image with `probability`; of the others what is expected stays what it was, for they
    are divided by the probability of being kept. Otherwise the input as it is.

    Source: Huang et al. 2016 (arXiv:1603.09382), but for each image by itself, and scaled in training instead of after
    it. BatchNorm before it sees the images that are left out, too.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if not self.training:
            return x_NCHW
        # Drawn in float32: bfloat16 has too few numbers in 0..1 to keep to a probability.
        kept = torch.rand(len(x_NCHW), 1, 1, 1, device=x_NCHW.device) >= self.probability
        return torch.where(kept, x_NCHW / (1 - self.probability), 0)


class SqueezeExcite(nn.Module):
    """Each channel times a gate in 0..1 that sees the means of all channels.

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

    `channels_skip` is the sum over all maps that will be joined: 0 where there is none. Where the level below has
    gone there is no `x` and no `upsample`, and what was joined is all that is convolved.
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
    """A convolution that keeps height and width, without the bias that BatchNorm brings; a ReLU follows."""
    convolution = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
    return kaiming(convolution), nn.BatchNorm2d(channels_out)


def kaiming(convolution: Convolution) -> Convolution:
    """Initialised for a ReLU. Source: He et al. 2015 (arXiv:1502.01852)."""
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return _without_bias(convolution)


def xavier(convolution: Convolution) -> Convolution:
    """Initialised for a sigmoid, a softmax, or nothing. Source: Glorot and Bengio 2010 (AISTATS)."""
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
