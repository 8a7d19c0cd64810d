"""Post-training quantization: a float graph and calibration images become an INT8 graph in QDQ form."""

import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quant_pre_process
from onnxruntime.quantization.operators.direct_q8 import QDQDirect8BitOp
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry

from compress.quantize.calibration import observe
from compress.quantize.door import SCALE, ZERO_POINT, normalised_tensor, remove_door
from compress.quantize.layers import layers_of
from compress.recipe import Calibration
from export.images import U8
from export.machine import SATURATING, instruction_set
from export.manifest import FloatLayer
from export.runtime import LOGITS, optimised_graph

Target = Literal["auto", "vnni", "avx2", "arm"]

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

# The library knows no DepthToSpace; like Slice it only moves values, at the scale that they have.
QDQRegistry["DepthToSpace"] = QDQDirect8BitOp

_LAYOUT = frozenset({"Transpose", "Cast", "ReorderInput", "ReorderOutput"})
_BLOCKED = "_nchwc"
"""A convolution that works on blocks of channels is named by what it gives, and this."""


@dataclass(frozen=True)
class Quantized:
    """An INT8 graph, and what stayed in float."""

    graph: onnx.ModelProto
    parent: onnx.ModelProto
    """The float graph that it was made from, its operators fused as the quantizer found them."""
    float_layers: tuple[FloatLayer, ...]
    seven_bit_weights: bool


def seven_bits(target: Target) -> bool:
    """Whether weights must leave one bit free, because U8S8 products saturate on the machine that will serve."""
    if target == "auto":
        return instruction_set() in SATURATING
    return target == "avx2"


class Quantizer:
    """A float graph, seen with calibration images once, of which INT8 graphs are made.

    U8 activations, S8 weights per channel, QDQ; the uint8 image enters the first convolution as it is.
    """

    def __init__(self, graph: onnx.ModelProto, images_HWC: Iterator[U8], *, target: Target) -> None:
        """`images_HWC` are what the model is given (resized and padded), one at a time."""
        self.parent = _prepared(graph)
        """`graph` with its operators fused as the quantizer wants them."""
        self.layers = layers_of(self.parent)
        self._statistics = observe(self.parent, images_HWC, OP_TYPES)
        self._reduced = seven_bits(target)

    def quantized(self, calibration: Calibration, in_float: Mapping[str, str] | None = None) -> Quantized:
        """An INT8 graph with ranges by `calibration`; the layers that `in_float` names stay as they are, each for its
        reason."""
        in_float = in_float or {}
        left = [layer for layer in self.layers if layer.name in in_float]
        quantizer = QDQQuantizer(
            copied(self.parent),
            per_channel=True,
            reduce_range=self._reduced,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=self._statistics.ranges(calibration),
            nodes_to_quantize=[],
            nodes_to_exclude=[node for layer in left for node in layer.nodes],
            op_types_to_quantize=list(OP_TYPES),
            extra_options={
                # Else a small scale of a bias silently changes the weights beside it.
                "QDQDisableWeightAdjustForInt32Bias": True,
                "TensorQuantOverrides": {
                    normalised_tensor(self.parent.graph): [{"scale": SCALE, "zero_point": ZERO_POINT}],
                },
            },
        )
        quantizer.quantize_model()
        graph: onnx.ModelProto = quantizer.model.model
        remove_door(graph)
        quantizer.model.topological_sort()
        # Shapes that were inferred before the edit may no longer be true.
        del graph.graph.value_info[:]
        onnx.checker.check_model(graph)
        meant = [FloatLayer(layer=layer.name, reason=in_float[layer.name]) for layer in left]
        found = _float_layers(graph, {tensor for layer in left for tensor in layer.tensors})
        return Quantized(graph, self.parent, (*meant, *found), self._reduced)


def with_quantized_logits(model: onnx.ModelProto) -> tuple[onnx.ModelProto, float]:
    """The same graph giving its logits too, and the step of their quantization (0 when they are in float)."""
    argmax = next(node for node in model.graph.node if node.op_type == "ArgMax")
    source = next((node for node in model.graph.node if node.output[0] == argmax.input[0]), None)
    step = 0.0
    if source is not None and source.op_type == "DequantizeLinear":
        scales = {tensor.name: tensor for tensor in model.graph.initializer}
        step = float(numpy_helper.to_array(scales[source.input[1]]))
    both = copied(model)
    if LOGITS not in {output.name for output in both.graph.output}:
        # The float logits before quantization may still carry the name that the exporter gave them.
        for node in both.graph.node:
            node.input[:] = [f"{name}_unquantized" if name == LOGITS else name for name in node.input]
            node.output[:] = [f"{name}_unquantized" if name == LOGITS else name for name in node.output]
        both.graph.node.append(onnx.helper.make_node("Identity", [argmax.input[0]], [LOGITS], name="logits_of_argmax"))
        both.graph.output.append(onnx.helper.make_tensor_value_info(LOGITS, onnx.TensorProto.FLOAT, None))
    return both, step


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """All of it, to be changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _prepared(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Shape inference and the runtime's own fusions; the tool leaves files, so it gets a folder to leave them in."""
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch) / "float.onnx", Path(scratch) / "prepared.onnx"
        onnx.save(graph, str(source))
        quant_pre_process(str(source), str(target), skip_symbolic_shape=True)
        return onnx.load(str(target))


def _float_layers(model: onnx.ModelProto, meant: Collection[str]) -> Iterator[FloatLayer]:
    """Operators that the runtime leaves in float between its integer ones: it found no way to fuse their Q/DQ pairs.

    What makes the tensors in `meant` was left in float on purpose, and is not told here.
    """
    floating: set[str] = set()
    follows = set(meant)
    for node in onnx.load_from_string(optimised_graph(model.SerializeToString())).graph.node:
        if node.op_type == "DequantizeLinear":
            floating.update(node.output)
        elif node.op_type != "QuantizeLinear" and floating.intersection(node.input):
            floating.update(node.output)
            if node.op_type in _LAYOUT:
                if follows.intersection(node.input):
                    follows.update(node.output)
            elif not {name.removesuffix(_BLOCKED) for name in (node.name, *node.output)} & set(meant):
                after = bool(follows.intersection(node.input))
                reason = (
                    "reads a layer that was left in float" if after else f"no integer kernel for {node.op_type} here"
                )
                yield FloatLayer(layer=node.name or node.output[0], reason=reason)
            else:
                follows.update(node.output)
