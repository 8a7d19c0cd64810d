"""Single weights become zero, the smallest of the whole network. Shapes stay: only compressed bytes are saved."""

import gzip
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress import checkpoint
from compress.progress import say
from compress.prune.recover import Recovery
from compress.prune.step import PruneStep


def cut_weights(step: PruneStep) -> dict[str, Any]:
    """Set the share `prune.sparsity` of the weights to zero and fine-tune the others. Gives the step's result."""
    card, network = step.parent.card, step.parent.network()
    recovery = Recovery(step, network)
    sparsity = step.recipe.prune.sparsity
    assert sparsity is not None
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
        f"{result['sparsity']:.0%} of the weights are zero: the file of weights is as large as before, compressed "
        f"(gzip) {result['gzip_bytes'] / 1e6:.3g} MB and not {result['gzip_bytes_parent'] / 1e6:.3g}. This runtime "
        f"multiplies by zeros too: they save bytes and no time ({result['speedup']:.2f}x measured)"
    )
    return step.keep(child, result, pruning=card.pruning)


def smallest_weights(network: nn.Module, sparsity: float) -> dict[str, Tensor]:
    """Masks, true for the share `sparsity` of the weights of all kernels that are smallest in magnitude, over the whole
    network; by the names of their parameters. Source: Han et al. 2015 (arXiv:1506.02626), with one threshold."""
    found = kernels(network)
    magnitudes = torch.cat([kernel.detach().abs().flatten() for kernel in found.values()])
    mask = torch.zeros_like(magnitudes, dtype=torch.bool)
    mask[magnitudes.argsort(stable=True)[: round(sparsity * len(mask))]] = True
    parts = torch.split(mask, [kernel.numel() for kernel in found.values()])
    return {name: part.reshape(kernel.shape) for (name, kernel), part in zip(found.items(), parts, strict=True)}


def hold_at_zero(network: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set what the masks name to zero, and its gradients from now on: AdamW then has nothing to move it by."""
    for name, mask in masks.items():
        kernel = network.get_parameter(name)
        with torch.no_grad():
            kernel.masked_fill_(mask, 0)
        kernel.register_hook(partial(torch.masked_fill, mask=mask, value=0))  # type: ignore[no-untyped-call]


def kernels(network: nn.Module) -> dict[str, Tensor]:
    """The weights of convolutions and of what else multiplies; neither biases nor BatchNorm."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.ndim > 1}


def share_of_zeros(network: nn.Module) -> float:
    """Of the weights of all kernels."""
    found = kernels(network).values()
    return sum(int((kernel == 0).sum()) for kernel in found) / sum(kernel.numel() for kernel in found)


def gzipped(path: Path) -> int:
    """Bytes of a file when it is compressed."""
    return len(gzip.compress(path.read_bytes(), mtime=0))
