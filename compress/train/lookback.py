"""Run a finished network on some of its own training images: what it scores, and which channels are always zero.

N batch, C channels, H height, W width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compress.checkpoint import normalised
from compress.data.loader import TrainingImages
from export.scoring import ConfusionMatrix

BATCHES = 8
CONVOLVES = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d)
"""Layers whose output is NCHW."""


@torch.inference_mode()
def look_back(
    network: nn.Module, images: TrainingImages, classes: int, batch_size: int
) -> tuple[float | None, dict[str, tuple[int, int]]]:
    """mIoU on `BATCHES` batches that are not augmented, and which layers have channels that are zero on all of them.

    mIoU is None if all pixels are void. Layers are given by name, with the number of such channels and of all. Only the
    output of ReLU modules after a convolution counts. Leaves `network` in eval mode.
    """
    network.eval()
    device = next(network.parameters()).device
    matrix = ConfusionMatrix(classes)
    with _highest(network) as highest:
        for batch in images.drawn(BATCHES, batch_size):
            answers = network(normalised(batch.images_NCHW.to(device))).argmax(1).to(torch.uint8).cpu().numpy()
            for truth, answer in zip(batch.masks_NHW.cpu().numpy(), answers, strict=True):
                matrix.update(truth, answer)
    dead = {name: (int((high_C <= 0).sum()), width) for (name, width), high_C in highest.items()}
    miou = matrix.miou if matrix.counts.any() else None
    return miou, {name: found for name, found in dead.items() if found[0]}


@contextmanager
def _highest(network: nn.Module) -> Iterator[dict[tuple[str, int], Tensor]]:
    """The highest value of each channel after each ReLU over all calls so far, by the ReLU's name and width.

    The uses of a module that is used in several places are told apart by width alone. Tokens, rows and vectors have no
    channels on the second axis. So the last module with weights that ran must be one of `CONVOLVES`, and the output of
    the ReLU must have as many channels: sums and pooling in between do not change them.
    """
    highest: dict[tuple[str, int], Tensor] = {}
    convolved = torch.Size()

    def note(module: nn.Module, _: Any, answer: Any) -> None:
        nonlocal convolved
        convolved = answer.shape if isinstance(module, CONVOLVES) else torch.Size()

    def watch(name: str) -> Any:
        def hook(_: nn.Module, __: Any, answer: Tensor) -> None:
            if answer.ndim != 4 or answer.shape[:2] != convolved[:2]:
                return
            high_C = answer.amax((0, 2, 3))
            key = name, len(high_C)
            highest[key] = torch.maximum(highest[key], high_C) if key in highest else high_C

        return hook

    handles = []
    for name, module in network.named_modules():
        if isinstance(module, nn.ReLU | nn.ReLU6):
            handles.append(module.register_forward_hook(watch(name)))
        elif isinstance(module, CONVOLVES) or any(True for _ in module.parameters(recurse=False)):
            handles.append(module.register_forward_hook(note))
    try:
        yield highest
    finally:
        for handle in handles:
            handle.remove()
