"""The time of a network at any choice of widths, from its groups of channels and a table of measured layers."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
from torch import nn

from compress.models.parts import NO_PARTS, Parts
from compress.models.places import ChannelGroup
from compress.models.plan import Dependencies
from compress.progress import counter, say
from compress.prune.widths import Choices, Term, Widths, choices_of
from export.latency.grid import keys_needed
from export.latency.kinds import LayerKey
from export.latency.layers import Layer, layers_of, unmodelled
from export.latency.linear import Linear
from export.latency.measure import cached_table, reference_now
from export.latency.table import LatencyTable
from export.machine import Machine
from export.manifest import Precision

Pair = tuple[int, int]


@dataclass(frozen=True)
class NetworkCosts:
    """The layers of a network as functions of its groups' widths, and a latency table that covers all of them."""

    layers: tuple[Layer, ...]
    widths: Mapping[str, Sequence[int]]
    """The widths that each group may get, rising; the last is its present one."""
    parts: Parts
    """What may be removed as a whole."""
    table: LatencyTable
    reference_ms: float
    """Time of the table's reference convolution: as it is now, or for a foreign table as it was measured there."""
    foreign: str | None
    """Why times measured here say nothing about the table's: another machine or runtime. None where they do."""

    @classmethod
    def of(
        cls,
        network: nn.Module,
        graph: onnx.ModelProto,
        *,
        channels: int,
        size: Pair,
        multiple: int,
        precision: Precision,
        table: Path | None = None,
        whole_parts: bool = False,
    ) -> "NetworkCosts":
        """The costs of `network`, whose float export is `graph`; without `table`, layers are measured here, once.

        With `whole_parts`, groups may also get no channels at all where that removes a whole part of the network.

        Raises UsageError for a table of another network, size or precision.
        """
        groups = Dependencies(copy.deepcopy(network), channels).channel_groups()
        served = {tensor.name for tensor in graph.graph.initializer}
        outputs = {weight: form for weight, form in _outputs(groups, network).items() if weight in served}
        layers = layers_of(graph, size=size, widths=outputs)
        widths = {name: choices_of(group.width, multiple) for name, group in groups.items()}
        parts = Parts.of(network, groups) if whole_parts else NO_PARTS
        if left_out := unmodelled(layers):
            say(f"the latency table leaves out {', '.join(left_out)}; the plan is measured as a whole in any case")
        if table is None:
            found = _measured(layers, parts.with_none(widths), precision, size)
        else:
            found = LatencyTable.load(table)
            found.require(layers, widths, precision=precision, size=size, source=table)
            if not all(map(found.covers, keys_needed(layers, parts.with_none(widths)))):
                say(f"{table} has no times for layers as narrow as removing whole parts leaves them; all parts stay")
                parts = NO_PARTS
        foreign = why_foreign(found)
        reference = found.reference_ms if foreign else reference_now(precision, found.threads)
        return cls(layers, widths, parts, found, reference, foreign)

    @property
    def machine(self) -> str:
        """The machine whose milliseconds these are, in words."""
        found = self.table.machine
        return f"{found.cpu}, {self.table.threads} threads, {found.instruction_set}"

    @property
    def widest(self) -> Widths:
        return {name: each[-1] for name, each in self.widths.items()}

    def choices(
        self, lost: Callable[[str, int], float], *, count: Literal["time", "macs"] = "time"
    ) -> Sequence[Choices]:
        """What a search may choose from: with all levels in the first, with one removed in the second, and so on.

        `lost` is the importance lost when a group keeps a number of channels. The cost is time, or for comparison the
        multiply-accumulates of convolutions.
        """
        cost = self.table.ratio if count == "time" else LayerKey.macs
        terms = [_term(layer, cost) for layer in self.layers]
        optional = {name: (0, *each) if name in self.parts.additions else each for name, each in self.widths.items()}
        levels = self.parts.levels
        gone = [frozenset[str]().union(*levels[:count]) for count in range(len(levels) + 1)]
        return [Choices({**optional, **dict.fromkeys(level, (0,))}, lost, terms) for level in gone]

    def milliseconds(self, widths: Mapping[str, int]) -> float:
        """The time at `widths`, on the table's machine."""
        return self.table.predict(self.layers, widths, reference_ms=self.reference_ms)

    def spared(self, widths: Widths) -> dict[str, float]:
        """By group, the milliseconds saved: what restoring its width alone would cost, or where its level was removed,
        restoring that level."""
        now, spared = self.milliseconds(widths), {}
        for name in self.widths:
            level = next((level for level in self.parts.levels if name in level and not widths[name]), {name})
            spared[name] = self.milliseconds({**widths, **{each: self.widths[each][-1] for each in level}}) - now
        return spared


def _term(layer: Layer, cost: Callable[[LayerKey], float]) -> Term:
    forms = (layer.channels_in, layer.channels_out)
    groups = dict.fromkeys(name for form in forms for name, _ in form.terms)
    return Term(tuple(groups), lambda widths: cost(layer.at(widths)))


def _outputs(groups: Mapping[str, ChannelGroup], network: nn.Module) -> dict[str, Linear]:
    """The output width of each convolution, by the name of its weight in the graph: groups, and channels that nothing
    cuts.

    A convolution that makes only part of a group is left out: how many of its channels stay depends on which they are.
    """
    found: dict[str, dict[str, int]] = {}
    for name, group in groups.items():
        for place in group.places:
            if place.role == "makes":
                parts = found.setdefault(place.layer, {})
                parts[name] = parts.get(name, 0) + len(place.channels_n)
    outputs = {}
    for layer, parts in found.items():
        module = network.get_submodule(layer)
        whole = all(count % groups[name].width == 0 for name, count in parts.items())
        if whole and isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.groups == 1:
            rest = Linear(module.out_channels - sum(parts.values()))
            forms = (Linear.of(name, count // groups[name].width) for name, count in parts.items())
            outputs[f"model.{layer}.weight"] = sum(forms, start=rest)
    return outputs


def _measured(
    layers: Sequence[Layer], widths: Mapping[str, Sequence[int]], precision: Precision, size: Pair
) -> LatencyTable:
    with counter("latency table") as progress:
        return cached_table(keys_needed(layers, widths), precision=precision, size=size, progress=progress)


def why_foreign(table: LatencyTable) -> str | None:
    """Why `table` says nothing about this machine, in words: it was measured on another kind of machine, or by another
    version of the runtime. None where it does."""
    here = Machine.here()
    if not here.is_like(table.machine):
        return "of another machine"
    if here.libraries["onnxruntime"] != table.onnxruntime:
        return f"by onnxruntime {table.onnxruntime}, where this machine has {here.libraries['onnxruntime']}"
    return None
