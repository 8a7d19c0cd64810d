"""Parts that a network can lose entirely: what a residual block adds to its input, and the deepest levels of a UNet.

A part is identified by the groups of channels that exist only in it. When none of their channels is kept, the part is
removed.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from compress.models.places import ChannelGroup, Place


class Addition(ABC):
    """A block that adds something to its input.

    Only what names this class is one: a user's own block may have an `inner` and a `drop` that mean something else.
    """

    @abstractmethod
    def inner(self) -> str | None:
        """The convolution in the block through whose channels alone the added term is computed; None where the block
        does not add to its unchanged input, or no longer adds anything."""

    @abstractmethod
    def drop(self) -> None:
        """Stop adding to the input."""


class Leveled(ABC):
    """A network whose deepest level can be removed."""

    @abstractmethod
    def levels(self) -> list[tuple[str, ...]]:
        """For each level that can be removed, the deepest first: the modules that only this level needs."""

    @abstractmethod
    def drop_level(self) -> None:
        """Remove the first of `levels`; the caller adapts the layers that read its channels."""


@dataclass(frozen=True)
class Parts:
    """The parts of one network, by the names of its groups."""

    additions: Mapping[str, str]
    """The block whose addition is removed with each group."""
    levels: tuple[frozenset[str], ...]
    """The groups of each level, the deepest first; a level is removed only together with all deeper ones."""

    @classmethod
    def of(cls, network: nn.Module, groups: Mapping[str, ChannelGroup]) -> "Parts":
        """The parts of `network`, which has these `groups`."""
        blocks = {
            f"{path}.{module.inner()}": path for path, module in network.named_modules() if isinstance(module, Addition)
        }
        levels: list[frozenset[str]] = []
        for modules in network.levels() if isinstance(network, Leveled) else []:
            makers = {name: _makers_in(modules, group) for name, group in groups.items()}
            within = frozenset(name for name, (inside, _) in makers.items() if inside)
            # An addition may tie channels of a level to those of the one above.
            if any(outside for inside, outside in makers.values() if inside):
                break
            levels.append(within)
        return cls({name: path for name, path in blocks.items() if name in groups}, tuple(levels))

    def with_none(self, widths: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
        """`widths` to choose from, with 0 added for each group that belongs to a part."""
        can_go = self.additions.keys() | frozenset().union(*self.levels)
        return {name: (0, *each) if name in can_go else each for name, each in widths.items()}

    def problems(self, gone: Set[str]) -> list[str]:
        """Why the groups `gone` cannot be removed: one line for each that does not make up a part."""
        left = set(gone - self.additions.keys())
        for level in self.levels:
            if not level <= gone:
                break
            left -= level
        return [f"{name}: no channel would be left" for name in sorted(left)]

    def depth(self, gone: Set[str]) -> int:
        """How many levels are removed with the groups `gone`."""
        whole = [level <= gone for level in self.levels]
        return whole.index(False) if False in whole else len(whole)


NO_PARTS = Parts({}, ())


def drop(network: nn.Module, groups: Mapping[str, ChannelGroup], gone: Set[str]) -> None:
    """Remove from `network`, which has these `groups`, the parts whose groups are `gone`.

    `Parts.problems` must find nothing wrong with them.
    """
    parts = Parts.of(network, groups)
    for name in gone & parts.additions.keys():
        cast(Addition, network.get_submodule(parts.additions[name])).drop()
    for _ in range(parts.depth(gone)):
        cast(Leveled, network).drop_level()
    _forget(network, [groups[name] for name in gone - parts.additions.keys()])


def _makers_in(modules: Iterable[str], group: ChannelGroup) -> tuple[bool, bool]:
    """Whether something in `modules` makes channels of `group`, and whether something else does."""
    makers = [place.layer for place in group.places if place.role == "makes"]
    inside = [any(f"{layer}.".startswith(f"{module}.") for module in modules) for layer in makers]
    return any(inside), not all(inside)


def _forget(network: nn.Module, groups: Iterable[ChannelGroup]) -> None:
    """Make what is left of `network` stop reading the channels of `groups`."""
    left = dict(network.named_modules())
    read: dict[str, list[Place]] = {}
    for place in (place for group in groups for place in group.places if place.role == "reads"):
        read.setdefault(place.layer, []).append(place)
    for layer in read.keys() & left.keys():
        reader = cast(nn.Conv2d, left[layer])
        stays = torch.ones(reader.in_channels, dtype=torch.bool)
        for place in read[layer]:
            stays[place.at] = False
        reader.weight = nn.Parameter(reader.weight.detach()[:, stays])
        reader.in_channels = int(stays.sum())
