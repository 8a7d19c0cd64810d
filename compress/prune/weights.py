"""Set the smallest single weights of a network to zero. Shapes stay: only compressed bytes are saved."""

import gzip
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress import checkpoint
from compress.budget import Budget
from compress.progress import say
from compress.prune.recover import Recovery
from compress.prune.step import PruneStep
from compress.train.sparsity import hold_at_zero, kernels, share_of_zeros


def cut_weights(step: PruneStep) -> dict[str, Any]:
    """Set the share `prune.sparsity` of the weights to zero and fine-tune the others. Returns the step's result."""
    card, network = step.parent.card, step.parent.network()
    recovery = Recovery(step, network)
    sparsity = step.recipe.prune.sparsity
    assert sparsity is not None
    Budget.of(step.recipe.prune).look_at_floors(recovery.parent_score.iou_per_class)
    child = step.parent.network().to(recovery.device)
    hold_at_zero(child, smallest_weights(child, sparsity))
    figures = recovery.run(child, step.card(pruning=card.pruning), step.folder.path)
    probe = step.probe(network)
    weights = step.folder.path / checkpoint.WEIGHTS
    checkpoint.save_weights(weights, child.state_dict())
    measured = probe.measure(step.graph(child))
    measured.doubt()
    result = {
        "speedup": measured.speedup,
        "disturbed": measured.disturbed,
        "latency_size": list(probe.size),
        "sparsity": share_of_zeros(child),
        "gzip_bytes_parent": gzipped(step.parent.path / checkpoint.WEIGHTS),
        "gzip_bytes": gzipped(weights),
        **figures,
    }
    say(
        f"{result['sparsity']:.0%} of the weights are zero: the weights file is as large as before; compressed (gzip) "
        f"it has {result['gzip_bytes'] / 1e6:.3g} MB instead of {result['gzip_bytes_parent'] / 1e6:.3g}. This runtime "
        f"multiplies by zeros too: they save bytes and no time ({result['speedup']:.2f}x measured)"
    )
    return step.keep(child, result, pruning=card.pruning)


def smallest_weights(network: nn.Module, sparsity: float) -> dict[str, Tensor]:
    """Masks by the names of the parameters, true for the share `sparsity` of all kernels' weights that is smallest in
    magnitude over the whole network. Source: Han et al. 2015 (arXiv:1506.02626), with one threshold."""
    found = kernels(network)
    magnitudes = torch.cat([kernel.detach().abs().flatten() for kernel in found.values()])
    mask = torch.zeros_like(magnitudes, dtype=torch.bool)
    mask[magnitudes.argsort(stable=True)[: round(sparsity * len(mask))]] = True
    parts = torch.split(mask, [kernel.numel() for kernel in found.values()])
    return {name: part.reshape(kernel.shape) for (name, kernel), part in zip(found.items(), parts, strict=True)}


def gzipped(path: Path) -> int:
    """The size of a file in bytes after compression."""
    return len(gzip.compress(path.read_bytes(), mtime=0))
