"""A bundle's graph as written and as the runtime optimised it, and which node of the one came from which of the other.

The runtime leaves no trace of its rewrites but names: a node that replaces another keeps its name, perhaps with
`_token_7` appended, and a convolution on blocked channels is named after its output as written, with `_nchwc` appended.
Source: microsoft/onnxruntime, `Graph::GenerateUniqueNodeName` and `nchwc_transformer.cc`; tests compare with real
graphs.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass

import onnx

from export.graph import CONVOLUTIONS, SizedGraph, attributes, layer_name
from export.latency.kinds import Pair
from export.profiling import BLOCKED, NUMBERED

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"

_RUNTIME_CONVOLUTIONS = (*CONVOLUTIONS, "FusedConv", "QLinearConv", "NhwcConv", "NhwcFusedConv", "ConvInteger")
_ENDS_WHERE_QUANTIZATION_ENDS = ("Relu", "Clip")


@dataclass(frozen=True)
class RunNode:
    """A node of the graph that is run."""

    name: str
    op: str
    inputs: tuple[str, ...]
    """Tensors that are computed, not stored."""
    constants: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def is_convolution(self) -> bool:
        return self.op in _RUNTIME_CONVOLUTIONS


class Written:
    """model.onnx for images of one size; every node gets a name of its own, to be found by in a profile.

    Raises ShapeError for a size that the graph does not take.
    """

    def __init__(self, model: onnx.ModelProto, size: Pair) -> None:
        _name_all(model.graph)
        self.content: bytes = model.SerializeToString()
        self._sized = SizedGraph(model, size)
        self._by_name = {node.name: node for node in model.graph.node}
        self._makers = {output: node for node in model.graph.node for output in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def origin(self, node: RunNode) -> onnx.NodeProto | None:
        """The written node whose work `node` does; None for one that the runtime added."""
        for name in (node.name, NUMBERED.sub("", node.name)):
            found = self._by_name.get(name)
            if found is None and name.endswith(BLOCKED):
                found = self._makers.get(name.removesuffix(BLOCKED))
            if found is not None:
                return self._convolution_of(found) if node.is_convolution else found
        return None

    def layer(self, node: onnx.NodeProto) -> str:
        """The layer's name: taken from the weight of a convolution, else that of the node."""
        if node.op_type not in CONVOLUTIONS:
            return str(node.name)
        return layer_name(self._stored(node.input[1]))

    def macs(self, node: onnx.NodeProto | None) -> int | None:
        """Multiply-accumulates of a convolution on one image; None for everything else."""
        return None if node is None else self._sized.macs(node) or None

    def total_macs(self) -> int:
        """Of all convolutions that lead to the mask, on one image."""
        return sum(map(self._sized.macs, self._sized.nodes))

    def is_quantized(self, node: onnx.NodeProto) -> bool:
        """Whether it stands between Q/DQ pairs: its input was dequantized, and its output is quantized."""
        makers = [self._makers[name] for name in node.input if name in self._makers]
        reads = any(maker.op_type == DEQUANTIZE and maker.input[0] not in self._sized.weights for maker in makers)
        return reads and (node.op_type == "ArgMax" or self._is_quantized_next(node))

    def mode(self, node: onnx.NodeProto) -> str:
        """How a Resize interpolates; empty for other operators."""
        return str(attributes(node).get("mode", "nearest")) if node.op_type == "Resize" else ""

    def _is_quantized_next(self, node: onnx.NodeProto) -> bool:
        readers = self._readers.get(node.output[0], [])
        if len(readers) == 1 and readers[0].op_type in _ENDS_WHERE_QUANTIZATION_ENDS:
            return self._is_quantized_next(readers[0])
        return any(reader.op_type == QUANTIZE for reader in readers)

    def _convolution_of(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """`node`, or the convolution before it that it was fused with."""
        found: onnx.NodeProto | None = node
        while found is not None and found.op_type not in CONVOLUTIONS:
            found = self._makers.get(found.input[0]) if found.input else None
        return found

    def _stored(self, weight: str) -> str:
        """The initializer behind a weight, which may be quantized."""
        maker = self._makers.get(weight)
        return self._stored(maker.input[0]) if maker is not None and maker.input else weight


def run_nodes(optimised: bytes) -> tuple[RunNode, ...]:
    """The nodes of a graph that the runtime optimised, in its order."""
    graph = onnx.load_from_string(optimised).graph
    stored = {tensor.name for tensor in graph.initializer}
    return tuple(
        RunNode(
            name=node.name,
            op=node.op_type,
            inputs=tuple(name for name in node.input if name and name not in stored),
            constants=tuple(name for name in node.input if name in stored),
            outputs=tuple(name for name in node.output if name),
        )
        for node in graph.node
    )


def after(nodes: Sequence[RunNode], start: Set[str]) -> frozenset[str]:
    """Names of all nodes downstream of those named in `start`; `nodes` are in the order in which they run."""
    tensors: set[str] = set()
    reached: set[str] = set()
    for node in nodes:
        if not tensors.isdisjoint(node.inputs):
            reached.add(node.name)
        if node.name in start or node.name in reached:
            tensors.update(node.outputs)
    return frozenset(reached)


def before(nodes: Sequence[RunNode], end: Set[str]) -> frozenset[str]:
    """Names of all nodes upstream of those named in `end`; `nodes` are in the order in which they run."""
    tensors: set[str] = set()
    leading: set[str] = set()
    for node in reversed(nodes):
        if not tensors.isdisjoint(node.outputs):
            leading.add(node.name)
        if node.name in end or node.name in leading:
            tensors.update(node.inputs)
    return frozenset(leading)


def _name_all(graph: onnx.GraphProto) -> None:
    seen: set[str] = {""}
    for index, node in enumerate(graph.node):
        while node.name in seen:
            node.name = f"{node.name or node.op_type}_{index}"
        seen.add(node.name)
