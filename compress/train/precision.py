"""The number format of the forward pass.

A GPU with bfloat16 uses it; one without uses float16 with a gradient scaler. On a CPU a timed probe
decides: bfloat16 is 2 to 3 times faster with native support and ten times slower without.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from export.errors import UsageError
from export.files import write_json
from export.machine import compute_threads

Precision = Literal["float32", "bfloat16", "float16"]
Wanted = Literal["auto", Precision]
DEVICES = ("cpu", "cuda", "mps", "xpu")
PROBE_TURNS = 8
_KEPT = "precision.json"


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


def choose(wanted: Wanted, device: torch.device) -> Choice:
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


def kept_choice(folder: Path, wanted: Wanted, device: torch.device) -> Choice:
    """What `choose` answers, kept in `folder`: the probe's answer varies, and what is resumed goes on as it began."""
    path = folder / _KEPT
    if path.exists():
        return Choice(**json.loads(path.read_text(encoding="utf-8")))
    choice = choose(wanted, device)
    write_json(path, asdict(choice))
    return choice


@contextlib.contextmanager
def autocast(precision: Precision, device: torch.device) -> Iterator[None]:
    """Forward passes in `precision`."""
    with torch.autocast(device.type, dtype=getattr(torch, precision), enabled=precision != "float32"):
        yield


def _probe() -> Choice:
    """Time forward and backward passes in both formats; the margin keeps noise from deciding.

    The formats take turns and the fastest pass of each counts, so other work on the machine rarely decides.
    """
    passes: dict[Precision, Callable[[], float]] = {
        "float32": _timed_pass("float32"),
        "bfloat16": _timed_pass("bfloat16"),
    }
    fastest = dict.fromkeys(passes, math.inf)
    for turn in range(1 + PROBE_TURNS):
        for precision, timed in passes.items():
            milliseconds = timed()
            if turn > 0:  # the first warms up
                fastest[precision] = min(fastest[precision], milliseconds)
        if fastest["bfloat16"] > 2 * fastest["float32"] and turn > 1:
            break  # without native support a pass takes seconds, and two are enough to tell
    plain, reduced = fastest["float32"], fastest["bfloat16"]
    measured = f"probe: float32 {plain:.1f} ms, bfloat16 {reduced:.1f} ms"
    return Choice("bfloat16" if plain > 1.2 * reduced else "float32", measured)


def _timed_pass(precision: Precision) -> Callable[[], float]:
    """A pass through two convolutions as large as a UNet's, which returns its milliseconds: on small convolutions
    overhead hides what the format is worth."""
    device = torch.device("cpu")
    with torch.random.fork_rng(devices=[]):
        layers = [(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()) for _ in range(2)]
        block = nn.Sequential(*(module for layer in layers for module in layer))
        image = torch.rand(4, 64, 64, 64).contiguous(memory_format=torch.channels_last)
        block.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def timed() -> float:
        start = time.perf_counter()
        with autocast(precision, device):
            out = block(image)
        out.float().sum().backward()
        return (time.perf_counter() - start) * 1e3

    return timed
