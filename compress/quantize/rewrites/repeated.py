"""Nearest upsampling of an INT8 graph as copies of whole pixels and rows."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from compress.quantize.rewrites.edit import Editor
from export.graph import attributes

_ALIGNED = (("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("half_pixel", "round_prefer_ceil"))
"""Coordinate transformation and rounding with which every pixel of a map becomes a whole block."""


@dataclass(frozen=True)
class Repeated:
    """Every pixel is put beside itself and every row below itself: with the channels last these are two Concats.

    The runtime looks up where each value comes from, one by one; this copies pixels and rows whole.
    """

    name: str = "upsampling as copies of pixels and rows"

    def places(self, model: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
        """The Resizes of an INT8 graph, by name, that enlarge a map of integers by whole factors."""
        editor = Editor(model)
        return {node.name: (node.name,) for node in editor.nodes if _factors(editor, node)}

    def apply(self, model: onnx.ModelProto, places: Collection[str]) -> onnx.ModelProto:
        """`model` with `places` in this form."""
        editor = Editor(model)
        for node in list(editor.nodes):
            factors = _factors(editor, node) if node.name in places else None
            if factors:
                _repeat(editor, node, *factors)
        return editor.done()


def enlarged(editor: Editor, node: onnx.NodeProto) -> tuple[int, int] | None:
    """Rows and columns that each pixel becomes, in a Resize that makes whole blocks of pixels; else None."""
    if node.op_type != "Resize" or len(node.input) < 3 or node.input[2] not in editor.constants:
        return None
    given = {"mode": "nearest", "coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_floor"}
    given |= attributes(node)
    scales = editor.constants[node.input[2]]
    if (
        given["mode"] != "nearest"
        or (given["coordinate_transformation_mode"], given["nearest_mode"]) not in _ALIGNED
        or given.get("axes")
        or len(scales) != 4
        or not np.array_equal(scales, [1, 1, *np.maximum(np.rint(scales[2:]), 1)])
    ):
        return None
    return int(scales[2]), int(scales[3])


def _factors(editor: Editor, node: onnx.NodeProto) -> tuple[int, int] | None:
    """`enlarged`, of a Resize between two Q/DQ pairs of one scale."""
    factors = enlarged(editor, node)
    return factors if factors and only_moves(editor, node) is not None else None


def only_moves(editor: Editor, node: onnx.NodeProto) -> tuple[onnx.NodeProto, onnx.NodeProto] | None:
    """The nodes that dequantize the input of `node` and quantize its result, if both have the same scale."""
    before, after = editor.maker(node.input[0]), editor.only_reader(node.output[0])
    if before is None or after is None or (before.op_type, after.op_type) != ("DequantizeLinear", "QuantizeLinear"):
        return None
    scales = [[editor.constants.get(name, np.nan) for name in node.input[1:]] for node in (before, after)]
    return (before, after) if all(map(np.array_equal, *scales)) else None


def _repeat(editor: Editor, node: onnx.NodeProto, rows: int, columns: int) -> None:
    around = only_moves(editor, node)
    assert around is not None
    source, target, name = around[0].input[0], around[1].output[0], f"{node.name}/repeated"
    pixels, tall, row = f"{target}/pixels", f"{target}/rows", f"{target}/row"
    axis = editor.add(np.array([2]), f"{name}/axis")
    factors = editor.add(np.array([1, rows, columns, 1]), f"{name}/factors")
    # N H W C -> N H W columns*C -> N H 1 W columns*C -> N H rows W columns*C, which is N rows*H columns*W C.
    new = [
        helper.make_node("Transpose", [source], [f"{target}/last"], f"{name}/last", perm=(0, 2, 3, 1)),
        helper.make_node("Concat", [f"{target}/last"] * columns, [pixels], f"{name}/pixels", axis=3),
        helper.make_node("Unsqueeze", [pixels, axis], [row], f"{name}/row"),
        helper.make_node("Concat", [row] * rows, [tall], f"{name}/rows", axis=2),
        helper.make_node("Shape", [f"{target}/last"], [f"{target}/shape"], f"{name}/shape"),
        helper.make_node("Mul", [f"{target}/shape", factors], [f"{target}/size"], f"{name}/size"),
        helper.make_node("Reshape", [tall, f"{target}/size"], [f"{target}/map"], f"{name}/map"),
        helper.make_node("Transpose", [f"{target}/map"], [target], f"{name}/first", perm=(0, 3, 1, 2)),
    ]
    editor.replace(around[1], new)
