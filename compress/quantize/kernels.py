"""Each kernel of an INT8 graph by itself: does the runtime's fused one give what the operators as written give?

Rounding that differs in a last bit may grow from layer to layer (EfficientNet-Lite0: from one value in 100,000 behind
the first layer to most of them behind the 30th), and then masks cannot tell it from a wrong kernel. So each kernel gets
the inputs that the graph as written computes, and nothing can grow.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from export.graph import copied
from export.images import U8
from export.parity import Kernels
from export.runtime import IMAGE, outputs

Arrays = Mapping[str, NDArray[Any]]


def look_at_kernels(model: onnx.ModelProto, images_NHWC: U8) -> Kernels | None:
    """Compare the kernels of `model`, as it ships, between all places where it quantizes, on these padded images.

    None for a graph that quantizes nowhere: all of it is in float, and there is nothing to compare.
    """
    places = [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    if not places:
        return None
    given = {IMAGE: images_NHWC, **_as_written(model, places, images_NHWC)}
    off = {place: _off(_part(model, place, given), given) for place in places}
    worst = max(places, key=lambda place: (off[place].max(), np.mean(off[place] > 0)))
    return Kernels(
        count=len(places),
        worst=worst,
        steps=int(off[worst].max()),
        differing_values=max(float(np.mean(steps > 0)) for steps in off.values()),
    )


def _as_written(model: onnx.ModelProto, places: list[str], images_NHWC: U8) -> dict[str, NDArray[Any]]:
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    tapped = copied(model)
    del tapped.graph.output[:]
    for node in model.graph.node:
        if node.output[0] in places:
            dtype = types[node.input[2]] if len(node.input) > 2 else onnx.TensorProto.UINT8
            tapped.graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], dtype, None))
    names = [output.name for output in tapped.graph.output]
    return dict(zip(names, outputs(tapped.SerializeToString(), {IMAGE: images_NHWC}, optimised=False), strict=True))


def _part(model: onnx.ModelProto, place: str, given: Arrays) -> onnx.ModelProto:
    """The part of `model` from the quantized tensors in front of `place` to it."""
    makers = {output: node for node in model.graph.node for output in node.output}
    kept: list[str] = []
    sources: dict[str, None] = {}
    wanted = [place]
    while wanted:
        name = wanted.pop()
        if name in given and name != place:
            sources[name] = None
        elif name in makers and makers[name].output[0] not in kept:
            kept.append(makers[name].output[0])
            wanted += makers[name].input
    nodes = [node for node in model.graph.node if node.output[0] in kept]
    read = {name for node in nodes for name in node.input}
    part = copied(model)
    del (
        part.graph.node[:],
        part.graph.input[:],
        part.graph.output[:],
        part.graph.value_info[:],
        part.graph.initializer[:],
    )
    part.graph.node.extend(nodes)
    part.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in read)
    part.graph.input.extend(_value(name, given[name]) for name in sources)
    part.graph.output.append(_value(place, given[place]))
    return part


def _off(part: onnx.ModelProto, given: Arrays) -> NDArray[np.int64]:
    """By how many steps the fused kernel's values differ from those of the operators as written."""
    feeds = {value.name: given[value.name] for value in part.graph.input}
    (fused,), (written,) = (
        outputs(part.SerializeToString(), feeds, optimised=optimised) for optimised in (True, False)
    )
    return np.abs(fused.astype(np.int64) - written.astype(np.int64))


def _value(name: str, array: NDArray[Any]) -> onnx.ValueInfoProto:
    dtype = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnx.helper.make_tensor_value_info(name, dtype, [None] * array.ndim)
