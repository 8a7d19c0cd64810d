"""The number format of the forward pass.

A GPU with bfloat16 uses it; one without uses float16 with a gradient scaler. On a CPU a timed probe
decides: bfloat16 is 2 to 3 times faster with native support and ten times slower without.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from export.errors import UsageError
from export.machine import compute_threads

Precision = Literal["float32", "bfloat16", "float16"]
DEVICES = ("cpu", "cuda", "mps", "xpu")


@dataclass(frozen=True)
class Choice:
    """A decision and its reason, to be printed and saved."""

    precision: Precision
    reason: str


def pick_device(wanted: str) -> torch.device:
    """The device that `wanted` names; `auto` is CUDA if there is one.

    A device with a number becomes the current one, which seeding and waiting refer to. Torch is limited to the cores
    that this process may use.

    Raises UsageError for a device that torch does not have here.
    """
    torch.set_num_threads(compute_threads())
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        if device.type not in DEVICES:
            raise UsageError(f"train.device = {wanted!r} cannot train; known: auto, {', '.join(DEVICES)}")
        torch.empty(0, device=device)
        if device.type != "cpu" and device.index is not None:
            torch.accelerator.set_device_index(device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"train.device = {wanted!r} is not available: {error}") from error
    return device


def choose(wanted: Literal["auto", "float32", "bfloat16", "float16"], device: torch.device) -> Choice:
    """The precision to train in on `device`, and why."""
    if wanted != "auto":
        return Choice(wanted, "asked for")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Choice("bfloat16", f"{torch.cuda.get_device_name(device)} has it")
        return Choice("float16", f"{torch.cuda.get_device_name(device)} has no bfloat16; gradients are scaled")
    if device.type == "cpu":
        return _probe()
    return Choice("float32", f"no measurement for {device.type}")


@contextlib.contextmanager
def autocast(precision: Precision, device: torch.device) -> Iterator[None]:
    """Forward passes in `precision`."""
    with torch.autocast(device.type, dtype=getattr(torch, precision), enabled=precision != "float32"):
        yield


def _probe() -> Choice:
    """Time forward and backward passes in both formats; the margin keeps noise from deciding."""
    plain, reduced = _probe_ms("float32"), _probe_ms("bfloat16")
    ratio = plain / reduced
    measured = f"probe: float32 {plain:.1f} ms, bfloat16 {reduced:.1f} ms"
    return Choice("bfloat16" if ratio > 1.2 else "float32", measured)


def _probe_ms(precision: Precision) -> float:
    """The time of two convolutions as large as a UNet's: on small ones overhead hides what the format is worth."""
    device = torch.device("cpu")
    with torch.random.fork_rng(devices=[]):
        layers = [(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()) for _ in range(2)]
        block = nn.Sequential(*(module for layer in layers for module in layer))
        image = torch.rand(4, 64, 64, 64).contiguous(memory_format=torch.channels_last)
        block.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    times = []
    for _ in range(4):
        start = time.perf_counter()
        with autocast(precision, device):
            out = block(image)
        out.float().sum().backward()
        times.append(time.perf_counter() - start)
    return min(times[1:]) * 1e3
