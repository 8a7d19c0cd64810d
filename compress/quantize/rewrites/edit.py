"""Edit a copy of a graph node by node, knowing which nodes make and read a tensor, and what is stored in it."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from export.graph import attributes, copied, leading_to

Array = NDArray[Any]

_TO_LAST, _TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


class Editor:
    """Edits a copy of `model`, which `done` gives.

    Every node has a name of its own, by which places are chosen; nodes that are put in for it are called `name/...`.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = copied(model)
        self.nodes: list[onnx.NodeProto] = list(self._model.graph.node)
        self.outputs = {output.name for output in model.graph.output}
        self.constants: dict[str, Array] = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self._added: dict[str, Array] = {}
        for node in self.nodes:
            value = attributes(node).get("value") if node.op_type == "Constant" else None
            if value is not None:
                self.constants[node.output[0]] = numpy_helper.to_array(value)
        _name_all(self.nodes)

    def maker(self, tensor: str) -> onnx.NodeProto | None:
        """The node that gives `tensor`; None for an input and for a stored tensor."""
        return next((node for node in self.nodes if tensor in node.output), None)

    def readers(self, tensor: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if tensor in node.input]

    def only_reader(self, tensor: str) -> onnx.NodeProto | None:
        """The node that reads `tensor`, when only one does and it is no output of the graph."""
        readers = self.readers(tensor)
        return readers[0] if len(readers) == 1 and tensor not in self.outputs else None

    def add(self, array: Array, name: str) -> str:
        """Store `array` as `name`, with underscores appended where another has that name; return the name."""
        while name in self.constants and not _same(self.constants[name], array):
            name += "_"
        if name not in self.constants:
            self.constants[name] = self._added[name] = array
        return name

    def change(self, name: str, array: Array) -> None:
        """Replace what is stored as `name`, for all that read it."""
        self.constants[name] = self._added[name] = array

    def replace(self, node: onnx.NodeProto, others: Sequence[onnx.NodeProto]) -> None:
        """Put `others` where `node` was."""
        place = self._place(node)
        self.nodes[place : place + 1] = others

    def insert_before(self, node: onnx.NodeProto, others: Sequence[onnx.NodeProto]) -> None:
        place = self._place(node)
        self.nodes[place:place] = others

    def done(self) -> onnx.ModelProto:
        """The edited copy, without what nothing reads any more and without shapes that may no longer be true."""
        graph = self._model.graph
        nodes = [_copied(node) for node in leading_to(self.nodes, self.outputs)]
        read = self.outputs.union(*(node.input for node in nodes))
        kept = [tensor for tensor in graph.initializer if tensor.name in read and tensor.name not in self._added]
        kept += [_stored(array, name) for name, array in self._added.items() if name in read]
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(nodes)
        graph.initializer.extend(kept)
        return self._model

    def _place(self, node: onnx.NodeProto) -> int:
        return next(i for i, other in enumerate(self.nodes) if other is node)


def suffixed(tensor: str, suffix: str) -> str:
    """A name beside `tensor`, which others may still read; it ends alike, because layers are named after weights."""
    stem, dot, kind = tensor.rpartition(".")
    return f"{stem}{suffix}{dot}{kind}"


def viewed(editor: Editor, source: str, target: str, channels: int, name: str) -> list[onnx.NodeProto]:
    """Nodes that make `target` of `source` NCHW: the same values in rows of pixels with `channels` each.

    With the channels last, the pixels of a row and their channels lie one behind the other, so this only renames them.
    The runtime works on integers with the channels last, and removes both transpositions.
    """
    shape = editor.add(np.array([0, 0, -1, channels]), f"{name}/shape")
    return [
        helper.make_node("Transpose", [source], [f"{target}/last"], f"{name}/last", perm=_TO_LAST),
        helper.make_node("Reshape", [f"{target}/last", shape], [f"{target}/viewed"], f"{name}/viewed"),
        helper.make_node("Transpose", [f"{target}/viewed"], [target], f"{name}/first", perm=_TO_FIRST),
    ]


def _name_all(nodes: Sequence[onnx.NodeProto]) -> None:
    taken = Counter(node.name for node in nodes)
    for node in nodes:
        if not node.name or taken[node.name] > 1:
            node.name = f"{node.op_type} {next(name for name in node.output if name)}"


def _same(one: Array, other: Array) -> bool:
    return one.dtype == other.dtype and np.array_equal(one, other)


def _stored(array: Array, name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(array, order="C"), name)


def _copied(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy
