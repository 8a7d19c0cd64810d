"""BatchNorm statistics, taken again from the training images.

A cut or averaged network keeps statistics of what it was; judging it by them is judging another network.
"""

import torch
from torch import nn

from compress.checkpoint import normalised
from compress.data.loader import TrainingImages


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
    """Replace the running statistics of `network` by the mean over `batches` unaugmented training batches, or over
    their parts of `at_once` images.

    What is random in it, such as dropout, is drawn from `seed`: a run that goes on takes the same statistics.
    """
    device = next(network.parameters()).device
    norms = [
        module for module in network.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    network.train()
    torch.manual_seed(seed)
    for batch in images.drawn(batches, batch_size):
        for part_NCHW in torch.split(batch.images_NCHW, at_once or batch_size):
            network(normalised(part_NCHW.to(device)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()
