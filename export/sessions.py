"""What a session of the runtime can be asked for, in words; nothing is loaded to say it."""

from enum import StrEnum
from typing import Literal

MemoryPool = Literal["keep", "shrink", "off"]
"""What is done with memory between runs: keep all that was ever needed, give back what a run larger than usual took, or
ask the system for every tensor anew."""


class Provider(StrEnum):
    """What runs a graph: ONNX Runtime's execution providers."""

    CPU = "cpu"
    OPENVINO = "openvino"
    CUDA = "cuda"
    TENSORRT = "tensorrt"
