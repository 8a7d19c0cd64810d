"""Biases in 32 bits, where the weights beside them are close to zero.

A bias is counted in steps of the input's scale times the weights', and added to a sum of products in 32 bits. In a
channel that BatchNorm has all but switched off, the weights are so small that the bias needs more steps than 32 bits
hold. Clipped, it would be another bias; where it just fits, the sum would overflow. Such weights take a larger scale:
they round to zero, and contribute as little as before.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnxruntime.quantization import QDQQuantizer

MOST_STEPS = 2**30
"""Largest bias in steps: half of what 32 bits hold, so that products can be added to it."""


def roomy(weight_scale: NDArray[Any], bias: NDArray[Any], input_scale: NDArray[Any]) -> NDArray[Any]:
    """`weight_scale`, per channel or for all, enlarged where `bias` would take more than `MOST_STEPS`."""
    magnitude = np.abs(bias.astype(np.float64))
    least = (magnitude if weight_scale.ndim else magnitude.max()) / MOST_STEPS / input_scale
    scale: NDArray[Any] = np.maximum(weight_scale, least.astype(weight_scale.dtype))
    return scale


class RoomyQuantizer(QDQQuantizer):  # type: ignore[misc]
    """ONNX Runtime's quantizer, which by itself leaves no room for the products."""

    def _adjust_weight_scale_for_int32_bias(
        self,
        input_scale: NDArray[Any],
        weight_scale: NDArray[Any],
        weight_name: str,  # noqa: ARG002
        bias_tp: TensorProto,
        is_per_channel: bool,  # noqa: ARG002
    ) -> tuple[bool, NDArray[Any]]:
        scale = roomy(weight_scale, numpy_helper.to_array(bias_tp), input_scale)
        return bool((scale != weight_scale).any()), scale
