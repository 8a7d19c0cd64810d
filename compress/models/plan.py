"""A pruning plan: which channels of which group of coupled layers are removed. Data first, action second.

A group is what torch-pruning's dependency graph finds: the layers whose channels must be removed together because a
BatchNorm, an addition or a concatenation ties them. It is named after the first of its convolutions. All channels of a
group can be removed only where that removes a whole part of the network (`compress.models.parts`).
"""

import copy
import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping
from types import FunctionType
from typing import Any

import torch
import torch_pruning as tp
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from compress import models
from compress.models import parts
from compress.models.followed import Trial
from compress.models.places import ChannelGroup, Place, is_weighed
from compress.progress import say
from export.blame import told
from export.errors import UsageError


class GroupCut(BaseModel):
    """One group: how wide it was, and the channels to remove (indices into the parent's width)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: str
    width: int = Field(ge=1)
    remove: tuple[int, ...]

    @property
    def kept(self) -> int:
        return self.width - len(self.remove)

    def then(self, following: "GroupCut") -> "GroupCut":
        """This cut and `following`, whose indices are into the channels that this one leaves, as one."""
        left = [channel for channel in range(self.width) if channel not in set(self.remove)]
        gone = sorted({*self.remove, *(left[index] for index in following.remove)})
        return self.model_copy(update={"remove": tuple(gone)})


class PruningPlan(BaseModel):
    """What one pruning step does to a network. Indices are relative to the network it is applied to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cuts: tuple[GroupCut, ...]

    def apply(self, network: nn.Module, *, channels: int) -> nn.Module:
        """A new, smaller module; `network` itself is not changed.

        Raises UsageError that names every group on which the plan and the network disagree, or the line of a user's
        own network that does not run with fewer channels.
        """
        pruned = copy.deepcopy(network).cpu()
        graph = Dependencies(pruned, channels)
        problems = list(self._problems(pruned, graph))
        if problems:
            raise UsageError("the pruning plan does not fit the network:" + "".join(f"\n  - {p}" for p in problems))
        gone = {cut.layer for cut in self.cuts if not cut.kept}
        if gone:
            parts.drop(pruned, graph.channel_groups(), gone)
            graph = Dependencies(pruned, channels)
        frozen = {name for name, parameter in pruned.named_parameters() if not parameter.requires_grad}
        try:
            for cut in self.cuts:
                if cut.remove and cut.kept:
                    graph.group(cut.layer, list(cut.remove)).prune()
            for name, parameter in pruned.named_parameters():  # what is cut is a new parameter
                parameter.requires_grad_(name not in frozen)
            with torch.no_grad():
                models.all_logits(pruned, _image(pruned, channels))
        except Exception as error:  # a user's own network may raise anything
            raise UsageError(
                f"{type(network).__name__} does not run with fewer channels: {told(error)}; take widths from the "
                "tensors (x.shape[1]), and avoid chunk() and parametrizations"
            ) from error
        return pruned

    def within(self, network: nn.Module, *, channels: int) -> "PruningPlan":
        """The cuts of the groups that are in `network`, a part of the network that this plan was made for."""
        groups = Dependencies(network, channels).widths()
        return PruningPlan(cuts=tuple(cut for cut in self.cuts if cut.layer in groups))

    def then(self, following: "PruningPlan") -> "PruningPlan":
        """This plan and `following`, which is for the network that this plan leaves, as one.

        Raises UsageError, naming the groups, when `following` is for another network.
        """
        after = {cut.layer: cut for cut in following.cuts}
        left = {cut.layer: cut.kept for cut in self.cuts if cut.kept}
        strange = [layer for layer, kept in left.items() if layer not in after or after[layer].width != kept]
        if strange or after.keys() != left.keys():
            raise UsageError(f"the second plan does not fit what the first leaves: {', '.join(strange or after)}")
        return PruningPlan(cuts=tuple(cut.then(after[cut.layer]) if cut.kept else cut for cut in self.cuts))

    @property
    def removed(self) -> float:
        """Share of the channels of all groups that is removed."""
        return sum(len(cut.remove) for cut in self.cuts) / sum(cut.width for cut in self.cuts)

    def kept(self) -> dict[str, int]:
        """How many channels of each group are kept."""
        return {cut.layer: cut.kept for cut in self.cuts}

    def widths(self) -> dict[str, tuple[int, int]]:
        """(before, after) of each group, by the layer at its root."""
        return {cut.layer: (cut.width, cut.kept) for cut in self.cuts}

    def _problems(self, network: nn.Module, graph: "Dependencies") -> Iterator[str]:
        groups = graph.channel_groups()
        for cut in self.cuts:
            if cut.layer not in groups:
                yield f"{cut.layer}: no such group of layers; known: {', '.join(groups)}"
            elif cut.width != groups[cut.layer].width:
                yield f"{cut.layer}: planned for {cut.width} channels, has {groups[cut.layer].width}"
            elif not set(cut.remove) <= set(range(cut.width)) or len(set(cut.remove)) != len(cut.remove):
                yield f"{cut.layer}: channels to remove are not distinct numbers below {cut.width}"
        yield from parts.Parts.of(network, groups).problems({cut.layer for cut in self.cuts if not cut.kept})


class Dependencies:
    """torch-pruning's dependency graph of a network, traced over all its logits, with groups by name.

    Left out are the groups whose channels are the classes, those that a grouped convolution or a GroupNorm ties
    together, and those that a layer such as PixelShuffle rearranges in a way that is not followed. A depthwise
    convolution belongs to the group of the channels that it reads.
    """

    def __init__(self, network: nn.Module, channels: int) -> None:
        image = _image(network, channels)
        self._network, self._image = network, image
        self._modules = dict(network.named_modules())
        self._names = {module: name for name, module in self._modules.items()}
        network.eval()
        # Tracing the graph needs gradients, even where the caller has turned them off.
        with torch.enable_grad(), warnings.catch_warnings():
            # Parameters outside layers are cut along their only axis, or their channels stay (`_ties_channels`).
            warnings.filterwarnings("ignore", "Unwrapped parameters detected")
            frozen = [parameter for parameter in network.parameters() if not parameter.requires_grad]
            for parameter in frozen:
                parameter.requires_grad_(True)
            try:
                self._graph = tp.DependencyGraph().build_dependency(network, image, forward_fn=models.all_logits)
                self._outputs = _output_layers(network, image)
            finally:
                for parameter in frozen:
                    parameter.requires_grad_(False)

    def groups(self) -> dict[str, Any]:
        """Every prunable group by the name of its root layer, in the order of the network's modules.

        Raises UsageError when there is none.
        """
        found = {}
        for group in self._graph.get_all_groups(ignored_layers=self._outputs, root_module_types=_CONVOLUTIONS):
            if all(self._can_be_cut(dependency, indices) for dependency, indices in group):
                root = self._root(group)
                found[root] = self.group(root, group[0].idxs)
        for name in self._not_followed(found):
            del found[name]
        if not found:
            raise UsageError(
                f"{type(self._network).__name__} has no channels that can be removed: no nn.Conv2d or "
                "nn.ConvTranspose2d between image and logits whose channels torch-pruning can follow (layers with "
                "weight_norm or spectral_norm have to be made plain before they are saved); quantize it as it is"
            )
        return {name: found[name] for name in self._modules if name in found}

    def _not_followed(self, groups: Mapping[str, Any]) -> frozenset[str]:
        """Those of `groups` whose readers are not the layers that torch-pruning names; tried once for each structure,
        because a cut network is followed as the whole one is."""
        structure = _structure_of(self._network)
        if structure not in _NOT_FOLLOWED:
            trial = Trial(self._network, self._image)
            halves = {name: group[0].idxs[: len(group[0].idxs) // 2] for name, group in groups.items()}
            tried = halves if trial.tells() else {}
            places = {name: tuple(self._places(self.group(name, half))) for name, half in tried.items() if half}
            _NOT_FOLLOWED[structure] = frozenset(
                name
                for name, found in places.items()
                if _made_by(name, found) != set(halves[name])
                or not (
                    trial.are_all_readers(found)
                    or (trial.read_nothing_else(found) and self._runs_without(name, halves[name]))
                )
            )
            if _NOT_FOLLOWED[structure]:
                say(
                    f"the channels of {', '.join(sorted(_NOT_FOLLOWED[structure]))} stay: it is not certain what reads "
                    "them (behind a concatenation that begins with the image, a shuffle, a flip or a slice)"
                )
        return _NOT_FOLLOWED[structure] & groups.keys()

    def _runs_without(self, layer: str, remove: list[int]) -> bool:
        twin = copy.deepcopy(self._network)
        try:
            Dependencies(twin, self._image.shape[1]).group(layer, remove).prune()
            with torch.no_grad():
                models.all_logits(twin, self._image)
        except Exception:  # layers that no longer fit together, or a user's own network
            return False
        return True

    def widths(self) -> dict[str, int]:
        return {name: len(group[0].idxs) for name, group in self.groups().items()}

    def channel_groups(self) -> dict[str, ChannelGroup]:
        """Where the channels of each of the `groups` lie in the weights of the network, or of a copy of it."""
        return {
            name: ChannelGroup(len(group[0].idxs), tuple(self._places(group))) for name, group in self.groups().items()
        }

    def group(self, layer: str, remove: list[int]) -> Any:
        """The group of `layer` with these output channels chosen, ready to be pruned."""
        module = self._modules[layer]
        prune = self._graph.get_pruner_of_module(module).prune_out_channels
        return self._graph.get_pruning_group(module, prune, idxs=remove)

    def _places(self, group: Any) -> Iterator[Place]:
        for item in group.items:
            module = item.dep.target.module
            if is_weighed(module):
                gives = self._graph.is_out_channel_pruning_fn(item.dep.handler)
                yield Place.of(self._names[module], module, gives=gives, at=item.idxs, channels=item.root_idxs)

    def _can_be_cut(self, dependency: Any, indices: list[int]) -> bool:
        module, cut_output = dependency.target.module, self._graph.is_out_channel_pruning_fn(dependency.handler)
        width = (self._graph.get_out_channels if cut_output else self._graph.get_in_channels)(dependency.target)
        if isinstance(module, (*_CONVOLUTIONS, nn.Linear)) and not isinstance(module.weight, nn.Parameter):
            return False  # a parametrization computes it
        return not _ties_channels(module) and (width is None or max(indices) < width)

    def _root(self, group: Any) -> str:
        """The first of the network's convolutions that outputs all channels of the group, wherever tracing began."""
        whole: set[str] = {
            self._names[dependency.target.module]
            for dependency, indices in group
            if isinstance(dependency.target.module, _CONVOLUTIONS)
            and self._graph.is_out_channel_pruning_fn(dependency.handler)
            and indices == group[0].idxs
        }
        return min(whole, key=list(self._modules).index)


_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)

_NOT_FOLLOWED: dict[Hashable, frozenset[str]] = {}
"""By structure, the groups whose channels torch-pruning does not follow to what reads them."""


def _structure_of(network: nn.Module) -> Hashable:
    """What decides how channels go through `network`, and stays as it is when channels are cut."""

    def settings(module: nn.Module) -> Hashable:
        if type(module).__module__.startswith("torch."):
            return None
        kinds = (int, float, str, tuple, FunctionType)
        return tuple(
            (name, value)
            for name, value in vars(module).items()
            if isinstance(value, kinds) and isinstance(value, Hashable)
        )

    return tuple((name, type(module), settings(module)) for name, module in network.named_modules())


def _made_by(layer: str, places: Iterable[Place]) -> set[int]:
    """The output channels of `layer` at `places`: more than were asked for, where each is tied to another."""
    mine = (place for place in places if place.layer == layer and place.role == "makes")
    return {channel for place in mine for channel in _indices(place.at)}


def _indices(at: slice | Tensor) -> list[int]:
    return list(range(at.start, at.stop)) if isinstance(at, slice) else [int(index) for index in at]


def _image(network: nn.Module, channels: int) -> Tensor:
    """A blank image NCHW, for tracing only."""
    side = models.size_multiple(network) * 2
    return torch.zeros(1, channels, side, side)


def _ties_channels(module: nn.Module | nn.Parameter) -> bool:
    """Whether channels of `module` cannot be cut one by one: it reads them in blocks, or normalises several together,
    which changes the others when one goes, or is a parameter without a layer that may mix them."""
    if isinstance(module, nn.GroupNorm | nn.LayerNorm):
        return True
    if isinstance(module, nn.Parameter):
        return sum(side > 1 for side in module.shape) > 1
    return isinstance(module, _CONVOLUTIONS) and not (
        module.groups == 1 or module.groups == module.in_channels == module.out_channels
    )


def _output_layers(network: nn.Module, image_NCHW: Tensor) -> list[nn.Module]:
    """The layers whose channels are the classes: the first ones met on the way back from the logits of each head."""
    made_by: dict[Any, nn.Module] = {}

    def remember(module: nn.Module, _: Any, out: Tensor) -> None:
        made_by[out.grad_fn] = module

    layers = [module for module in network.modules() if isinstance(module, (*_CONVOLUTIONS, nn.Linear))]
    hooks = [layer.register_forward_hook(remember) for layer in layers]
    waiting = [logits.grad_fn for logits in models.all_logits(network, image_NCHW)]
    for hook in hooks:
        hook.remove()
    found, seen = [], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in made_by:
            found.append(made_by[node])
        else:
            waiting.extend(before for before, _ in node.next_functions)
    return found
