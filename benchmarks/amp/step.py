"""One training step of `compress train`, in the precision, memory format and mode of a cell.

The step itself is `compress.train.step.Stepper`: what is measured is what trains.

N batch, C channels, H height, W width.
"""

import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.report.amp.results import Cell, Workload
from compress.models import build
from compress.settings.fit import FitSettings
from compress.train.feed import Fed
from compress.train.memory import free
from compress.train.objective import Objective, Part, Passed
from compress.train.precision import Precision, autocast, pick_device
from compress.train.runtime import Runtime
from compress.train.schedule import Pace
from compress.train.step import Stepper
from export.errors import UsageError, WorkFailedError
from export.machine import peak_memory_mib

_FIRST_WITH_TF32 = (8, 0)
"""CUDA's compute capability."""


def device_of(wanted: str) -> torch.device:
    """What `pick_device` picks, if it can be measured.

    Raises UsageError for anything but a CPU and CUDA.
    """
    device = pick_device(wanted)
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"peak memory and time are measured on cpu and cuda, not on {device}; name one of these")
    return device


class TrainingStep:
    """A fresh network, its optimizer, and a batch of noise; `run` takes one step on it."""

    def __init__(self, cell: Cell, workload: Workload) -> None:
        """Build what a step needs, and run nothing. Raises WorkFailedError for TF32 on a device that lacks it."""
        precision: Precision = "float32" if cell.precision == "tf32" else cell.precision
        self._runtime = Runtime(device_of(workload.device), precision)
        _allow_tf32(cell.precision == "tf32", self._runtime.device)
        self._memory = PeakMemory(self._runtime.device)
        self._settings = FitSettings(batch_size=workload.batch)
        self._runtime.seed(0)
        layout = torch.channels_last if cell.channels_last else torch.contiguous_format
        sizes = {"channels": workload.channels, "classes": workload.classes, "base": workload.base}
        network = build("unet", sizes).to(self._runtime.device, memory_format=layout)  # type: ignore[call-overload]
        if cell.compiled:
            network.compile()
        self.params = sum(parameter.numel() for parameter in network.parameters())
        self._objective = _Watched(self._settings.loss, None, None)
        self._stepper = Stepper(network.train(), self._objective, self._settings, self._runtime)
        self._batch = self._noise(workload, layout)
        self.skipped = False
        """Whether the last step skipped the optimizer, because a gradient was beyond float16."""

    @property
    def logits(self) -> "Logits | None":
        """Those of the last step."""
        return self._objective.seen

    def run(self) -> float:
        """Take a step; return the milliseconds until the device has finished it.

        Raises WorkFailedError when the batch does not fit into memory in one piece, and what `Stepper` raises.
        """
        self._runtime.synchronize()
        start = time.perf_counter_ns()
        loss = self._stepper.take(self._batch, Pace(self._settings.learning_rate))
        self._runtime.synchronize()
        elapsed_ms = (time.perf_counter_ns() - start) / 1e6
        # In training, smaller parts are a remedy; here they would be another cell.
        if self._stepper.state_dict()["at_once"] < self._settings.batch_size:
            raise WorkFailedError(f"out of memory with {self._settings.batch_size} images at once; lower --batch")
        self.skipped = loss is None
        return elapsed_ms

    def rest(self) -> None:
        """Free the memory that other cells can use meanwhile."""
        free(self._runtime.device)

    def peak_memory_mib(self) -> float:
        """The peak of everything so far."""
        return self._memory.mib()

    def rounding(self) -> float:
        """Largest error of a convolution in this precision against float64, over the largest value."""
        images = torch.rand(1, 64, 32, 32, device=self._runtime.device)
        kernel = torch.rand(64, 64, 3, 3, device=self._runtime.device)
        with torch.inference_mode():
            exact = F.conv2d(images.double(), kernel.double())
            with autocast(self._runtime.precision, self._runtime.device):
                found = F.conv2d(images, kernel)
        return ((found.double() - exact).abs().max() / exact.abs().max()).item()

    def _noise(self, workload: Workload, layout: torch.memory_format) -> Fed:
        shape_NHW = (workload.batch, workload.height, workload.width)
        shape_NCHW = (workload.batch, workload.channels, workload.height, workload.width)
        device = self._runtime.device
        return Fed(
            ("noise",),
            torch.randn(shape_NCHW, device=device).contiguous(memory_format=layout),
            torch.randint(workload.classes, shape_NHW, dtype=torch.uint8, device=device),
            seed=0,
        )


@dataclass(frozen=True)
class Logits:
    """The form of a network's logits, which shows what it really ran in."""

    dtype: str
    """As torch names it."""
    layout: str
    """channels_last or contiguous."""
    shape_NKHW: tuple[int, ...]

    @classmethod
    def of(cls, logits_NKHW: Tensor) -> "Logits":
        last = logits_NKHW.is_contiguous(memory_format=torch.channels_last)
        dtype = str(logits_NKHW.dtype).removeprefix("torch.")
        return cls(dtype, "channels_last" if last else "contiguous", tuple(logits_NKHW.shape))


class _Watched(Objective):
    """Records the form of the logits."""

    seen: Logits | None = None

    def logits(self, network: nn.Module, part: Part) -> Passed:
        passed = super().logits(network, part)
        self.seen = Logits.of(passed.heads[-1])
        return passed


class PeakMemory:
    """The most memory that was in use since this was made."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before_mib = peak_memory_mib()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def mib(self) -> float:
        """On a GPU the most that torch's allocator gave out, on a CPU what the process's peak grew by."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / 2**20
        return peak_memory_mib() - self._before_mib


def _allow_tf32(allowed: bool, device: torch.device) -> None:
    """Allow TF32 or forbid it: by default, torch lets cuDNN round float32 to it.

    Raises WorkFailedError if it is to be allowed and the device does not have it.
    """
    if allowed and (device.type != "cuda" or torch.cuda.get_device_capability(device) < _FIRST_WITH_TF32):
        raise WorkFailedError(f"{device} has no TF32")
    torch.backends.cudnn.allow_tf32 = allowed
    torch.set_float32_matmul_precision("high" if allowed else "highest")
