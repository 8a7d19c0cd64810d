"""Cross-layer equalisation: bring the channels of an activation to similar ranges without changing the answers.

A convolution that gives a channel s times smaller, and readers that multiply it by s, are the same network in float,
because the operators between them let a positive factor of a channel through. In 8 bits they are not: an activation has
one scale for all its channels, and one that is a thousand times larger than the others leaves these no steps. Source:
Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction" (arXiv:1906.04721), 4.1.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from compress.quantize.graph import channels_of, stored, with_tensors
from export.graph import attributes

_SWEEPS = 50
_SETTLED = 1e-3
"""The search ends with a sweep over all layers in which no factor is further from 1."""
_LETS_THROUGH = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Resize", "Concat")
"""f(s x) = s f(x) for s > 0, channel by channel. A ReLU6 is not among them: its 6 would have to scale as well."""

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class _Reader:
    """A convolution, and where a layer's channels begin among those that it reads."""

    node: onnx.NodeProto
    start: int


@dataclass(frozen=True)
class _Pair:
    """A convolution and all that read it."""

    node: onnx.NodeProto
    readers: tuple[_Reader, ...]


def equalised(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """A float graph that gives the same answers up to float rounding; None where no layer can be equalised.

    Channel i of a layer is divided by s_i = sqrt(r1_i r2_i) / r2_i, where r1_i is the largest weight that makes it and
    r2_i the largest with which any reader multiplies it. Sweeps over all layers repeat until nothing moves, because
    each layer changes the r1 of its readers. A layer is left alone when its result is an output, when anything but
    convolutions reads it, when an operator on the way does not let a factor through, and when its weights are shared.
    `model` is not changed.
    """
    graph = _Graph(model)
    pairs = [pair for node in model.graph.node if (pair := graph.pair(node)) is not None]
    if not pairs:
        return None
    for _ in range(_SWEEPS):
        if max([graph.equalise(pair) for pair in pairs]) < _SETTLED:
            break
    return with_tensors(model, {name: array.astype(graph.types[name]) for name, array in graph.weights.items()})


class _Graph:
    """Who reads whom, and the weights of the convolutions that may be scaled."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._outputs = {output.name for output in model.graph.output}
        self._channels = channels_of(model)
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in dict.fromkeys(node.input):
                self._readers.setdefault(name, []).append(node)
        found = stored(model)
        uses = Counter(name for node in model.graph.node for name in node.input)
        own = {name for name in found if uses[name] == 1 and name not in self._outputs}
        self._scalable = {
            node.output[0] for node in model.graph.node if node.op_type == "Conv" and own.issuperset(_weights(node))
        }
        names = [name for node in model.graph.node if node.output[0] in self._scalable for name in _weights(node)]
        self.types = {name: found[name].dtype for name in names}
        self.weights: dict[str, F64] = {name: found[name].astype(np.float64) for name in names}
        """In double precision, so that many sweeps round no more than one."""

    def pair(self, node: onnx.NodeProto) -> _Pair | None:
        """`node` and its readers, if they and all between them can be scaled."""
        if node.output[0] not in self._scalable:
            return None
        readers = self._reached(node.output[0], 0)
        return _Pair(node, tuple(readers)) if readers else None

    def equalise(self, pair: _Pair) -> float:
        """Scale once; return the largest distance of a factor from 1."""
        weight = self.weights[pair.node.input[1]]
        made = np.abs(weight).reshape(len(weight), -1).max(axis=1)
        read = np.max([self._taken(reader, len(weight)) for reader in pair.readers], axis=0)
        # A channel whose weights are all zero on either side cannot be equalised.
        alive = (made > 0) & (read > 0)
        factors = np.ones(len(weight))
        factors[alive] = np.sqrt(made[alive] * read[alive]) / read[alive]
        for name in _weights(pair.node):
            self.weights[name] /= factors.reshape(-1, *[1] * (self.weights[name].ndim - 1))
        for reader in pair.readers:
            grouped = self._grouped(reader.node)
            into = np.ones(len(grouped) * grouped.shape[2])
            into[reader.start : reader.start + len(factors)] = factors
            # `grouped` is a view, so this scales the weight itself.
            grouped *= into.reshape(len(grouped), 1, -1, *[1] * (grouped.ndim - 3))
        return float(np.abs(factors - 1).max())

    def _taken(self, reader: _Reader, width: int) -> F64:
        """The largest weight with which `reader` multiplies each of the `width` channels of a layer."""
        grouped = np.abs(self._grouped(reader.node))
        found: F64 = grouped.max(axis=(1, *range(3, grouped.ndim))).reshape(-1)
        return found[reader.start : reader.start + width]

    def _grouped(self, node: onnx.NodeProto) -> F64:
        """A view of the weight as [group, out / group, in / group, ...]."""
        weight = self.weights[node.input[1]]
        groups = int(attributes(node).get("group", 1))
        return weight.reshape(groups, len(weight) // groups, *weight.shape[1:])

    def _reached(self, tensor: str, start: int) -> list[_Reader] | None:
        """All convolutions that read `tensor`, where a layer begins at channel `start`; None if anything else does."""
        if tensor in self._outputs:
            return None
        found: list[_Reader] = []
        for node in self._readers.get(tensor, ()):
            if node.output[0] in self._scalable and tensor == node.input[0]:
                found.append(_Reader(node, start))
                continue
            starts = self._starts(node, tensor)
            if starts is None:
                return None
            for at in starts:
                further = self._reached(node.output[0], start + at)
                if further is None:
                    return None
                found += further
        return found

    def _starts(self, node: onnx.NodeProto, tensor: str) -> Sequence[int] | None:
        """Where the channels of `tensor` begin in the result of `node`, which lets a factor through; None where it does
        not."""
        given = attributes(node)
        fills = given.get("coordinate_transformation_mode") == "tf_crop_and_resize"
        if node.op_type not in _LETS_THROUGH or fills:
            return None
        if node.op_type != "Concat":
            return (0,) if node.input[0] == tensor else None
        widths = [self._channels.get(name, 0) for name in node.input]
        if given["axis"] != 1 or not all(widths):
            return None
        return [sum(widths[:i]) for i, name in enumerate(node.input) if name == tensor]


def _weights(node: onnx.NodeProto) -> list[str]:
    """The names of a convolution's weight and, if it has one, its bias."""
    return [name for name in node.input[1:] if name]
