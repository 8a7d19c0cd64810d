"""What a session of the runtime can be asked for, in words; nothing is loaded to say it."""

from typing import Literal

MemoryPool = Literal["keep", "shrink", "off"]
"""What is done with memory between runs: keep all that was ever needed, give back what a run larger than usual took, or
ask the system for every tensor anew."""

Provider = Literal["cpu", "openvino", "cuda", "tensorrt"]
"""What runs a graph: ONNX Runtime's execution providers."""
