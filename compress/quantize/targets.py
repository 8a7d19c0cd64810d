"""What INT8 is made for (`--for`): which integers a runtime takes, and where it wants none.

The CPU provider of ONNX Runtime (auto, vnni, avx2, arm) is fastest on unsigned activations, signed weights and biases
of 32 bits. A target is here when this machine runs its kernels. A machine with AMX has VNNI and AVX2, too, but
multiplies by AMX, so its times say nothing about `vnni` and `avx2`; nor do those of AVX-512 without VNNI. For a target
that is not here nothing is decided by timing: the graph is made as the target is documented to take it, and is scored,
proven and verified through the CPU provider.

TensorRT: activations and weights are signed, every zero point is 0, weights per output channel, biases in float, since
DequantizeLinear takes 8 bits; uint8 is for inputs and outputs only, next to a Cast from or to float. Source: NVIDIA
TensorRT documentation, "Explicit Quantization" and `DataType`.

OpenVINO: what its quantizer NNCF emits for a CPU with the preset "mixed": unsigned asymmetric activations (of a ReLU,
zero point 0), signed symmetric weights per channel, biases in float, and 7 bits for the weights of the first layer
alone (OverflowFix.FIRST_LAYER), whose input is spread over all of its range, for processors without VNNI. Source:
openvinotoolkit/nncf, `advanced_parameters.py`; openvinotoolkit/openvino, `SaturationIssue.md`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from onnxruntime.quantization import QuantType

from compress.settings.quantize import Target
from export.machine import SATURATING, InstructionSet, instruction_set

_KERNELS: Mapping[Target, frozenset[InstructionSet]] = {
    "vnni": frozenset({"avx512_vnni", "avx_vnni"}),
    "avx2": frozenset({"avx2"}),
    "arm": frozenset({"arm_i8mm", "arm_dotprod"}),
}
"""For each processor that `--for` names, the instruction sets of the machines whose times count for it."""


@dataclass(frozen=True)
class Scheme:
    """The integers of a target."""

    seven_bits: Literal["no layer", "first layer", "all layers"]
    """The layers whose weights leave one bit free."""
    signed: bool = False
    """Whether activations are signed as weights are, with zero points of 0."""
    integer_biases: bool = True
    by_cpu_provider: bool = True
    """Whether the target's runtime is the one that runs graphs here, on whatever processor."""
    is_here: bool = True
    """Whether graphs run here as they will when served: only then does a time measured here mean anything."""

    @property
    def saturates_here(self) -> bool:
        """Whether products of its 8 bits may saturate on this machine, though not on the target."""
        return self.seven_bits != "all layers" and instruction_set() in SATURATING

    @property
    def activations(self) -> QuantType:
        """The type of activations."""
        return QuantType.QInt8 if self.signed else QuantType.QUInt8


def scheme_of(target: Target) -> Scheme:
    """The scheme of a target of `--for`; auto is this machine."""
    if target == "tensorrt":
        return Scheme("no layer", signed=True, integer_biases=False, by_cpu_provider=False, is_here=False)
    if target == "openvino":
        return Scheme("first layer", integer_biases=False, by_cpu_provider=False, is_here=False)
    here = instruction_set()
    saturates = target == "avx2" or (target == "auto" and here in SATURATING)
    return Scheme("all layers" if saturates else "no layer", is_here=target == "auto" or here in _KERNELS[target])
