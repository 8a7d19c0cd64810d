"""A pruning plan: which channels of which group of coupled layers go. Data first, action second.

A group is what torch-pruning's dependency graph finds: the layers whose channels must go together because a
BatchNorm, an addition or a concatenation ties them. It is named after the convolution at its root.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch_pruning as tp
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from compress import models
from export.errors import UsageError


class GroupCut(BaseModel):
    """One group: how wide it was, and the channels that go (indices into the parent's width)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: str
    width: int = Field(ge=1)
    remove: tuple[int, ...]

    @property
    def kept(self) -> int:
        return self.width - len(self.remove)


class PruningPlan(BaseModel):
    """What one pruning step does to a network. Indices are relative to the network it is applied to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cuts: tuple[GroupCut, ...]

    def apply(self, network: nn.Module, *, channels: int) -> nn.Module:
        """A new, smaller module; `network` stays whole.

        Raises UsageError that names every group that the plan and the network do not agree on.
        """
        pruned = copy.deepcopy(network).cpu()
        graph = Dependencies(pruned, channels)
        problems = self._problems(graph)
        if problems:
            raise UsageError("the pruning plan does not fit the network:" + "".join(f"\n  - {p}" for p in problems))
        for cut in self.cuts:
            if cut.remove:
                graph.group(cut.layer, list(cut.remove)).prune()
        return pruned

    def widths(self) -> dict[str, tuple[int, int]]:
        """(before, after) of each group, by the layer at its root."""
        return {cut.layer: (cut.width, cut.kept) for cut in self.cuts}

    def _problems(self, graph: "Dependencies") -> Iterator[str] | list[str]:
        widths = graph.widths()
        problems = []
        for cut in self.cuts:
            if cut.layer not in widths:
                problems.append(f"{cut.layer}: no such group of layers; known: {', '.join(widths)}")
            elif cut.width != widths[cut.layer]:
                problems.append(f"{cut.layer}: planned for {cut.width} channels, has {widths[cut.layer]}")
            elif not set(cut.remove) <= set(range(cut.width)) or len(set(cut.remove)) != len(cut.remove):
                problems.append(f"{cut.layer}: channels to remove are not distinct numbers below {cut.width}")
            elif cut.kept < 1:
                problems.append(f"{cut.layer}: no channel would be left")
        return problems


class Dependencies:
    """torch-pruning's dependency graph of a network, with groups by name and the output layer left out."""

    def __init__(self, network: nn.Module, channels: int) -> None:
        side = models.size_multiple(network) * 2
        self._modules = dict(network.named_modules())
        network.eval()
        # The graph is traced with gradients, whatever the caller is in; the image is only for the tracing.
        with torch.enable_grad():
            for parameter in network.parameters():
                parameter.requires_grad_(True)
            self._graph = tp.DependencyGraph().build_dependency(network, torch.zeros(1, channels, side, side))
        self._names = {module: name for name, module in self._modules.items()}
        self._output = _output_layer(network, channels, side)

    def groups(self) -> dict[str, Any]:
        """Every prunable group by the name of its root layer, in the order of the network's modules."""
        found = {}
        for group in self._graph.get_all_groups(
            ignored_layers=[self._output], root_module_types=[nn.Conv2d, nn.ConvTranspose2d]
        ):
            found[self._names[group[0].dep.target.module]] = group
        return {name: found[name] for name in self._modules if name in found}

    def widths(self) -> dict[str, int]:
        return {name: len(group[0].idxs) for name, group in self.groups().items()}

    def group(self, layer: str, remove: list[int]) -> Any:
        """The group of `layer` with these output channels chosen, ready to be pruned."""
        module = self._modules[layer]
        prune = tp.prune_conv_out_channels
        if isinstance(module, nn.ConvTranspose2d):
            prune = self._graph.get_pruner_of_module(module).prune_out_channels
        return self._graph.get_pruning_group(module, prune, idxs=remove)


def _output_layer(network: nn.Module, channels: int, side: int) -> nn.Module:
    """The convolution that gives the logits: the last one that runs. Its channels are the classes."""
    order: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda module, *_: order.append(module))
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    ]
    with torch.no_grad():
        network(torch.zeros(1, channels, side, side))
    for hook in hooks:
        hook.remove()
    return order[-1]
