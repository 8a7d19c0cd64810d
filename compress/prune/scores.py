"""What each channel of each group is worth, and the plans that follow from it: the least important channels go."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

import torch
from torch import Tensor

from compress.models.plan import GroupCut, PruningPlan
from compress.prune.widths import choices_of
from compress.settings.prune import Scope


@dataclass(frozen=True)
class Scores:
    """The importance of the channels of each group, by the name of the group."""

    raw: Mapping[str, Tensor]
    """[width] on the CPU, not negative, in the unit of the criterion."""
    comparable: bool = False
    """Whether that unit means the same in every group: a change of the loss does, the size of a weight does not."""
    scope: Scope = "global"
    """Whether the groups are compared with each other at all."""

    @cached_property
    def normalised(self) -> dict[str, Tensor]:
        """`raw` scaled to mean 1 within each group; a group that is worth nothing stays at 0."""
        return {name: raw / raw.mean() if raw.any() else raw for name, raw in self.raw.items()}

    @property
    def by_group(self) -> Mapping[str, Tensor]:
        """Scores that compare channels of different groups: `raw` where that is comparable, else `normalised`."""
        return self.raw if self.comparable else self.normalised

    def lost(self, group: str, kept: int) -> float:
        """The importance lost when only the `kept` most important channels of `group` stay, in units of `by_group`.

        Raises KeyError for an unknown group, ValueError for a number of channels that it cannot have.
        """
        losses = self._losses[group]
        if not 0 <= kept < len(losses):
            raise ValueError(f"{group} has {len(losses) - 1} channels; {kept} cannot be kept")
        return losses[len(losses) - 1 - kept]

    def damage(self, group: str, kept: int) -> float:
        """The damage to the network when only the `kept` most important channels of `group` stay; a search of widths
        minimises the sum over the groups.

        The first channels to go do as much damage as their importance says, the last ones more and more, because ever
        less is left to take over from them: W log((I + m) / (K + m)), where I is the importance of the whole group, K
        that of what is kept, and m the mean of a channel. W is I over the mean of all groups where scores are
        `comparable`, else 1. (The plain sum of what goes, as in HALP (arXiv:2110.10811), empties whole layers where a
        millisecond is cheapest, and leaves others whole.)

        Raises KeyError for an unknown group, ValueError for a number of channels that it cannot have.
        """
        whole, lost = self._totals[group], self.lost(group, kept)
        if not whole:
            return 0.0
        mean = whole / len(self.raw[group])
        weight = whole / fmean(self._totals.values()) if self.comparable else 1.0
        return weight * math.log((whole + mean) / (whole - lost + mean))

    def share_of(self, cut: GroupCut) -> float:
        """The share of its group's importance that `cut` removes; 0 where the group has none."""
        scores = self.by_group[cut.layer]
        total = float(scores.sum())
        return float(scores[list(cut.remove)].sum()) / total if total else 0.0

    def plan_of(self, widths: Mapping[str, int]) -> PruningPlan:
        """Keep as many of each group's most important channels as `widths` says, all where it does not name the group.
        Width 0 is for parts that are removed as a whole.

        Raises KeyError for an unknown group, ValueError for a width that it cannot have.
        """
        if strange := widths.keys() - self.raw.keys():
            raise KeyError(f"no such group: {', '.join(sorted(strange))}")
        return PruningPlan(cuts=tuple(self._cut(name, widths.get(name, len(raw))) for name, raw in self.raw.items()))

    def plan(self, ratio: float, multiple: int) -> PruningPlan:
        """Cut the share `ratio` of the channels: the least important ones of the whole network, or, where the scope is
        local, of each group.

        Each width is then brought to the nearest multiple of `multiple`, or left whole if that is nearer; a group that
        is not wider than `multiple` keeps all its channels.
        """
        wanted = self._same_share(ratio) if self.scope == "local" else self._most_important(ratio)
        return self.plan_of({name: nearest_width(len(raw), wanted[name], multiple) for name, raw in self.raw.items()})

    @cached_property
    def _totals(self) -> dict[str, float]:
        return {name: losses[-1] for name, losses in self._losses.items()}

    @cached_property
    def _losses(self) -> dict[str, list[float]]:
        """By group, the importance lost with its 0, 1, 2 ... least important channels."""
        sums = {name: scores.double().sort().values.cumsum(0) for name, scores in self.by_group.items()}
        return {name: [0.0, *total.tolist()] for name, total in sums.items()}

    def _same_share(self, ratio: float) -> dict[str, float]:
        return {name: (1 - ratio) * len(raw) for name, raw in self.raw.items()}

    def _most_important(self, ratio: float) -> dict[str, float]:
        """Channels kept in each group. Of equal ones, those of earlier layers go first: a threshold would take all."""
        scores = torch.cat(list(self.by_group.values()))
        kept = torch.ones(len(scores), dtype=torch.bool)
        kept[torch.argsort(scores, stable=True)[: round(ratio * len(scores))]] = False
        parts = torch.split(kept, [len(raw) for raw in self.raw.values()])
        return {name: float(part.sum()) for name, part in zip(self.raw, parts, strict=True)}

    def _cut(self, name: str, kept: int) -> GroupCut:
        raw = self.raw[name]
        if not 0 <= kept <= len(raw):
            raise ValueError(f"{name} has {len(raw)} channels; {kept} cannot be kept")
        remove = torch.argsort(raw, stable=True)[: len(raw) - kept]
        return GroupCut(layer=name, width=len(raw), remove=tuple(sorted(remove.tolist())))


def nearest_width(width: int, wanted: float, multiple: int) -> int:
    """The one of `choices_of(width, multiple)` that is nearest to `wanted`; of two equally near, the wider."""
    return min(reversed(choices_of(width, multiple)), key=lambda choice: abs(choice - wanted))
