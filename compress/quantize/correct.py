"""Empirical bias correction: what rounding adds to the mean of a channel is subtracted from its bias.

Errors of weights and activations do not cancel out: over many pixels a channel is off by a constant, which its bias can
absorb at no cost. Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
Correction" (arXiv:1906.04721), appendix D.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.helper import make_node
from onnx.numpy_helper import from_array

from compress.progress import task
from compress.quantize.graph import stored, tapped
from compress.quantize.ptq import Quantized
from export.graph import copied
from export.images import U8

F64 = NDArray[np.float64]
_CORRECTED = "_corrected"


def corrected(quantized: Quantized, images_HWC: Sequence[U8], *, integer_biases: bool = True) -> Quantized:
    """`quantized` with the biases of its integer convolutions corrected over `images_HWC`.

    Each channel then has the mean of its float parent, up to the step of a bias. Both graphs run as written. Layers are
    corrected in the order of the graph, so that each is measured behind corrected ones; a convolution without a bias
    gets one, in 32-bit integers unless `integer_biases` is off. Returns `quantized` itself where no convolution is in
    integers.
    """
    graph = copied(quantized.graph)
    parents = {node.name: node for node in quantized.parent.graph.node if node.op_type == "Conv"}
    names = [layer.node.name for layer in _layers(graph) if layer.node.name in parents]
    if not names:
        return quantized
    expected = _means(quantized.parent, [parents[name].output[0] for name in names], images_HWC)
    with task("correct biases", len(names)) as bar:
        for name, mean in zip(names, expected, strict=True):
            layer = next(layer for layer in _layers(graph) if layer.node.name == name)
            (found,) = _means(graph, [layer.node.output[0]], images_HWC)
            _subtract_from_bias(graph, layer, found - mean, integer_biases=integer_biases)
            bar.advance()
    onnx.checker.check_model(graph)
    return replace(quantized, graph=graph)


@dataclass(frozen=True)
class _Layer:
    """A convolution of an INT8 graph with an integer weight."""

    node: onnx.NodeProto
    scale: NDArray[np.float32]
    """Of its bias, by output channel: the scale of its input times those of its weights."""


def _layers(graph: onnx.ModelProto) -> list[_Layer]:
    """The integer convolutions, in the order in which they run."""
    tensors = stored(graph)
    dequantize = {node.output[0]: node for node in graph.graph.node if node.op_type == "DequantizeLinear"}
    found = []
    for node in graph.graph.node:
        image, weight = (dequantize.get(name) for name in [*node.input, "", ""][:2])
        if node.op_type == "Conv" and image is not None and weight is not None and weight.input[0] in tensors:
            width = len(tensors[weight.input[0]])
            scales = np.broadcast_to(tensors[weight.input[1]].astype(np.float32), (width,))
            found.append(_Layer(node, scales * tensors[image.input[1]].astype(np.float32)))
    return found


def _means(model: onnx.ModelProto, names: Sequence[str], images_HWC: Sequence[U8]) -> list[F64]:
    """Means of every channel of the maps `names`, over all pixels of all images; a map may have one axis of pixels."""
    run = tapped(model, names)
    sums: list[F64] = []
    pixels = np.zeros(len(names))
    for image in images_HWC:
        maps = run(image)
        added = [values.sum(axis=(0, *range(2, values.ndim)), dtype=np.float64) for values in maps]
        sums = [one + other for one, other in zip(sums, added, strict=True)] if sums else added
        pixels += [values[:, 0].size for values in maps]
    return [total / count for total, count in zip(sums, pixels, strict=True)]


def _subtract_from_bias(graph: onnx.ModelProto, layer: _Layer, shift: F64, *, integer_biases: bool) -> None:
    """Subtract `shift` from the bias, in the type that it has, or that `integer_biases` says where there is none."""
    node, tensors = layer.node, stored(graph)
    name = node.input[2] if len(node.input) == 3 else ""
    if name in tensors:
        node.input[2] = _store(graph, name, (tensors[name] - shift).astype(np.float32))
        return
    if not name and not integer_biases:
        node.input[:] = [*node.input[:2], f"{node.name}{_CORRECTED}"]
        graph.graph.initializer.append(from_array((-shift).astype(np.float32), node.input[2]))
        return
    dequantize = next((other for other in graph.graph.node if name and other.output[0] == name), None)
    before = np.zeros(len(shift)) if dequantize is None else tensors[dequantize.input[0]].astype(np.float64)
    limits = np.iinfo(np.int32)
    integers = np.clip(np.rint(before - shift / layer.scale), limits.min, limits.max).astype(np.int32)
    if dequantize is None:
        _add_bias(graph, layer, integers)
    else:
        dequantize.input[0] = _store(graph, dequantize.input[0], integers)


def _store(graph: onnx.ModelProto, name: str, array: NDArray[Any]) -> str:
    """Store `array` in place of `name`, or beside it where others read that; return the name it has."""
    uses = sum(other == name for node in graph.graph.node for other in node.input)
    if uses == 1:
        next(tensor for tensor in graph.graph.initializer if tensor.name == name).CopyFrom(from_array(array, name))
        return name
    beside = f"{name}{_CORRECTED}_{uses}"
    graph.graph.initializer.append(from_array(array, beside))
    return beside


def _add_bias(graph: onnx.ModelProto, layer: _Layer, integers: NDArray[np.int32]) -> None:
    """Give a bias to a convolution that has none."""
    node = layer.node
    name = f"{node.name}{_CORRECTED}"
    stored_as = [f"{name}_quantized", f"{name}_scale", f"{name}_zero_point"]
    arrays = integers, layer.scale, np.zeros(len(integers), np.int32)
    graph.graph.initializer.extend(from_array(*pair) for pair in zip(arrays, stored_as, strict=True))
    place = next(i for i, other in enumerate(graph.graph.node) if other.name == node.name)
    dequantize = make_node("DequantizeLinear", stored_as, [name], f"{name}_DequantizeLinear", axis=0)
    node.input[:] = [*node.input[:2], name]
    graph.graph.node.insert(place, dequantize)
