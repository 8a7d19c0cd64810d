"""DepthToSpace of an INT8 graph as one move of whole pixels."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from compress.quantize.rewrites.edit import Editor
from compress.quantize.rewrites.repeated import only_moves
from export.graph import attributes


@dataclass(frozen=True)
class Dealt:
    """With the channels last, a pixel of the result is one piece of memory before and after; only rows change places.

    The runtime moves values one by one, and only with the channels first, between two transpositions.
    """

    name: str = "DepthToSpace as one move of pixels"

    def places(self, model: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
        """The DepthToSpace nodes of an INT8 graph, by name, that move integers in the order DCR."""
        editor = Editor(model)
        return {node.name: (node.name,) for node in editor.nodes if _fits(editor, node)}

    def apply(self, model: onnx.ModelProto, places: Collection[str]) -> onnx.ModelProto:
        """`model` with `places` in this form."""
        editor = Editor(model)
        for node in list(editor.nodes):
            if node.name in places and _fits(editor, node):
                _deal(editor, node)
        return editor.done()


def _fits(editor: Editor, node: onnx.NodeProto) -> bool:
    return (
        node.op_type == "DepthToSpace"
        and attributes(node).get("mode", "DCR") == "DCR"
        and only_moves(editor, node) is not None
    )


def _deal(editor: Editor, node: onnx.NodeProto) -> None:
    around, block = only_moves(editor, node), attributes(node)["blocksize"]
    assert around is not None
    source, target, name = around[0].input[0], around[1].output[0], f"{node.name}/dealt"
    last, parts, moved, shape = (f"{target}/{part}" for part in ("last", "parts", "moved", "shape"))
    wide, size = f"{target}/wide", f"{target}/size"
    apart = editor.add(np.array([0, 0, 0, block, -1]), f"{name}/apart")
    factors = editor.add(np.array([1, block, block, 1]), f"{name}/factors")
    divisors = editor.add(np.array([1, 1, 1, block * block]), f"{name}/divisors")
    # N H W rows*columns*C -> N H W rows columns*C -> N H rows W columns*C, which is N rows*H columns*W C.
    new = [
        helper.make_node("Transpose", [source], [last], f"{name}/last", perm=(0, 2, 3, 1)),
        helper.make_node("Reshape", [last, apart], [parts], f"{name}/parts"),
        helper.make_node("Transpose", [parts], [moved], f"{name}/moved", perm=(0, 1, 3, 2, 4)),
        helper.make_node("Shape", [last], [shape], f"{name}/shape"),
        helper.make_node("Mul", [shape, factors], [wide], f"{name}/wide"),
        helper.make_node("Div", [wide, divisors], [size], f"{name}/size"),
        helper.make_node("Reshape", [moved, size], [f"{target}/map"], f"{name}/map"),
        helper.make_node("Transpose", [f"{target}/map"], [target], f"{name}/first", perm=(0, 3, 1, 2)),
    ]
    editor.replace(around[1], new)
