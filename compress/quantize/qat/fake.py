"""Fake quantization: values as 8-bit integers would have them, with gradients as if they were not rounded."""

import math
from typing import Any

import torch
from torch import Tensor, nn


class Activation(nn.Module):
    """A QuantizeLinear and its DequantizeLinear to unsigned 8 bits, with a scale that is learned.

    The logarithm of the scale is the parameter, so that a step of the optimizer changes the scale by a share of itself.
    The zero point is fixed: where it is 0, this is a ReLU too. Source: Esser et al. 2020, LSQ (arXiv:1902.08153).
    """

    zero_point: Tensor

    def __init__(self, scale: float, zero_point: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=torch.int32))

    @property
    def scale(self) -> Tensor:
        """Scalar, above zero."""
        return self.log_scale.exp()

    def forward(self, values: Tensor) -> Tensor:
        """The rounded values in float32, whatever the type of `values`: the grid is finer than that of bfloat16."""
        found: Tensor = _Learned.apply(values.float(), self.log_scale, self.zero_point)  # type: ignore[no-untyped-call]
        return found


class _Learned(torch.autograd.Function):
    """Straight through for values inside the range; the scale moves the range's ends and the rounding errors inside."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, log_scale: Tensor, zero_point: Tensor) -> Tensor:
        scale = log_scale.exp()
        rounded = torch.fake_quantize_per_tensor_affine(values, scale, zero_point, 0, 255)
        ctx.save_for_backward(values, rounded, scale, zero_point)
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        values, rounded, scale, zero_point = ctx.saved_tensors
        (gradient,) = gradients
        # What rounds to an end is inside; what is cut off there is not.
        low, high = (-zero_point - 0.5) * scale, (255 - zero_point + 0.5) * scale
        inside = (values >= low) & (values <= high)
        passed = gradient * inside
        # d rounded / d log scale: (rounded - value) inside, the end itself outside.
        moved = (gradient * rounded).sum() - (passed * values).sum()
        # LSQ's own factor, so that a scale, to which every value contributes, does not outweigh the weights.
        return passed, moved / math.sqrt(values.numel() * 255), None


def weight_scale(weight: Tensor, axis: int, limit: int) -> Tensor:
    """Scales [width of the axis] that put the largest magnitude of each output channel at the end of the range."""
    others = [i for i in range(weight.ndim) if i != axis]
    largest = weight.detach().abs().amax(dim=others)
    return torch.where(largest > 0, largest / limit, torch.ones_like(largest))


def rounded_weight(weight: Tensor, axis: int, limit: int) -> Tensor:
    """`weight` on the grid of signed integers from -limit to limit, per channel and symmetric; straight through."""
    scale = weight_scale(weight, axis, limit)
    zero = torch.zeros(len(scale), dtype=torch.int32, device=weight.device)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, axis, -limit, limit)
