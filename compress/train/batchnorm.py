"""Recompute BatchNorm statistics from the training images.

A pruned or averaged network keeps the statistics of the network it came from; scored with them, it is another network.
"""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress.checkpoint import normalised
from compress.data.loader import Batch, TrainingImages
from compress.train.memory import free, is_out_of_memory
from export.errors import WorkFailedError


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
                network(normalised(part_NCHW.to(device)))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True
