"""How fast a plan would be, without exporting it: the parent's graph with weights of the pruned shapes.

Latency depends on shapes, not on values, and an export takes seconds. What is decided here is measured again
on the real graph afterwards.
"""

import numpy as np
import onnx
from onnx import numpy_helper
from torch import nn

from export.runtime import OnnxModel
from export.timing import interleaved

ROUNDS = 15


class LatencyProbe:
    """Times graphs against the float parent, interleaved, at one image size."""

    def __init__(self, parent: onnx.ModelProto, *, size: tuple[int, int], channels: int) -> None:
        self._parent = parent
        self._image = np.random.default_rng(0).integers(0, 256, (1, *size, channels), dtype=np.uint8)
        self._parent_model = OnnxModel(parent.SerializeToString())

    def speedup(self, pruned: nn.Module) -> float:
        """What `measure` would give for `pruned`, from a graph with the shapes of its weights."""
        return self.measure(with_shapes_of(self._parent, pruned))

    def measure(self, child: onnx.ModelProto) -> float:
        """Median latency of the parent over that of `child`."""
        model = OnnxModel(child.SerializeToString())
        taken = interleaved(
            {
                "parent": lambda: self._parent_model.masks(self._image),
                "child": lambda: model.masks(self._image),
            },
            rounds=ROUNDS,
        )
        return taken["parent"].median / taken["child"].median


def with_shapes_of(parent: onnx.ModelProto, pruned: nn.Module) -> onnx.ModelProto:
    """A copy of `parent` whose weights have the shapes (not the values) of `pruned`'s."""
    shapes = {f"model.{name}": tuple(tensor.shape) for name, tensor in pruned.state_dict().items()}
    initializers = {tensor.name: tensor for tensor in parent.graph.initializer}
    new: dict[str, tuple[int, ...]] = {name: shapes[name] for name in initializers if name in shapes}
    for node in parent.graph.node:
        # A bias that BatchNorm folding made has a name of the exporter's own; it is as long as its kernel is wide.
        if node.op_type in ("Conv", "ConvTranspose") and len(node.input) == 3 and node.input[1] in new:
            kernel = new[node.input[1]]
            new[node.input[2]] = (kernel[0] if node.op_type == "Conv" else kernel[1],)
    rng = np.random.default_rng(0)
    child = onnx.ModelProto()
    child.CopyFrom(parent)
    for tensor in child.graph.initializer:
        if tensor.name in new and tuple(tensor.dims) != new[tensor.name]:
            values = rng.normal(0, 0.05, new[tensor.name]).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    del child.graph.value_info[:]
    return child
