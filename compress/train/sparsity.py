"""A penalty beside the loss that drives channels or single weights to zero, so that removing them costs little."""

import copy

import torch
from torch import Tensor, nn

from compress.models.places import ChannelGroup
from compress.models.plan import Dependencies
from compress.settings.train import SparsitySettings
from export.errors import UsageError

SMALLEST = 1e-12
"""Added to a squared norm: at zero the norm itself has no derivative."""


class Penalty:
    """A penalty on a network's weights, in float32; call it outside autocast.

    It keeps no state from step to step, so a resumed training gets the same bits.
    """

    def __init__(self, settings: SparsitySettings, groups: dict[str, ChannelGroup]) -> None:
        self._settings = settings
        self._groups = groups

    def __call__(self, network: nn.Module) -> Tensor:
        """A scalar with gradients for the weights of `network`."""
        if self._settings.kind == "l1":
            kernels = [parameter for parameter in network.parameters() if parameter.ndim > 1]
            return self._settings.weight * torch.stack([kernel.abs().sum() for kernel in kernels]).sum()
        of_groups = [self._of_group(network, group) for group in self._groups.values()]
        return self._settings.weight * torch.stack([one for one in of_groups if one is not None]).sum()

    def _of_group(self, network: nn.Module, group: ChannelGroup) -> Tensor | None:
        if self._settings.kind == "group-lasso":
            return (group.squares(network) + SMALLEST).sqrt().sum()
        total = group.magnitudes(network, roles=["scales"])
        return None if total is None else total.sum()


def penalty_of(settings: SparsitySettings, network: nn.Module, channels: int) -> Penalty | None:
    """The penalty of `settings` on the kernels of `network` (l1) or its channels that can be cut; None for none.

    Raises UsageError when no channel can be removed, and when BatchNorm scales are asked for and there are none.
    """
    if settings.kind == "none":
        return None
    if settings.kind == "l1":
        return Penalty(settings, {})
    groups = Dependencies(copy.deepcopy(network).cpu(), channels).channel_groups()
    places = [place for group in groups.values() for place in group.places]
    if settings.kind == "bn-scale" and not any(place.role == "scales" for place in places):
        raise UsageError(
            f"train.sparsity.kind = 'bn-scale': no BatchNorm scales the channels of {type(network).__name__}; "
            "set train.sparsity.kind=group-lasso"
        )
    return Penalty(settings, groups)
