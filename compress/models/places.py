"""Where the channels of a group of coupled layers lie in the network's weights.

n places, not always in the order of the group's channels: after a concatenation they start at an offset.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Role = Literal["makes", "scales", "reads"]
"""The kernels that output the channels; the scales of a BatchNorm; the kernels of the layers that read them."""
ROLES: tuple[Role, ...] = ("makes", "scales", "reads")


@dataclass(frozen=True)
class Place:
    """Where channels of a group lie in the weight of one layer."""

    layer: str
    role: Role
    axis: int
    """The axis of the weight."""
    at: slice | Tensor
    """The n places along the axis."""
    channels_n: Tensor
    """int64, the channel of the group that each place belongs to."""

    @classmethod
    def of(cls, layer: str, module: nn.Module, *, gives: bool, at: Sequence[int], channels: Sequence[int]) -> "Place":
        """The place in `module`, which `is_weighed`; `gives`: its output channels, not its input channels."""
        role: Role = "makes" if gives else "reads"
        axis = 0
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            role = "scales"
        elif not _is_depthwise(module):
            # In the weight of a transposed convolution, the input channels come first.
            axis = int(gives == isinstance(module, nn.ConvTranspose2d))
        consecutive = list(at) == list(range(at[0], at[0] + len(at)))
        where = slice(at[0], at[0] + len(at)) if consecutive else torch.tensor(at)
        return cls(layer, role, axis, where, torch.tensor(channels))

    def weight(self, network: nn.Module) -> Tensor:
        """The whole weight of the layer."""
        return network.get_parameter(f"{self.layer}.weight")

    def rows(self, weight: Tensor) -> Tensor:
        """The part of `weight` (or of a tensor of its shape) at each place, [n, all the rest]."""
        rows = weight.movedim(self.axis, 0)[self.at]
        return rows.reshape(len(rows), -1)


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only be removed from all layers that make, scale and read them at once."""

    width: int
    places: tuple[Place, ...]

    def total(self, values: Callable[[Place], Tensor], roles: Collection[Role] = ROLES) -> Tensor | None:
        """For each channel [width] the sum of `values` [n] over its places; None if no layer has one of `roles`."""
        found = [place for place in self.places if place.role in roles]
        if not found:
            return None
        return torch.stack([self._by_channel(place, values(place)) for place in found]).sum(0)

    def squares(self, network: nn.Module) -> Tensor:
        """The sum of the squares of all weights that belong to each channel [width]; differentiable."""
        total = self.total(lambda place: place.rows(place.weight(network)).square().sum(1))
        assert total is not None  # a group has a convolution at its root
        return total

    def magnitudes(self, network: nn.Module, roles: Collection[Role] = ROLES) -> Tensor | None:
        """The sum of the absolute values of the weights that belong to each channel [width]; differentiable."""
        return self.total(lambda place: place.rows(place.weight(network)).abs().sum(1), roles)

    def _by_channel(self, place: Place, values_n: Tensor) -> Tensor:
        return values_n.new_zeros(self.width).index_add(0, place.channels_n.to(values_n.device), values_n)


def is_weighed(module: nn.Module) -> bool:
    """Whether `module` has a weight whose parts belong to single channels."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return module.affine
    return isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.groups > 1
