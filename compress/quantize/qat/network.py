"""The INT8 graph as a torch network, so that training has Q/DQ pairs exactly where the served graph has them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from compress.quantize.biases import roomy
from compress.quantize.graph import has_classes_last, logits_of, stored, with_tensors
from compress.quantize.qat.attributes import refused
from compress.quantize.qat.fake import Activation, rounded_weight, weight_scale
from compress.quantize.qat.operators import OPERATORS
from export.errors import WorkFailedError
from export.graph import CONVOLUTIONS, attributes, leading_to
from export.runtime import IMAGE

_QUANTIZED = "_quantized"
"""What the quantizer appends to the name of a weight or bias that it makes integers of."""
_LAYERS = (*CONVOLUTIONS, "Gemm", "MatMul")


@dataclass(frozen=True)
class _Weight:
    """An integer weight of the graph."""

    parameter: int
    scale: str
    axis: int
    limit: int
    """Largest magnitude: 127, or 64 where one bit is left free."""


@dataclass(frozen=True)
class _Bias:
    """A bias in 32 bits, at the scale of the layer's input times that of its weight."""

    parameter: int
    scale: str
    input_scale: str
    weight: str


class QuantizedNetwork(nn.Module):
    """From normalised images NCHW to logits NKHW, through the operators of an INT8 graph, in order.

    Every QuantizeLinear with its DequantizeLinear is one fake quantization with a learned scale, shared where the graph
    shares the initializer (pooling and resizing keep their input's). Weights are rounded at the scale of their largest
    magnitude; biases, which have 32 bits, are not. `graph` writes all of it back.
    """

    def __init__(self, quantized: onnx.ModelProto, parent: onnx.ModelProto) -> None:
        """`quantized` was made from `parent`, which still has the weights in float.

        Raises WorkFailedError for a graph with an unknown operator, which it names.
        """
        super().__init__()
        self._model = quantized
        self._tensors = stored(quantized)
        self._floats = stored(parent)
        self._parents = {node.name: node for node in parent.graph.node}
        self._makers = {name: node for node in quantized.graph.node for name in node.output}
        self._logits = logits_of(quantized)
        self._has_classes_last = has_classes_last(quantized)
        self._door = self._find_door()
        self._nodes = self._needed()
        self._last_use = {name: i for i, node in enumerate(self._nodes) for name in node.input}
        self._parameters_by_name: dict[str, int] = {}
        self.weights = nn.ParameterList()
        self._rounded: dict[str, _Weight] = {}
        self._biases: dict[str, _Bias] = {}
        self._constants: dict[str, str] = {}
        self._activations: dict[str, int] = {}
        self.activations = nn.ModuleList()
        for node in self._nodes:
            self._read(node)
        image = self._makers[self._door]
        scale, zero_point = (self._tensors[name] for name in image.input[1:3])
        self._image = (float(scale), int(zero_point))

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Logits as the integer graph would give them, if it accumulated in float."""
        scale, zero_point = self._image
        # A network whose first layer has its channels last does not transpose the image.
        entering = images_NCHW.permute(0, 2, 3, 1) if self._makers[self._door].input[0] == IMAGE else images_NCHW
        values: dict[str, Any] = {
            self._door: torch.fake_quantize_per_tensor_affine(entering.float(), scale, zero_point, 0, 255),
            IMAGE: images_NCHW.permute(0, 2, 3, 1),
        }
        for i, node in enumerate(self._nodes):
            inputs = [self._value(name, values) for name in node.input]
            values[node.output[0]] = self._run(node, inputs)
            for name in node.input:
                if self._last_use[name] == i and name != self._logits:
                    values.pop(name, None)
        logits: Tensor = values[self._logits]
        return logits.permute(0, 3, 1, 2) if self._has_classes_last else logits

    def scale_of(self, tensor: str) -> Activation:
        """The fake quantization of the activation `tensor` of the graph."""
        node = next(node for node in self._nodes if node.op_type == "QuantizeLinear" and node.input[0] == tensor)
        activation = self.activations[self._activations[node.input[1]]]
        assert isinstance(activation, Activation)
        return activation

    def graph(self) -> onnx.ModelProto:
        """The INT8 graph with the present weights, biases and scales."""
        new: dict[str, np.ndarray[Any, Any]] = {}
        for name, index in self._activations.items():
            activation = self.activations[index]
            assert isinstance(activation, Activation)
            new[name] = _array(activation.scale)
        scales = self._weight_scales(new)
        for name, weight in self._rounded.items():
            tensor = self.weights[weight.parameter].detach().cpu()
            shape = [-1 if i == weight.axis else 1 for i in range(tensor.ndim)]
            integers = np.rint(tensor.numpy() / scales[name].reshape(shape))
            new[name] = np.clip(integers, -weight.limit, weight.limit).astype(np.int8)
            new[weight.scale] = scales[name]
        for name, bias in self._biases.items():
            input_scale = new.get(bias.input_scale, self._tensors[bias.input_scale])
            scale = (input_scale * scales[bias.weight]).astype(np.float32)
            new[name] = np.rint(_array(self.weights[bias.parameter]) / scale).astype(np.int32)
            new[bias.scale] = scale
        for name, index in self._parameters_by_name.items():
            if name in self._tensors:  # in float in the graph, too
                new[name] = _array(self.weights[index])
        return with_tensors(self._model, new)

    def _weight_scales(self, new: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        """Scales of all rounded weights, by name; those of activations are in `new`."""
        found = {
            name: weight_scale(self.weights[weight.parameter].detach().cpu(), weight.axis, weight.limit).numpy()
            for name, weight in self._rounded.items()
        }
        for bias in self._biases.values():
            input_scale = new.get(bias.input_scale, self._tensors[bias.input_scale])
            found[bias.weight] = roomy(found[bias.weight], _array(self.weights[bias.parameter]), input_scale)
        return found

    def _find_door(self) -> str:
        """The tensor that is the dequantized image."""
        found = [
            str(node.output[0])
            for node in self._model.graph.node
            if node.op_type == "DequantizeLinear"
            and node.input[0] not in self._tensors
            and (node.input[0] == IMAGE or self._makers[node.input[0]].op_type != "QuantizeLinear")
        ]
        if len(found) != 1:
            raise WorkFailedError(f"the graph dequantizes {len(found)} tensors that it did not quantize; expected one")
        return found[0]

    def _needed(self) -> list[onnx.NodeProto]:
        """The nodes between the image and the logits."""
        nodes = [node for node in self._model.graph.node if node.output[0] != self._door]
        return leading_to(nodes, {self._logits})

    def _read(self, node: onnx.NodeProto) -> None:
        if node.op_type == "QuantizeLinear":
            scale, zero_point = (self._tensors[name] for name in node.input[1:3])
            if node.input[1] not in self._activations:
                self._activations[node.input[1]] = len(self.activations)
                self.activations.append(Activation(float(scale), int(zero_point)))
        elif node.op_type == "DequantizeLinear":
            self._read_integers(node)
        else:
            _require_operator(node)
            for place, name in enumerate(node.input):
                if name in self._tensors:
                    self._read_float(node, place, name)

    def _read_integers(self, node: onnx.NodeProto) -> None:
        name, scale = node.input[:2]
        array = self._tensors.get(name)
        if array is None:
            return
        if self._tensors[scale].ndim == 0:
            # A constant that an activation is added to or multiplied by has a range of its own, lies on its grid
            # already, and is not trained. numpy's arithmetic on a single number makes no array.
            steps = array.astype(np.float32) - self._tensors[node.input[2]].astype(np.float32)
            self._constant(name, np.asarray(steps * self._tensors[scale]))
            return
        if array.dtype == np.int32:
            reader = next(reader for reader in self._model.graph.node if node.output[0] in reader.input)
            # For a layer that is used twice the quantizer makes two biases of one, each with its own name and scale.
            parameter = self._parameter(self._parents[reader.name].input[2])
            input_scale = self._makers[reader.input[0]].input[1]
            weight = self._makers[reader.input[1]].input[0]
            self._biases[name] = _Bias(parameter, scale, input_scale, weight)
            return
        parameter = self._parameter(name.removesuffix(_QUANTIZED))
        axis = attributes(node).get("axis", 0)
        tensor = self.weights[parameter].detach()
        unit = weight_scale(tensor, axis, 1) / torch.from_numpy(np.atleast_1d(self._tensors[scale]).copy())
        whole = tensor.abs().amax(dim=[i for i in range(tensor.ndim) if i != axis]) > 0
        limit = round(unit[whole].median().item()) if whole.any() else 127
        self._rounded[name] = _Weight(parameter, scale, axis, limit)

    def _read_float(self, node: onnx.NodeProto, place: int, name: str) -> None:
        array = self._tensors[name]
        if node.op_type in _LAYERS and place and array.dtype == np.float32:
            self._parameter(name)
        elif name not in self._constants:
            self._constant(name, array)

    def _constant(self, name: str, array: np.ndarray[Any, Any]) -> None:
        self._constants[name] = f"constant_{len(self._constants)}"
        self.register_buffer(self._constants[name], _tensor(array), persistent=False)

    def _parameter(self, name: str) -> int:
        if name not in self._parameters_by_name:
            self._parameters_by_name[name] = len(self.weights)
            self.weights.append(nn.Parameter(_tensor(self._floats[name])))
        return self._parameters_by_name[name]

    def _value(self, name: str, values: Mapping[str, Any]) -> Any:
        if not name:
            return None
        if name in values:
            return values[name]
        if name in self._constants:
            return getattr(self, self._constants[name])
        index = self._parameters_by_name.get(name)
        return None if index is None else self.weights[index]

    def _run(self, node: onnx.NodeProto, inputs: Sequence[Any]) -> Any:
        if node.op_type == "QuantizeLinear":
            return self.activations[self._activations[node.input[1]]](inputs[0])
        if node.op_type == "DequantizeLinear":
            return self._dequantized(node, inputs)
        return OPERATORS[node.op_type](*inputs, **attributes(node))

    def _dequantized(self, node: onnx.NodeProto, inputs: Sequence[Any]) -> Any:
        name = node.input[0]
        if name in self._rounded:
            weight = self._rounded[name]
            return rounded_weight(self.weights[weight.parameter], weight.axis, weight.limit)
        if name in self._biases:
            return self.weights[self._biases[name].parameter]
        return inputs[0]


def require_trainable(quantized: onnx.ModelProto, parent: onnx.ModelProto) -> None:
    """Raises WorkFailedError, naming the operator, when `quantized`, made from `parent`, cannot be trained through."""
    QuantizedNetwork(quantized, parent)


def _require_operator(node: onnx.NodeProto) -> None:
    is_known = node.op_type in OPERATORS
    asked = refused(node) if is_known else []
    if asked or not is_known:
        how = f" with {', '.join(asked)}" if asked else ""
        raise WorkFailedError(
            f"{node.op_type} ({node.name or node.output[0]}){how} cannot be trained through as it is in the INT8 "
            "graph; use --mode ptq"
        )


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(array.copy())


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    return tensor.detach().cpu().numpy().astype(np.float32)
