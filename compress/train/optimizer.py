"""AdamW: which parameters decay, how fast each of them learns, and how that changes over a training."""

import math
from typing import Any

import torch
from torch import nn

from compress.recipe import FitSettings


class Schedule:
    """The learning rate of every step: a linear warm-up, then a cosine to zero.

    Source: Loshchilov & Hutter 2017 (arXiv:1608.03983).
    """

    def __init__(self, settings: FitSettings, steps_an_epoch: int) -> None:
        self._peak = settings.learning_rate
        self._total = settings.epochs * steps_an_epoch
        self._warmup = max(1, round(self._total * settings.warmup))

    def rate(self, step: int) -> float:
        """Of step 0, 1, ..."""
        if step < self._warmup:
            return self._peak * (step + 1) / self._warmup
        done = (step - self._warmup) / max(1, self._total - self._warmup)
        return self._peak * 0.5 * (1 + math.cos(math.pi * done))


def adamw(network: nn.Module, settings: FitSettings) -> torch.optim.AdamW:
    """Weight decay for kernels, none for biases and BatchNorm; `encoder_rate` for a pretrained encoder."""
    encoder = getattr(network, "encoder", None) if getattr(network, "pretrained", False) else None
    known = {id(parameter) for parameter in encoder.parameters()} if isinstance(encoder, nn.Module) else set()
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        groups.setdefault((id(parameter) in known, parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "rate": settings.encoder_rate if is_known else 1.0,
                "weight_decay": settings.weight_decay if is_kernel else 0.0,
            }
            for (is_known, is_kernel), parameters in groups.items()
        ],
        lr=0.0,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group its share of `rate`."""
    group: dict[str, Any]
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]
