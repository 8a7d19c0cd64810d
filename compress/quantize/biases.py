"""Biases in 32 bits, where the weights beside them are next to nothing.

A bias is counted in steps of the input's scale times the weights', and added to a sum of products in 32 bits. Of a
channel that BatchNorm has all but switched off, the weights are so small that its bias is more steps than that: cut off
it is another bias, and where it just fits the sum goes round. Such weights take a larger scale; rounded to nothing they
give what they gave.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnxruntime.quantization import QDQQuantizer

MOST_STEPS = 2**30
"""Of a bias: half of what 32 bits hold, so that products can be added to it."""


def roomy(weight_scale: NDArray[Any], bias: NDArray[Any], input_scale: NDArray[Any]) -> NDArray[Any]:
    """`weight_scale`, of each channel or of all, made larger where `bias` would be more than `MOST_STEPS`."""
    magnitude = np.abs(bias.astype(np.float64))
    least = (magnitude if weight_scale.ndim else magnitude.max()) / MOST_STEPS / input_scale
    scale: NDArray[Any] = np.maximum(weight_scale, least.astype(weight_scale.dtype))
    return scale


class RoomyQuantizer(QDQQuantizer):  # type: ignore[misc]
    """ONNX Runtime's, which by itself leaves no room for the products."""

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
