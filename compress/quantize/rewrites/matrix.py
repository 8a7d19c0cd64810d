"""Convolutions of an INT8 graph through the runtime's matrix kernels instead of its direct ones."""

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import onnx

from compress.quantize.rewrites.edit import Editor
from compress.quantize.rewrites.layers import IntegerConv, integer_convs, put

NARROWEST = 128
"""Least channels out; below, the copies that a matrix product needs cost more than it saves."""
_SMALLEST = 64
"""Magnitude that 7-bit weights do not exceed."""


@dataclass(frozen=True)
class AsMatrix:
    """Weights are stored one lower, with zero point -1: the same numbers.

    The runtime's direct convolution takes only weights with zero point 0 and does not use AMX; with another zero point
    the runtime multiplies matrices, which does. On a machine without AMX the direct one wins and this is not kept.
    Source: microsoft/onnxruntime, `qlinearconv.cc` and `convsym.cpp`.
    """

    name: str = "as a matrix product"

    def places(self, model: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
        """The convolutions of an INT8 graph, by name, that are wide and have room below their least weight.

        Those with 7-bit weights are left out: where 7 bits are needed, the eighth saturates.
        """
        return {conv.node.name: (conv.node.name,) for conv in integer_convs(Editor(model)) if _fits(conv)}

    def apply(self, model: onnx.ModelProto, places: Collection[str]) -> onnx.ModelProto:
        """`model` with `places` in this form."""
        editor = Editor(model)
        for conv in list(integer_convs(editor)):
            if conv.node.name in places and _fits(conv):
                put(editor, conv, replace(conv, weight=conv.weight - np.int8(1), zero_point=-1), "matrix")
        return editor.done()


def _fits(conv: IntegerConv) -> bool:
    least, most = int(conv.weight.min()), int(conv.weight.max())
    return (
        conv.zero_point == 0
        and len(conv.weight) >= NARROWEST
        and least > np.iinfo(np.int8).min
        and max(-least, most) > _SMALLEST
    )
