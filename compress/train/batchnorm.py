"""Recompute BatchNorm statistics from the training images.

A pruned or averaged network keeps the statistics of the network it came from; scored with them, it is another network.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress.checkpoint import normalised
from compress.data.loader import Batch, TrainingImages
from compress.train.memory import free, is_out_of_memory
from export.errors import UsageError, WorkFailedError


@contextmanager
def single_values_told() -> Iterator[None]:
    """Raises UsageError where a BatchNorm behind a global pooling sees a batch of one image: one value for each
    channel, which has no variance."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UsageError(
            "a BatchNorm of this network sees a single value of each channel, because one image is taken at once and "
            "pooled before it; take two or more (batch_size, micro_batch), from two training images or more"
        ) from error


@torch.no_grad()
def reestimate(
    network: nn.Module,
    images: TrainingImages,
    *,
    batches: int = 20,
    batch_size: int = 8,
    at_once: int | None = None,
    seed: int = 0,
) -> None:
    """Replace the running statistics of `network` by the mean over `batches` unaugmented training batches.

    With `at_once`, it is the mean over parts of so many images; where memory is short, parts are smaller. Randomness in
    the network, such as dropout, is drawn from `seed`, so that a resumed run gets the same statistics. Raises
    WorkFailedError when a single image does not fit into memory.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # cumulative average
    network.train()
    at_once = at_once or batch_size
    while not _fits(network, norms, images.drawn(batches, batch_size), at_once, seed):
        if at_once == 1:
            raise WorkFailedError(
                "out of memory with a single image while recomputing BatchNorm's statistics; set a smaller data.crop "
                "or data.size, or a smaller model.base"
            )
        free(next(network.parameters()).device)
        at_once //= 2
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


def _fits(network: nn.Module, norms: Iterable[_BatchNorm], batches: Iterable[Batch], at_once: int, seed: int) -> bool:
    """Run `network` on the `batches` in parts of `at_once` images; whether memory was enough for all of them."""
    for norm in norms:
        norm.reset_running_stats()
    torch.manual_seed(seed)
    device = next(network.parameters()).device
    try:
        for batch in batches:
            for part_NCHW in torch.split(batch.images_NCHW, at_once):
                with single_values_told():
                    network(normalised(part_NCHW.to(device)))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True
