"""Weights at zero: the penalty that drives channels or single weights there, and what holds them there."""

import copy
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from compress.models.places import ChannelGroup
from compress.models.plan import Dependencies
from compress.settings.train import SparsitySettings
from export.errors import UsageError

SPARSE = 0.02
"""A network with a larger share of zeros was made sparse; training hardly ever ends in exact zeros."""
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
            return (
                self._settings.weight * torch.stack([kernel.abs().sum() for kernel in kernels(network).values()]).sum()
            )
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


def kernels(network: nn.Module) -> dict[str, Tensor]:
    """The weights of convolutions and of other layers that multiply; neither biases nor BatchNorm."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.ndim > 1}


def share_of_zeros(network: nn.Module) -> float:
    """The share of all kernels' weights that are zero."""
    found = kernels(network).values()
    return sum(int((kernel == 0).sum()) for kernel in found) / sum(kernel.numel() for kernel in found)


def hold_at_zero(network: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the masked weights to zero, and their gradients from now on: AdamW then has nothing to move them by."""
    for name, mask in masks.items():
        kernel = network.get_parameter(name)
        with torch.no_grad():
            kernel.masked_fill_(mask, 0)
        if kernel.requires_grad:
            kernel.register_hook(partial(torch.masked_fill, mask=mask, value=0))  # type: ignore[no-untyped-call]


def keep_zeros(network: nn.Module) -> None:
    """Hold what is zero in the kernels of a sparse `network` at zero, so that fine-tuning keeps it sparse; does nothing
    to one that is not."""
    if share_of_zeros(network) > SPARSE:
        hold_at_zero(network, {name: kernel == 0 for name, kernel in kernels(network).items()})
