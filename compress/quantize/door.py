"""Remove the graph's door, its float operators on the image, so that the first convolution reads the uint8 image.

With the normalisation (x - 128) / 128 the raw bytes are the quantized input exactly, at scale 1/128 and zero point 128.
The exporter's Cast, Sub, Div and the quantizer's QuantizeLinear are therefore an identity, and are removed.
"""

import numpy as np
import onnx
from onnx import numpy_helper

from export.errors import WorkFailedError
from export.runtime import IMAGE
from export.to_onnx import MEAN, STD

SCALE = np.array(1 / STD, dtype=np.float32)
ZERO_POINT = np.array(MEAN, dtype=np.uint8)


def normalised_tensor(graph: onnx.GraphProto) -> str:
    """The name of the normalised image, which Cast, Sub and Div at the door give.

    Raises WorkFailedError when the graph does not begin as `export.to_onnx` writes it.
    """
    name = _door(graph)[-1].output[0]
    return str(name)


def remove_door(model: onnx.ModelProto) -> None:
    """Replace the door by a DequantizeLinear that reads the uint8 image; changes `model`.

    `normalised_tensor` has to be quantized with scale 1/128 and zero point 128, or all that reads it left in float:
    dequantizing the image then gives the normalised image, to the last bit.
    Raises WorkFailedError when that is not so.
    """
    graph = model.graph
    door = _door(graph)
    normalised, raw = door[-1].output[0], door[0].input[0]
    quantize = next((node for node in _consumers(graph, normalised) if node.op_type == "QuantizeLinear"), None)
    if quantize is None:
        _append_dequantize(graph, raw, normalised)
    else:
        initializers = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        scale, zero_point = (initializers[name] for name in quantize.input[1:3])
        if scale != SCALE or zero_point != ZERO_POINT:
            raise WorkFailedError("the normalised image is not quantized at scale 1/128 and zero point 128")
        dequantize = _consumers(graph, quantize.output[0])[0]
        _read_instead(graph, quantize.output[0], raw)
        graph.node.remove(quantize)
        _read_instead(graph, normalised, dequantize.output[0])
    for node in door:
        graph.node.remove(node)


def _append_dequantize(graph: onnx.GraphProto, raw: str, normalised: str) -> None:
    names = [f"{normalised}_scale", f"{normalised}_zero_point"]
    for name, value in zip(names, (SCALE, ZERO_POINT), strict=True):
        if name not in {tensor.name for tensor in graph.initializer}:
            graph.initializer.append(numpy_helper.from_array(value, name))
    output = f"{normalised}_DequantizeLinear_Output"
    _read_instead(graph, normalised, output)
    graph.node.append(onnx.helper.make_node("DequantizeLinear", [raw, *names], [output], name=f"{normalised}_door"))


def _read_instead(graph: onnx.GraphProto, tensor: str, other: str) -> None:
    for node in _consumers(graph, tensor):
        node.input[:] = [other if name == tensor else name for name in node.input]


def _door(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Cast, Sub and Div between the transposed image and the network.

    They are found by following the image: an inlined norm begins with a Cast as well, and may be listed before these.
    """
    transpose = _reader(graph, IMAGE, "Transpose")
    cast = _reader(graph, IMAGE if transpose is None else transpose.output[0], "Cast")
    nodes = [cast] if cast is not None else []
    for wanted in ("Sub", "Div"):
        if nodes:
            node = _only_consumer(graph, nodes[-1].output[0])
            if node.op_type == wanted:
                nodes.append(node)
    if len(nodes) != 3:
        raise WorkFailedError("the graph does not begin with Cast, Sub, Div; export it with `compress export`")
    return nodes


def _reader(graph: onnx.GraphProto, tensor: str, operator: str) -> onnx.NodeProto | None:
    """The first `operator` that reads `tensor`, which others may read as well: Shape reads the image, for one."""
    return next((node for node in _consumers(graph, tensor) if node.op_type == operator), None)


def _only_consumer(graph: onnx.GraphProto, tensor: str) -> onnx.NodeProto:
    consumers = _consumers(graph, tensor)
    if len(consumers) != 1:
        raise WorkFailedError(f"{tensor} at the graph's input has {len(consumers)} consumers, expected one")
    return consumers[0]


def _consumers(graph: onnx.GraphProto, tensor: str) -> list[onnx.NodeProto]:
    return [node for node in graph.node if tensor in node.input]
