"""The image goes into the first convolution as it is: uint8, no float work at the graph's door.

With the normalisation (x - 128) / 128 the raw bytes are the quantized input exactly, at scale 1/128 and zero point 128.
The exporter's Cast, Sub, Div and the quantizer's QuantizeLinear are therefore an identity, and go.
"""

import numpy as np
import onnx
from onnx import numpy_helper

from export.errors import WorkFailedError
from export.to_onnx import MEAN, STD

SCALE = np.array(1 / STD, dtype=np.float32)
ZERO_POINT = np.array(MEAN, dtype=np.uint8)


def normalised_tensor(graph: onnx.GraphProto) -> str:
    """The name of the normalised image: what Cast, Sub and Div at the door give.

    Raises WorkFailedError when the graph does not begin as `export.to_onnx` writes it.
    """
    name = _door(graph)[-1].output[0]
    return str(name)


def remove_door(model: onnx.ModelProto) -> None:
    """Feed the uint8 image to the DequantizeLinear behind the door, in place.

    `model` is quantized with scale 1/128 and zero point 128 for `normalised_tensor`.
    Raises WorkFailedError when that is not so.
    """
    graph = model.graph
    door = _door(graph)
    quantize = _only_consumer(graph, door[-1].output[0])
    initializers = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    scale, zero_point = (initializers[name] for name in quantize.input[1:3])
    if quantize.op_type != "QuantizeLinear" or scale != SCALE or zero_point != ZERO_POINT:
        raise WorkFailedError("the normalised image is not quantized at scale 1/128 and zero point 128")
    raw, quantized = door[0].input[0], quantize.output[0]
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == quantized:
                node.input[i] = raw
    for node in [*door, quantize]:
        graph.node.remove(node)


def _door(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Cast, Sub and Div between the transposed image and the network."""
    cast = next((node for node in graph.node if node.op_type == "Cast"), None)
    nodes = [cast] if cast is not None else []
    for wanted in ("Sub", "Div"):
        if nodes:
            node = _only_consumer(graph, nodes[-1].output[0])
            if node.op_type == wanted:
                nodes.append(node)
    if len(nodes) != 3:
        raise WorkFailedError("the graph does not begin with Cast, Sub, Div; export it with `compress export`")
    return nodes


def _only_consumer(graph: onnx.GraphProto, tensor: str) -> onnx.NodeProto:
    consumers = [node for node in graph.node if tensor in node.input]
    if len(consumers) != 1:
        raise WorkFailedError(f"{tensor} at the graph's door has {len(consumers)} consumers, expected one")
    return consumers[0]
