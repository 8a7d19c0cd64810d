"""Convolutions of an INT8 graph over columns of pixels that are taken together as if they were channels."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import helper

from compress.quantize.rewrites.edit import Array, Editor, viewed
from compress.quantize.rewrites.layers import IntegerConv, integer_convs, put, repeated
from export.errors import ShapeError
from export.graph import SizedGraph

_FACTORS = (3, 5, 16)
"""Images of so many multiples in width are looked at. A map that a network makes smaller by a ratio of its own, and
rounded, keeps to that ratio at one of them by chance, but not at all."""

WIDEST = 64
"""Most channels out; a wider convolution fills the runtime's kernels by itself, and zeros in its weights cost time."""


@dataclass(frozen=True)
class Folded:
    """`columns` neighbours in a row are computed at once, each by a filter of its own: the old one, shifted.

    The outputs lie in memory as before, only fewer and wider, so that a view of them is all that follows. Narrow layers
    gain by it: the runtime's kernels want 4 channels in and 16 out, and pixels of 3 are copied one by one. With
    `inputs` the map is read in the same way, which takes one more view; else in steps of `columns`. The integers that
    come out are the same, to the last bit.
    """

    columns: int
    inputs: bool
    multiple: int
    """What the sides of images are multiples of; a layer fits where its columns always come in whole groups."""

    @property
    def name(self) -> str:
        """Name of the form, in what is saved."""
        return f"{self.columns} columns {'read and made' if self.inputs else 'made'} at once"

    def places(self, model: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
        """The narrow convolutions of an INT8 graph, by name, that can take this form."""
        editor = Editor(model)
        widths = _widths(model, self.multiple)
        return {conv.node.name: (conv.node.name,) for conv in integer_convs(editor) if self._fits(conv, widths)}

    def apply(self, model: onnx.ModelProto, places: Collection[str]) -> onnx.ModelProto:
        """`model` with `places` in this form."""
        fitting = self.places(model).keys() & set(places)
        editor = Editor(model)
        for conv in list(integer_convs(editor)):
            if conv.node.name in fitting:
                self._fold(editor, conv)
        return editor.done()

    def _fits(self, conv: IntegerConv, widths: Mapping[str, int]) -> bool:
        kernel = conv.weight.shape[3]
        return (
            conv.keeps_columns
            and len(conv.weight) <= WIDEST
            and widths.get(conv.node.output[0], 1) % self.columns == 0
            and (self.inputs or kernel > 1)  # for a kernel of one column both forms are the same
        )

    def _fold(self, editor: Editor, conv: IntegerConv) -> None:
        node, kept = conv.node, conv.quantize.output[0]
        form = self._reading_views(conv) if self.inputs else self._reading_by_steps(conv)
        put(editor, conv, form, "folded")
        if self.inputs:
            source = f"{node.name}/folded/in"
            dequantize = helper.make_node(
                "DequantizeLinear", [source, *conv.image.input[1:]], [f"{source}/float"], f"{node.name}/folded/image"
            )
            view = viewed(editor, conv.image.input[0], source, form.weight.shape[1], f"{node.name}/folded/reads")
            editor.insert_before(node, [*view, dequantize])
            node.input[0] = dequantize.output[0]
        conv.quantize.output[0] = f"{kept}/folded"
        view = viewed(editor, conv.quantize.output[0], kept, len(conv.weight), f"{node.name}/folded/gives")
        editor.replace(conv.quantize, [conv.quantize, *view])

    def _reading_by_steps(self, conv: IntegerConv) -> IntegerConv:
        out, into, height, kernel = conv.weight.shape
        weight = _zeros(conv, (self.columns, out, into, height, kernel + self.columns - 1))
        for column in range(self.columns):
            weight[column, ..., column : column + kernel] = conv.weight
        whole = weight.reshape(self.columns * out, *weight.shape[2:])
        return replace(repeated(conv, whole, self.columns), strides=(1, self.columns))

    def _reading_views(self, conv: IntegerConv) -> IntegerConv:
        out, into, height, kernel = conv.weight.shape
        top, left, bottom, right = conv.pads
        before, after = -(-left // self.columns), -(-right // self.columns)
        weight = _zeros(conv, (self.columns, out, before + 1 + after, self.columns, into, height))
        for column in range(self.columns):
            for tap in range(kernel):
                group, place = divmod(column + tap - left + before * self.columns, self.columns)
                weight[column, :, group, place] = conv.weight[..., tap]
        whole = weight.transpose(0, 1, 3, 4, 5, 2).reshape(self.columns * out, self.columns * into, height, -1)
        return replace(repeated(conv, whole, self.columns), pads=(top, before, bottom, after))


def _zeros(conv: IntegerConv, shape: tuple[int, ...]) -> Array:
    """Weights that are zero."""
    return np.full(shape, conv.zero_point, np.int8)


def _widths(model: onnx.ModelProto, multiple: int) -> dict[str, int]:
    """Columns of every tensor for the narrowest image, where those of wider images are multiples of these; for a graph
    that takes one size alone, those at that size."""
    names = [name for node in model.graph.node for name in node.output]
    height, width = (dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:3])
    if height and width:
        only = SizedGraph(model, (height, width))
        return {name: only.size(name)[1] for name in names}
    try:
        graphs = [SizedGraph(model, (_FACTORS[0] * multiple, factor * multiple)) for factor in _FACTORS]
    except ShapeError:  # one that takes no image so small or so flat
        return {}
    found = {name: [graph.size(name)[1] for graph in graphs] for name in names}
    widths = {name: sizes[0] // _FACTORS[0] for name, sizes in found.items()}
    return {name: width for name, width in widths.items() if found[name] == [factor * width for factor in _FACTORS]}
