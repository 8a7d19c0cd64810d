"""What runs in float in an INT8 bundle, and why."""

from collections.abc import Iterator, Mapping, Sequence

from benchmarks.ops.graph import DEQUANTIZE, QUANTIZE, RunNode, Written, after, before
from benchmarks.report.ops.results import FloatNode, NodeTime
from export.manifest import FloatLayer

_INTEGER_KERNELS = frozenset(
    {
        "Add",
        "ArgMax",
        "AveragePool",
        "Concat",
        "Conv",
        "Gemm",
        "GlobalAveragePool",
        "LeakyRelu",
        "MatMul",
        "MaxPool",
        "Mul",
        "Resize",
        "Sigmoid",
        "Softmax",
        "Transpose",
        "Reshape",
    }
)
"""Operators that the runtime can fuse with their Q/DQ pairs on a CPU; a Resize only in mode nearest. Source:
microsoft/onnxruntime, `qdq_selector_action_transformer.cc`."""


def floats(
    nodes: Sequence[RunNode], times: Sequence[NodeTime], written: Written, declared: Sequence[FloatLayer]
) -> tuple[tuple[FloatNode, ...], tuple[str, ...]]:
    """The float nodes among `nodes` with the reason for each, and the layers of `declared` that do not run in float.

    `times` are those of `nodes`, in the same order; `declared` are the layers that the manifest says run in float.
    """
    why = _Why(nodes, written, declared)
    found = []
    for node, time in zip(nodes, times, strict=True):
        if time.kind == "integer":
            continue
        told = why.declared(node)
        found.append(
            FloatNode(
                node=node.name,
                layer=time.layer,
                op=node.op,
                milliseconds=time.milliseconds,
                share=time.share,
                reason=told.reason if told else why.reason(node),
                told_by="manifest" if told else "graph",
            )
        )
    return tuple(found), tuple(layer.layer for layer in declared if layer.layer not in why.met)


class _Why:
    def __init__(self, nodes: Sequence[RunNode], written: Written, declared: Sequence[FloatLayer]) -> None:
        self._written = written
        self._declared: Mapping[str, FloatLayer] = {layer.layer: layer for layer in declared}
        self.met: set[str] = set()
        """Declared layers that were met among the nodes."""
        self._makers = {output: node for node in nodes for output in node.outputs}
        self._readers: dict[str, list[RunNode]] = {}
        for node in nodes:
            for name in node.inputs:
                self._readers.setdefault(name, []).append(node)
        integers = {node.name for node in nodes if node.op.startswith("QLinear")}
        self._after_integers, self._before_integers = after(nodes, integers), before(nodes, integers)

    def declared(self, node: RunNode) -> FloatLayer | None:
        """What the manifest says of `node` under any of its names."""
        for name in self._names(node):
            if name in self._declared:
                self.met.add(name)
                return self._declared[name]
        return None

    def reason(self, node: RunNode) -> str:
        """Why `node` runs in float, as far as the graph tells."""
        if node.op == DEQUANTIZE:
            return self._of_dequantize(node)
        if node.op == QUANTIZE:
            return f"quantizes what {self._layers(self._makers.get(n) for n in node.inputs)} gives"
        origin = self._written.origin(node)
        if origin is None:
            return "added by the runtime: changes the layout for the float operators next to it"
        if not self._written.is_quantized(origin):
            return f"not quantized: no Q/DQ pairs around it in model.onnx{self._place(node)}"
        mode = self._written.mode(origin)
        if origin.op_type not in _INTEGER_KERNELS or mode not in ("", "nearest"):
            return f"no integer kernel for {mode + ' ' if mode else ''}{origin.op_type}"
        return "the runtime could not fuse it with the Q/DQ pairs around it"

    def _of_dequantize(self, node: RunNode) -> str:
        readers = [reader for output in node.outputs for reader in self._readers.get(output, [])]
        whom = self._layers(readers) if readers else f"the output {node.outputs[0]}"
        if not node.inputs:
            return f"dequantizes constants in every run, for {whom}"
        return f"dequantizes for {whom}"

    def _layers(self, nodes: "Iterator[RunNode | None] | Sequence[RunNode]") -> str:
        names = [self._layer(node) for node in nodes if node is not None]
        return ", ".join(dict.fromkeys(names)) or "the image"

    def _layer(self, node: RunNode) -> str:
        origin = self._written.origin(node)
        return node.name if origin is None else self._written.layer(origin)

    def _names(self, node: RunNode) -> Iterator[str]:
        yield node.name
        origin = self._written.origin(node)
        if origin is not None:
            yield from (origin.name, self._written.layer(origin), *origin.output)

    def _place(self, node: RunNode) -> str:
        if node.name not in self._after_integers:
            return ", and it comes before the first integer layer"
        if node.name not in self._before_integers:
            return ", and it comes after the last integer layer"
        return ""
