"""Attention maps: how strongly a network responds at each position, so that a student can follow its teacher's.

Maps have no channels, so that a student of any width can be compared. N batch, C channels, H height, W width.
Source: Zagoruyko and Komodakis 2017 (arXiv:1612.03928), equation 2.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.errors import UsageError

Maps = Mapping[str, Tensor]
"""By the name of the layer: [N, H x W], float32, each image's map scaled to an L2 norm of 1."""


def require_shared(student: nn.Module, teacher: nn.Module) -> None:
    """Raises UsageError when the two have no convolution of the same name whose maps could be compared."""
    if not _looking(student).keys() & _looking(teacher).keys():
        raise UsageError(
            f"{type(student).__name__} and its teacher {type(teacher).__name__} share no convolution larger than 1x1 "
            "by name, so there is no attention to follow; set attention_weight=0"
        )


@contextmanager
def attention(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collect the maps of every convolution larger than 1x1 in the forward pass within the context."""
    maps: dict[str, Tensor] = {}

    def remember(name: str, out_NCHW: Tensor) -> None:
        strength = out_NCHW.float().square().mean(1).flatten(1)
        maps[name] = F.normalize(strength, dim=1)

    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: remember(name, out))
        for name, module in _looking(network).items()
    ]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def distance(student: Maps, teacher: Maps) -> Tensor:
    """The mean over layers and images of the squared distance between the maps that both have; between 0 and 2."""
    shared = [name for name in student if name in teacher and student[name].shape == teacher[name].shape]
    apart = [(student[name] - teacher[name]).square().sum(1).mean() for name in shared]
    return torch.stack(apart).mean() if apart else next(iter(student.values())).sum() * 0


def _looking(network: nn.Module) -> dict[str, nn.Module]:
    """The convolutions whose kernel is larger than 1x1."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1
    }
