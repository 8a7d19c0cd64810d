"""The oracle for a pruned network: the whole one with the channels that are removed silenced.

plan = scores_of(network, channels=1).plan(0.5, 2)
assert_close(logits(plan.apply(network, channels=1), 1), logits(masked(network, plan, 1), 1))
"""

import copy

import torch
from torch import Tensor, nn

from compress.models import all_logits, size_multiple
from compress.models.plan import Dependencies, PruningPlan


def masked(network: nn.Module, plan: PruningPlan, channels: int) -> nn.Module:
    """The dense network with the channels of `plan` silenced: kernels, biases, BatchNorm, all zero."""
    twin = copy.deepcopy(network)
    graph = Dependencies(twin, channels)
    with torch.no_grad():
        for cut in plan.cuts:
            for dependency, indices in graph.group(cut.layer, list(cut.remove)) if cut.remove else ():
                module = dependency.target.module
                if "in_channels" in dependency.handler.__name__:
                    continue  # it reads what is silent already
                if isinstance(module, nn.ConvTranspose2d):
                    module.weight[:, indices] = 0
                    module.bias[indices] = 0  # type: ignore[index]
                elif isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                    for parameter in module.parameters():
                        parameter[indices] = 0
    return twin.eval()


def logits(network: nn.Module, channels: int) -> list[Tensor]:
    """The logits of every head, in float64, where any difference is a mistake and not rounding."""
    side = 2 * size_multiple(network)
    images = torch.randn(2, channels, side, 2 * side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return all_logits(copy.deepcopy(network).double(), images.double())
