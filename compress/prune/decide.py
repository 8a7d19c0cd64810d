"""Which channels go: group magnitude, widths in whole multiples, until a ratio or a speed-up is reached."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch_pruning as tp
from torch import Tensor, nn

from compress.models.plan import Dependencies, GroupCut, PruningPlan

HALVINGS = 6
"""Of the range of ratios: a 64th of the channels is finer than multiples of 16 mostly are."""


@dataclass(frozen=True)
class Scores:
    """Importance of each channel of each group, normalised to mean 1 within the group."""

    by_group: dict[str, Tensor]

    @classmethod
    def magnitude(cls, network: nn.Module, *, channels: int) -> "Scores":
        """L2 norm over all weights that go with a channel. Source: Fang et al. 2023 (DepGraph, arXiv:2301.12900).

        Raises UsageError when no channel can go.
        """
        importance = tp.importance.GroupMagnitudeImportance(p=2, normalizer="mean")
        groups = Dependencies(network, channels).groups()
        return cls({name: importance(group).detach() for name, group in groups.items()})

    def plan(self, ratio: float, multiple: int) -> PruningPlan:
        """Cut the `ratio` least important channels of the whole network.

        Each width is then brought to the nearest multiple of `multiple`, never below it and never
        above what the group has; a group that is not wider than `multiple` keeps all its channels.
        """
        everything = torch.cat(list(self.by_group.values()))
        threshold = float(torch.quantile(everything, ratio))
        cuts = []
        for layer, scores in self.by_group.items():
            width = len(scores)
            wanted = int((scores > threshold).sum())
            kept = min(width, max(multiple, round(wanted / multiple) * multiple))
            remove = torch.argsort(scores, stable=True)[: width - kept]
            cuts.append(GroupCut(layer=layer, width=width, remove=tuple(sorted(remove.tolist()))))
        return PruningPlan(cuts=tuple(cuts))


def for_speedup(
    scores: Scores, multiple: int, wanted: float, speedup_of: Callable[[PruningPlan], float]
) -> PruningPlan:
    """The lightest plan whose measured speed-up is at least `wanted`, by bisection over the ratio.

    The narrowest plan there is when even that is not so fast.
    """
    low, high = 0.0, 1.0
    best = scores.plan(high, multiple)
    measured = {best: speedup_of(best)}
    if measured[best] < wanted:
        return best
    for _ in range(HALVINGS):
        ratio = (low + high) / 2
        plan = scores.plan(ratio, multiple)
        if plan not in measured:
            measured[plan] = speedup_of(plan)
        if measured[plan] >= wanted:
            best, high = plan, ratio
        else:
            low = ratio
    return best
