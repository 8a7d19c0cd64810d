"""Post-training quantization: a float graph and calibration images become an INT8 graph in QDQ form."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quant_pre_process
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from compress.quantize.calibration import Method, activation_ranges
from compress.quantize.door import SCALE, ZERO_POINT, normalised_tensor, remove_door
from export.images import U8
from export.machine import SATURATING, instruction_set
from export.manifest import FloatLayer
from export.runtime import LOGITS, optimised_graph

Target = Literal["auto", "vnni", "avx2", "arm"]

OP_TYPES = (
    "Conv",
    "ConvTranspose",
    "MaxPool",
    "AveragePool",
    "Resize",
    "Concat",
    "Relu",
    "Clip",
    "Add",
    "Mul",
    "ArgMax",
)
"""What the runtime has integer kernels for; other operators stay in float."""

_LAYOUT = frozenset({"Transpose", "Cast"})


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


def quantize_graph(graph: onnx.ModelProto, images_HWC: Iterator[U8], *, method: Method, target: Target) -> Quantized:
    """U8 activations, S8 weights per channel, QDQ; the uint8 image enters the first convolution as it is."""
    parent = _prepared(graph)
    ranges = activation_ranges(parent, images_HWC, method, OP_TYPES)
    reduced = seven_bits(target)
    quantizer = QDQQuantizer(
        _copy(parent),
        per_channel=True,
        reduce_range=reduced,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=ranges,
        nodes_to_quantize=[],
        nodes_to_exclude=[],
        op_types_to_quantize=list(OP_TYPES),
        extra_options={
            # Else a small scale of a bias silently changes the weights beside it.
            "QDQDisableWeightAdjustForInt32Bias": True,
            "TensorQuantOverrides": {
                normalised_tensor(parent.graph): [{"scale": SCALE, "zero_point": ZERO_POINT}],
            },
        },
    )
    quantizer.quantize_model()
    quantized: onnx.ModelProto = quantizer.model.model
    remove_door(quantized)
    quantizer.model.topological_sort()
    # Shapes that were inferred before the edit may no longer be true.
    del quantized.graph.value_info[:]
    onnx.checker.check_model(quantized)
    return Quantized(quantized, parent, tuple(_float_layers(quantized)), reduced)


def with_quantized_logits(model: onnx.ModelProto) -> tuple[onnx.ModelProto, float]:
    """The same graph giving its logits too, and the step of their quantization (0 when they are in float)."""
    argmax = next(node for node in model.graph.node if node.op_type == "ArgMax")
    source = next((node for node in model.graph.node if node.output[0] == argmax.input[0]), None)
    step = 0.0
    if source is not None and source.op_type == "DequantizeLinear":
        scales = {tensor.name: tensor for tensor in model.graph.initializer}
        step = float(numpy_helper.to_array(scales[source.input[1]]))
    both = _copy(model)
    if LOGITS not in {output.name for output in both.graph.output}:
        # The float logits before quantization may still carry the name that the exporter gave them.
        for node in both.graph.node:
            node.input[:] = [f"{name}_unquantized" if name == LOGITS else name for name in node.input]
            node.output[:] = [f"{name}_unquantized" if name == LOGITS else name for name in node.output]
        both.graph.node.append(onnx.helper.make_node("Identity", [argmax.input[0]], [LOGITS], name="logits_of_argmax"))
        both.graph.output.append(onnx.helper.make_tensor_value_info(LOGITS, onnx.TensorProto.FLOAT, None))
    return both, step


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
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


def _float_layers(model: onnx.ModelProto) -> Iterator[FloatLayer]:
    """Operators that the runtime leaves in float between its integer ones: it found no way to fuse their Q/DQ pairs."""
    floating: set[str] = set()
    for node in onnx.load_from_string(optimised_graph(model.SerializeToString())).graph.node:
        if node.op_type == "DequantizeLinear":
            floating.update(node.output)
        elif node.op_type != "QuantizeLinear" and floating.intersection(node.input):
            floating.update(node.output)
            if node.op_type not in _LAYOUT:
                yield FloatLayer(layer=node.name or node.output[0], reason=f"no integer kernel for {node.op_type} here")
