"""How much each channel matters, by one of several criteria.

By weights alone: how large they are, how much BatchNorm scales them, how unlike they are. By training images: how much
the loss would change, how much a channel fires (`evidence`). By chance: what any other criterion must beat.
"""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from compress.models.places import ChannelGroup, Place
from compress.models.plan import Dependencies
from compress.progress import say
from compress.prune.evidence import Evidence
from compress.prune.scores import Scores
from compress.settings.prune import Criterion, PruneSettings, Scope
from export.errors import UsageError

ByGroup = dict[str, Tensor | None]
"""Scores [width]; None for a group in which a criterion finds nothing to look at."""


def scores_of(
    network: nn.Module,
    criterion: Criterion = "l2",
    *,
    channels: int,
    evidence: Evidence | None = None,
    seed: int = 0,
    scope: Scope = "global",
) -> Scores:
    """Score each channel of each group of `network` by `criterion`; the network stays as it is.

    `evidence` is what "taylor" and "activation" look at; `seed` is that of "random". Groups about which a criterion
    says nothing, such as those without BatchNorm for "bn-scale", are ranked by "l2" instead, and named in the log.

    Raises UsageError when no channel can be cut, and when the criterion says nothing about any group.
    """
    twin = copy.deepcopy(network).cpu()
    groups = Dependencies(twin, channels).channel_groups()
    found = _found(twin, groups, criterion, evidence, seed)
    return Scores(_completed(twin, groups, criterion, found), comparable=criterion == "taylor", scope=scope)


def scores_by(settings: PruneSettings, network: nn.Module, *, channels: int, evidence: Evidence) -> Scores:
    """`scores_of` with the settings of a recipe."""
    return scores_of(
        network,
        settings.importance,
        channels=channels,
        evidence=evidence,
        seed=settings.finetune.seed,
        scope=settings.scope,
    )


def _found(
    network: nn.Module,
    groups: Mapping[str, ChannelGroup],
    criterion: Criterion,
    evidence: Evidence | None,
    seed: int,
) -> ByGroup:
    if criterion == "random":
        generator = torch.Generator().manual_seed(seed)
        return {name: torch.rand(group.width, generator=generator) for name, group in groups.items()}
    if criterion in BY_WEIGHTS:
        with torch.no_grad():
            return {name: BY_WEIGHTS[criterion](network, group) for name, group in groups.items()}
    if evidence is None:
        raise ValueError(f"{criterion} looks at training images; give evidence")
    return evidence.taylor(network, groups) if criterion == "taylor" else evidence.activation(network, groups)


def l2(network: nn.Module, group: ChannelGroup) -> Tensor:
    """The square of the L2 norm over all weights that go with a channel, biases and shifts left out.

    Source: Fang et al. 2023 (DepGraph, arXiv:2301.12900).
    """
    return group.squares(network)


def l1(network: nn.Module, group: ChannelGroup) -> Tensor | None:
    """The L1 norm over all weights that go with a channel. Source: Li et al. 2017 (arXiv:1608.08710), for groups."""
    return group.magnitudes(network)


def bn_scale(network: nn.Module, group: ChannelGroup) -> Tensor | None:
    """The sum of the absolute BatchNorm scales of a channel; None where no BatchNorm scales it.

    Source: Liu et al. 2017 (Network Slimming, arXiv:1708.06519), for groups.
    """
    return group.magnitudes(network, roles=["scales"])


def fpgm(network: nn.Module, group: ChannelGroup) -> Tensor | None:
    """The mean Euclidean distance of the kernels that make a channel from those of its layer's other channels, summed
    over the layers that make it. A channel near the geometric median can be replaced by the others.

    Source: He et al. 2019 (arXiv:1811.00250), which takes the sum over one layer; the order is the same.
    """

    def distance(place: Place) -> Tensor:
        # cdist multiplies matrices, which in float32 would lose the difference between near neighbours.
        rows = place.rows(place.weight(network)).double()
        return torch.cdist(rows, rows).sum(1) / max(1, len(rows) - 1)

    return group.total(distance, roles=["makes"])


BY_WEIGHTS: Mapping[str, Callable[[nn.Module, ChannelGroup], Tensor | None]] = {
    "l2": l2,
    "l1": l1,
    "bn-scale": bn_scale,
    "fpgm": fpgm,
}


def _completed(
    network: nn.Module, groups: Mapping[str, ChannelGroup], criterion: Criterion, found: ByGroup
) -> dict[str, Tensor]:
    """`found`; where it is None, L2 magnitudes, scaled to the mean over the channels of the other groups."""
    missing = [name for name, scores in found.items() if scores is None]
    scored = [scores for scores in found.values() if scores is not None]
    if not scored:
        raise UsageError(
            f"prune.importance = {criterion!r} finds nothing to look at in any of the groups {', '.join(missing)}; "
            "set prune.importance=l2"
        )
    if missing:
        say(f"{criterion} says nothing about {', '.join(missing)}: their channels are ranked by L2 magnitude")
    mean = float(torch.cat(scored).mean())

    def magnitude(name: str) -> Tensor:
        with torch.no_grad():
            squares = l2(network, groups[name]).cpu()
        return squares / squares.mean() * mean if squares.any() else squares

    return {name: magnitude(name) if scores is None else scores.float() for name, scores in found.items()}
