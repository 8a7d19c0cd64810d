"""Options of a runtime session, by name; importing them does not load the runtime."""

from enum import StrEnum
from typing import Literal

MemoryPool = Literal["keep", "shrink", "off"]
"""What happens to memory between runs: keep all that was ever needed, give back what a run larger than usual took, or
ask the system anew for every tensor."""


class LargerThanUsual:
    """Tells of each run in turn whether it has more than twice the pixels that runs usually have.

    Usual is a moving average, and never less than was assumed at first. One large run moves it by a fifth at most, so a
    run of 36 times the pixels, repeated, is usual after twenty. Several threads may call it at once: an average that
    misses a run is no worse.
    """

    _NEWEST = 1 / 16
    """Weight of the newest run in the average."""

    def __init__(self, usual_pixels: float) -> None:
        self._least = self._usual = max(1.0, usual_pixels)

    def __call__(self, pixels: int) -> bool:
        usual = max(self._usual, self._least)
        self._usual = usual + self._NEWEST * (min(pixels, 4 * usual) - usual)
        return pixels > 2 * usual


class Provider(StrEnum):
    """What runs a graph: ONNX Runtime's execution providers."""

    CPU = "cpu"
    OPENVINO = "openvino"
    CUDA = "cuda"
    TENSORRT = "tensorrt"
