"""Which tensors of a float graph the runtime keeps with their channels in blocks.

ONNX Runtime's convolutions on a CPU want blocks of 8 channels (AVX2) or 16 (AVX512). An operator between convolutions
runs on blocks where it has a kernel for them, and else on plain order. Source: microsoft/onnxruntime
`onnxruntime/core/optimizer/nchwc_transformer.cc`; tests compare with the graphs that the runtime really makes.
"""

import onnx

from export.graph import SizedGraph, attributes

BLOCK = 8
"""Widths that may be chosen are multiples of 16, so a machine with blocks of 16 decides alike."""

ACTIVATIONS = ("Relu", "Clip", "Sigmoid", "Tanh", "LeakyRelu")
BINARY = ("Add", "Sub", "Mul", "Div")
POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")


def blocked_tensors(graph: SizedGraph) -> frozenset[str]:
    """Tensors that come in blocks out of the operator that makes them."""
    blocked: set[str] = set()
    for node in graph.nodes:
        if _gives_blocks(graph, node, blocked):
            blocked.add(node.output[0])
    return frozenset(blocked)


def _gives_blocks(graph: SizedGraph, node: onnx.NodeProto, blocked: set[str]) -> bool:
    inputs = graph.maps(node)
    whole = all(graph.channels(name) % BLOCK == 0 for name in inputs)
    within = bool(inputs) and blocked.issuperset(inputs)
    match node.op_type:
        case "Conv":
            return _convolves_blocks(graph, node)
        case "MaxPool" | "AveragePool" | "GlobalAveragePool" | "GlobalMaxPool":
            return whole
        case "Concat":
            return within and whole and len(inputs) == len(node.input) and attributes(node)["axis"] == 1
        case "Resize":
            return within and _by_whole_factors(graph, node)
        case "Add" | "Mul":
            return within and len({graph.shape(name) for name in inputs}) == 1 and len(inputs) == 2
        case op:
            return within and op in ACTIVATIONS


def _convolves_blocks(graph: SizedGraph, node: onnx.NodeProto) -> bool:
    groups = attributes(node).get("group", 1)
    if groups == 1:
        return True
    channels_in, channels_out = graph.channels(node.input[0]), graph.channels(node.output[0])
    if groups == channels_in == channels_out:
        return channels_out % BLOCK == 0
    return channels_in % BLOCK == 0 and channels_out // groups % BLOCK == 0


def _by_whole_factors(graph: SizedGraph, node: onnx.NodeProto) -> bool:
    pairs = zip(graph.size(node.output[0]), graph.size(node.input[0]), strict=True)
    return all(into and out % into == 0 for out, into in pairs) and attributes(node).get("mode") != "cubic"
