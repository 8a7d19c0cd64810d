"""Every width that a dense network may be cut to, where it is not known which of its layers are coupled.

A machine that serves has a bundle and no torch, so it cannot trace the groups of coupled channels. There each
convolution is a group of its own, which covers every width that any grouping needs.
"""

from collections.abc import Sequence
from pathlib import Path

import onnx

from export.bundle import Bundle
from export.errors import UsageError
from export.graph import CONVOLUTIONS, SizedGraph, attributes
from export.latency.grid import grid, keys_needed
from export.latency.kinds import Pair
from export.latency.layers import Layer, layers_of
from export.latency.layout import ACTIVATIONS, BINARY
from export.latency.linear import Linear
from export.latency.measure import Counted, measure_table, silent
from export.latency.table import LatencyTable
from export.manifest import Precision

_KEEPS_CHANNELS = (*ACTIVATIONS, *BINARY, "Resize", "Identity", "Cast")


def dense_layers(graph: onnx.ModelProto, size: Pair) -> tuple[tuple[Layer, ...], dict[str, Sequence[int]]]:
    """The layers of `graph`, and the choices for the widths of their groups, as `keys_needed` takes them.

    0 is among the choices, because a whole part may be removed. Convolutions that give the logits keep their classes,
    and grouped ones their channels.
    Raises ShapeError for a size that the graph does not take.
    """
    sized = SizedGraph(graph, size)
    classes = _giving_logits(sized)
    widths: dict[str, Linear] = {}
    choices: dict[str, Sequence[int]] = {}
    for node in sized.nodes:
        if node.op_type not in CONVOLUTIONS or node.output[0] in classes:
            continue
        if attributes(node).get("group", 1) == 1:
            weight = node.input[1]
            widths[weight] = Linear.of(weight)
            choices[weight] = (0, *grid(sized.channels(node.output[0])))
    return layers_of(graph, size=size, widths=widths), choices


def measure_dense(
    bundle: Bundle,
    path: Path,
    *,
    size: Pair,
    precision: Precision,
    threads: int | None = None,
    progress: Counted = silent,
) -> LatencyTable:
    """`measure_table` for every width that the network of a float bundle may be cut to, at one image size.

    Raises UsageError for a bundle that is not float, and what `measure_table` raises.
    """
    if bundle.manifest.precision != "fp32":
        raise UsageError(
            f"{bundle.path} is quantized, and layers are found in the float graph; give the float bundle of the dense "
            "network (compress export), with --precision int8 to measure in integers"
        )
    layers, choices = dense_layers(onnx.load(str(bundle.model_path)), size)
    keys = keys_needed(layers, choices)
    return measure_table(keys, path=path, precision=precision, threads=threads, size=size, progress=progress)


def _giving_logits(graph: SizedGraph) -> set[str]:
    """Tensors whose channels are the classes."""
    classes: set[str] = set()
    for node in reversed(graph.nodes):
        last = node.op_type == "ArgMax" or node is graph.nodes[-1]
        if last or (node.op_type in _KEEPS_CHANNELS and node.output[0] in classes):
            classes.update(graph.maps(node))
            classes.update(node.output)
    return classes
