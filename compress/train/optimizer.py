"""AdamW: which parameters decay, and how fast each of them learns."""

from typing import Any

import torch
from torch import nn

from compress.settings.fit import FitSettings
from compress.train.freeze import pretrained_encoder


def adamw(network: nn.Module, settings: FitSettings) -> torch.optim.AdamW:
    """Weight decay for kernels, none for biases and BatchNorm; `encoder_rate` for a pretrained encoder."""
    encoder = pretrained_encoder(network)
    known = set() if encoder is None else {id(parameter) for parameter in encoder.parameters()}
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


def set_momentum(optimizer: torch.optim.Optimizer, momentum: float) -> None:
    """AdamW's first beta, of every group."""
    group: dict[str, Any]
    for group in optimizer.param_groups:
        group["betas"] = (momentum, group["betas"][1])
