"""Options of a runtime session, by name; importing them does not load the runtime."""

from enum import StrEnum
from typing import Literal

MemoryPool = Literal["keep", "shrink", "off"]
"""What happens to memory between runs: keep all that was ever needed, give back what a run larger than usual took, or
ask the system anew for every tensor."""


class Provider(StrEnum):
    """What runs a graph: ONNX Runtime's execution providers."""

    CPU = "cpu"
    OPENVINO = "openvino"
    CUDA = "cuda"
    TENSORRT = "tensorrt"
