"""Post-training quantization: a float graph and calibration images become an INT8 graph in QDQ form."""

import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quant_pre_process
from onnxruntime.quantization.operators.direct_q8 import QDQDirect8BitOp
from onnxruntime.quantization.registry import QDQRegistry

from compress.quantize.biases import RoomyQuantizer
from compress.quantize.calibration import observe
from compress.quantize.door import SCALE, ZERO_POINT, normalised_tensor, remove_door
from compress.quantize.equalise import equalised
from compress.quantize.graph import SIZES, has_classes_last, is_of_a_norm, is_transposed_in_groups, logits_of, on_sizes
from compress.quantize.layers import layers_of
from compress.quantize.targets import scheme_of
from compress.quantize.tensorrt import with_float_ends, without_needless_pairs
from compress.settings.quantize import Calibration, Target
from export.errors import UsageError
from export.graph import copied
from export.images import U8
from export.manifest import FloatLayer
from export.profiling import BLOCKED, optimised_graph
from export.runtime import LOGITS

OP_TYPES = (
    "Conv",
    "ConvTranspose",
    "Gemm",
    "MatMul",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Resize",
    "Concat",
    "Relu",
    "Clip",
    "LeakyRelu",
    "Sigmoid",
    "Add",
    "Mul",
    "Flatten",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "ArgMax",
    "DepthToSpace",
    "Slice",
)
"""What the runtime has integer kernels for; other operators stay in float."""

# The library does not know DepthToSpace; like Slice it only moves values, which keep their scale.
QDQRegistry["DepthToSpace"] = QDQDirect8BitOp

_ON_SIZES = "computes with the size of the image"
_LAYOUT = frozenset({"Transpose", "Cast", "Identity", "ReorderInput", "ReorderOutput"})


@dataclass(frozen=True)
class Quantized:
    """An INT8 graph, and what stayed in float."""

    graph: onnx.ModelProto
    parent: onnx.ModelProto
    """The float graph that it was made from, its operators fused as the quantizer found them."""
    float_layers: tuple[FloatLayer, ...]
    seven_bit_weights: bool


class Quantizer:
    """Makes INT8 graphs of a float graph, which is run on the calibration images once.

    QDQ, weights per channel, in the integers that the target takes (`targets.py`): by default U8 activations and S8
    weights, and the uint8 image enters the first convolution as it is.
    """

    def __init__(
        self,
        graph: onnx.ModelProto,
        images_HWC: Iterator[U8],
        *,
        target: Target,
        equalise: bool = False,
        in_float: Mapping[str, str] | None = None,
    ) -> None:
        """`images_HWC` are what the model is given (resized and padded), one at a time. With `equalise` the channels of
        `graph` are first brought to similar ranges, where that can be done. `in_float` names the layers that stay in
        float in every graph, each with the reason.
        """
        prepared = _prepared(graph)
        balanced = equalised(prepared) if equalise else None
        self.is_equalised = balanced is not None
        self.parent = prepared if balanced is None else balanced
        """`graph` with its operators fused as the quantizer wants them."""
        self._always_float = in_float or {}
        layers = layers_of(self.parent)
        self._fixed = [layer for layer in layers if layer.name in self._always_float]
        self._on_sizes = {node.name for node in on_sizes(self.parent)}
        # A variance is a small difference of large squares: in 8 bits it may be negative, and then has no root. For a
        # transposed convolution in groups there is no integer kernel, and the library counts its channels wrongly.
        self._excluded = [
            *(node.name for node in self.parent.graph.node if is_of_a_norm(node) or is_transposed_in_groups(node)),
            *self._on_sizes,
        ]
        self.layers = tuple(layer for layer in layers if layer not in self._fixed)
        """Those that can be quantized, or left in float."""
        self._statistics = observe(self.parent, images_HWC, OP_TYPES)
        self._scheme = scheme_of(target)

    def quantized(self, calibration: Calibration, in_float: Mapping[str, str] | None = None) -> Quantized:
        """An INT8 graph with ranges by `calibration`; the layers that `in_float` names stay in float, each with the
        reason."""
        reasons = {**self._always_float, **(in_float or {})}
        left = [*self._fixed, *(layer for layer in self.layers if layer.name in reasons)]
        scheme = self._scheme
        quantizer = RoomyQuantizer(
            copied(self.parent),
            per_channel=True,
            reduce_range=scheme.seven_bits == "all layers",
            weight_qType=QuantType.QInt8,
            activation_qType=scheme.activations,
            tensors_range=self._statistics.ranges(calibration),
            nodes_to_quantize=[],
            nodes_to_exclude=[*self._excluded, *(node for layer in left for node in layer.nodes)],
            op_types_to_quantize=list(OP_TYPES),
            extra_options={
                "ActivationSymmetric": scheme.signed,
                "QuantizeBias": scheme.integer_biases,
                "TensorQuantOverrides": dict(self._overrides()),
            },
        )
        quantizer.quantize_model()
        graph: onnx.ModelProto = quantizer.model.model
        if not scheme.signed:
            remove_door(graph)
        _measure_integers(graph)
        quantizer.model.topological_sort()
        if scheme.signed:
            graph = with_float_ends(without_needless_pairs(graph))
        # Shapes that were inferred before the edit may no longer be true.
        del graph.graph.value_info[:]
        onnx.checker.check_model(graph)
        meant = [FloatLayer(layer=layer.name, reason=reasons[layer.name]) for layer in left]
        tensors = {tensor for layer in left for tensor in layer.tensors}
        found = _float_layers(graph, tensors) if scheme.by_cpu_provider else _unquantized(graph)
        told = [
            FloatLayer(layer=layer.layer, reason=_ON_SIZES) if layer.layer in self._on_sizes else layer
            for layer in found
        ]
        return Quantized(graph, self.parent, (*meant, *told), scheme.seven_bits == "all layers")

    def _overrides(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """The quantizer's options for single tensors."""
        signed = self._scheme.signed
        zero_point = np.array(0, np.int8) if signed else ZERO_POINT
        yield normalised_tensor(self.parent.graph), [{"scale": SCALE, "zero_point": zero_point}]
        if self._scheme.seven_bits == "first layer":
            for weight in _first_weights(self.parent):
                yield weight, [{"axis": 0, "reduce_range": True}]


def with_quantized_logits(model: onnx.ModelProto) -> tuple[onnx.ModelProto, float]:
    """The same graph with its logits as another output, and the step of their quantization (0 when in float)."""
    makers = {node.output[0]: node for node in model.graph.node}
    source = makers.get(logits_of(model))
    while source is not None and source.op_type == "Identity":
        source = makers.get(source.input[0])
    step = 0.0
    if source is not None and source.op_type == "DequantizeLinear":
        scales = {tensor.name: tensor for tensor in model.graph.initializer}
        step = float(numpy_helper.to_array(scales[source.input[1]]))
    both = copied(model)
    if LOGITS not in {output.name for output in both.graph.output}:
        # The float logits may still have the name that the exporter gave them, whether they are quantized next or not.
        for node in both.graph.node:
            node.input[:] = [f"{name}_unquantized" if name == LOGITS else name for name in node.input]
            node.output[:] = [f"{name}_unquantized" if name == LOGITS else name for name in node.output]
        last = has_classes_last(both)
        node = onnx.helper.make_node(
            "Transpose" if last else "Identity", [logits_of(both)], [LOGITS], "logits_of_argmax"
        )
        if last:
            node.attribute.append(onnx.helper.make_attribute("perm", (0, 3, 1, 2)))
        both.graph.node.append(node)
        both.graph.output.append(onnx.helper.make_tensor_value_info(LOGITS, onnx.TensorProto.FLOAT, None))
    return both, step


def _prepared(graph: onnx.ModelProto) -> onnx.ModelProto:
    """`graph` with inferred shapes, the runtime's own fusions, and a name for every node; the tool leaves files, so it
    gets a folder to leave them in."""
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch) / "float.onnx", Path(scratch) / "prepared.onnx"
        onnx.save(graph, str(source))
        quant_pre_process(str(source), str(target), skip_symbolic_shape=True)
        prepared = onnx.load(str(target))
    for node in prepared.graph.node:
        # Nodes inside a norm have no name, and need one to be left in float.
        node.name = node.name or node.output[0]
    return prepared


def _measure_integers(model: onnx.ModelProto) -> None:
    """Take the size of a map from its integers: the runtime would dequantize a whole map to ask for its size."""
    integers = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    for node in model.graph.node:
        if node.op_type in SIZES and node.input[0] in integers:
            node.input[0] = integers[node.input[0]]


def _first_weights(model: onnx.ModelProto) -> Iterator[str]:
    """The weight of the first convolution; if that only scales each channel, as the normalisation of a model from
    elsewhere does, also those of the convolutions that read it.

    Raises UsageError for a graph without a convolution.
    """
    layers = [layer for layer in layers_of(model) if layer.operator == "Conv"]
    if not layers:
        raise UsageError(
            "the model has no convolution, and --for openvino gives 7 bits to the weights of the first; use --for auto"
        )
    nodes, shapes = {node.name: node for node in model.graph.node}, {t.name: t.dims for t in model.graph.initializer}
    first = [layers[0]]
    for layer in first:
        weight = nodes[layer.nodes[0]].input[1]
        yield weight
        if all(side == 1 for side in shapes.get(weight, (0, 0))[1:]):
            first += [other for other in layers if other.name in layer.readers and other not in first]


def _float_layers(model: onnx.ModelProto, meant: Collection[str]) -> Iterator[FloatLayer]:
    """Operators that the runtime leaves in float between its integer ones: it found no way to fuse their Q/DQ pairs.

    What makes the tensors in `meant` was left in float on purpose, and is not listed here.
    """
    floating: set[str] = set()
    follows = set(meant)
    for node in onnx.load_from_string(optimised_graph(model.SerializeToString())).graph.node:
        if node.op_type == "DequantizeLinear":
            floating.update(node.output)
        elif node.op_type not in ("QuantizeLinear", *SIZES) and floating.intersection(node.input):
            floating.update(node.output)
            if node.op_type in _LAYOUT:
                if follows.intersection(node.input):
                    follows.update(node.output)
            elif not {name.removesuffix(BLOCKED) for name in (node.name, *node.output)} & set(meant):
                after = bool(follows.intersection(node.input))
                reason = (
                    "reads a layer that was left in float" if after else f"no integer kernel for {node.op_type} here"
                )
                yield FloatLayer(layer=node.name or node.output[0], reason=reason)
            else:
                follows.update(node.output)


def _unquantized(model: onnx.ModelProto) -> Iterator[FloatLayer]:
    """Operators on dequantized tensors that the quantizer knows no integer form of."""
    floating: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            floating.update(node.output)
        elif node.op_type not in (*OP_TYPES, "QuantizeLinear", *_LAYOUT, *SIZES) and floating.intersection(node.input):
            floating.update(node.output)
            yield FloatLayer(layer=node.name or node.output[0], reason=f"{node.op_type} is not quantized")
