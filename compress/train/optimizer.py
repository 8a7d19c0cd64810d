"""AdamW: which parameters decay, and each one's learning rate."""

from typing import Any

import torch
from torch import nn

from compress.settings.fit import FitSettings
from compress.train.freeze import pretrained_encoder, stages


def adamw(network: nn.Module, settings: FitSettings) -> torch.optim.AdamW:
    """Weight decay for kernels, none for biases and BatchNorm; stages of a pretrained encoder have their own rates."""
    rates = _encoder_rates(network, settings)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        groups.setdefault((rates.get(id(parameter), 1.0), parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "rate": rate,
                "weight_decay": settings.weight_decay if is_kernel else 0.0,
            }
            for (rate, is_kernel), parameters in groups.items()
        ],
        lr=0.0,
    )


def _encoder_rates(network: nn.Module, settings: FitSettings) -> dict[int, float]:
    """For each parameter of a pretrained encoder, by its id: its learning rate over that of the rest."""
    encoder = pretrained_encoder(network)
    if encoder is None:
        return {}
    rate = settings.encoder_rate
    rates: dict[int, float] = {}
    for stage in reversed(list(stages(encoder))):
        rates |= {id(parameter): rate for module in stage for parameter in module.parameters()}
        rate *= settings.layer_decay
    # Parameters in no stage count as nearest to the image.
    return {id(parameter): rate for parameter in encoder.parameters()} | rates


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group its share of `rate`."""
    group: dict[str, Any]
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]


def set_momentum(optimizer: torch.optim.Optimizer, momentum: float) -> None:
    """Set AdamW's first beta in every group."""
    group: dict[str, Any]
    for group in optimizer.param_groups:
        group["betas"] = (momentum, group["betas"][1])
