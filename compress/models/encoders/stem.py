"""A classifier's own normalisation, folded into its first convolution, so that every network takes the same input.

N batch, C channels, H height, W width, O output channels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from export.to_onnx import MEAN, STD

COLOURS = 3


@dataclass(frozen=True)
class Normalisation:
    """(pixel - mean) / std of red, green and blue, for pixels of 0 to 255."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Normalisation((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
"""What torchvision's classifiers are trained with."""


def fold(
    state: Mapping[str, Tensor],
    normalisation: Normalisation,
    channels: int,
    *,
    weight: str,
    constant: str,
) -> dict[str, Tensor]:
    """Convert `state` to images of `channels` channels, normalised as (pixel - 128) / 128.

    `weight` names the kernels of the first convolution; `constant` its bias, or the running mean of the BatchNorm after
    it, which absorbs the part that does not depend on the image. The result is exact except at the border: padding is 0
    after either normalisation, and so stands for another grey. A state without such a convolution of three colours is
    returned unchanged.
    """
    if constant not in state or weight not in state or state[weight].shape[1:2] != (COLOURS,):
        return dict(state)
    kernel = state[weight].double()
    mean, std = torch.tensor(normalisation.mean).double(), torch.tensor(normalisation.std).double()
    scaled = kernel * (STD / std).view(1, -1, 1, 1)
    shift = (kernel.sum((2, 3)) * ((MEAN - mean) / std)).sum(1)
    moved = state[constant].double() + (-shift if constant.endswith("running_mean") else shift)
    return {**state, weight: spread(scaled, channels).to(state[weight]), constant: moved.to(state[constant])}


def spread(weight_OCHW: Tensor, channels: int) -> Tensor:
    """Convert weights for three colours to another number of channels.

    Channels take the colours in turn, and those with the same colour divide its weights; one or two channels divide the
    sum of all. An image whose channels are all equal then gives the same result as the same grey in three colours.
    """
    if channels < COLOURS:
        return weight_OCHW.sum(1, keepdim=True).repeat(1, channels, 1, 1) / channels
    colours = torch.arange(channels) % COLOURS
    return weight_OCHW[:, colours] / colours.bincount()[colours].view(1, -1, 1, 1)
