"""What decides how long a layer takes: its kind, and its widths."""

from dataclasses import dataclass

from export.graph import CONVOLUTIONS
from export.manifest import Precision

Pair = tuple[int, int]

DOOR = "Door"
"""Where the image enters the graph: from uint8 NHWC to normalised float NCHW. In INT8 there is no such work."""

TO_PLAIN = "ToPlain"
TO_BLOCKED = "ToBlocked"
"""Float convolutions run on channels in blocks of 8 or 16; for operators that cannot, tensors are reordered to plain
NCHW, and back."""

OTHER = "Other"
"""An operator that is not modelled: it counts as 0, and `unmodelled` names it."""


_FREE_IN_INTEGERS = (DOOR, TO_PLAIN, TO_BLOCKED, "Relu", "Clip")
"""Integers have one layout, the image is already quantized, and quantization itself clips where a Relu does."""


@dataclass(frozen=True)
class LayerKind:
    """Everything about a layer but its widths."""

    op: str
    """ONNX's name, or one of the four above."""
    size: Pair
    """Height and width of what it reads."""
    size_out: Pair
    kernel: Pair = (1, 1)
    """For DepthToSpace, the block."""
    strides: Pair = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: Pair = (1, 1)
    groups: int = 1
    """0 means as many as channels: depthwise."""
    activation: str = ""
    """One that the runtime computes with the convolution, so it is no layer of its own."""
    sum: bool = False
    """A convolution that adds another tensor to its result."""
    variant: str = ""
    """Mode of a Resize; what the other operand of an Add or Mul is; the operator that is not modelled."""
    inputs: int = 1

    def takes_time(self, precision: Precision) -> bool:
        """Whether there is anything to measure; a layer without counts as 0."""
        return self.op != OTHER and not (precision == "int8" and self.op in _FREE_IN_INTEGERS)

    @property
    def mixes(self) -> bool:
        """Whether its channels in and out are chosen independently."""
        return self.op in CONVOLUTIONS and self.groups > 0

    def __str__(self) -> str:
        words = [self.variant if self.op == OTHER else self.op]
        if self.kernel != (1, 1) or self.op in CONVOLUTIONS:
            words.append(_by(self.kernel))
        if self.groups != 1:
            words.append("depthwise" if self.groups == 0 else f"in {self.groups} groups")
        if self.strides != (1, 1):
            words.append(f"stride {self.strides[0]}")
        words += [word for word in (self.activation, "sum" if self.sum else "") if word]
        return f"{' '.join(words)} at {_by(self.size)}"


@dataclass(frozen=True)
class LayerKey:
    """A layer with its widths: what a table is asked for. A kind that does not mix has one width, given twice."""

    kind: LayerKind
    channels_in: int
    channels_out: int

    def macs(self) -> int:
        """Multiply-accumulates of a convolution; 0 for everything else."""
        if self.kind.op not in CONVOLUTIONS:
            return 0
        height, width = self.kind.size_out if self.kind.op == "Conv" else self.kind.size
        each = self.channels_in // (self.kind.groups or self.channels_in) * self.channels_out
        return height * width * each * self.kind.kernel[0] * self.kind.kernel[1]

    def __str__(self) -> str:
        return f"{self.kind}, {self.channels_in} -> {self.channels_out} channels"


def _by(pair: Pair) -> str:
    return f"{pair[0]}x{pair[1]}"
