"""The operators of an INT8 graph in torch: those between its Q/DQ pairs, and their neighbours.

Each takes the ONNX inputs in order (None for one that is left out) and the ONNX attributes by name, and gives the first
output. The meaning is that of the ONNX specification, opset 21. `attributes.py` makes sure that attributes which a
function here does not name have a value that changes nothing.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Operator = Callable[..., Any]

_NO_PADS = (0, 0, 0, 0)
_ONES = (1, 1)
INTEGERS = (6, 7)
"""INT32 and INT64 of onnx.TensorProto."""
PADS = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
"""Modes of padding: ONNX's names, and torch's."""
_CONVOLUTIONS: Mapping[int, Operator] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
"""By the number of axes of pixels."""
_RESIZES = {"nearest": "nearest", "linear": "bilinear", "cubic": "bicubic"}


def _padded(values: Tensor, pads: Sequence[int], fill: float = 0.0) -> Tensor:
    """`pads` are those before each axis of pixels, then those behind each; torch wants pairs, from the last axis."""
    space = len(pads) // 2
    pairs = [amount for pair in zip(pads[:space][::-1], pads[space:][::-1], strict=True) for amount in pair]
    return F.pad(values, pairs, value=fill) if any(pads) else values


def _conv(
    values: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    pads: Sequence[int] = (),
    strides: Sequence[int] = (),
    dilations: Sequence[int] = (),
    group: int = 1,
    **_: Any,
) -> Tensor:
    """Over one axis of pixels, as in channel attention, or more."""
    space = weight.ndim - 2
    given = [*pads] or [0] * 2 * space
    before, behind = given[:space], given[space:]
    padding = before if before == behind else [0] * space
    values = values if before == behind else _padded(values, given)
    steps, spread = [*strides] or [1] * space, [*dilations] or [1] * space
    convolved: Tensor = _CONVOLUTIONS[space](values, weight, bias, steps, padding, spread, group)
    return convolved


def _conv_transpose(
    values: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    pads: Sequence[int] = _NO_PADS,
    strides: Sequence[int] = _ONES,
    dilations: Sequence[int] = _ONES,
    output_padding: Sequence[int] = (0, 0),
    group: int = 1,
    **_: Any,
) -> Tensor:
    full = F.conv_transpose2d(values, weight, bias, strides, 0, output_padding, group, dilations)
    top, left, bottom, right = pads
    return full[:, :, top : full.shape[2] - bottom, left : full.shape[3] - right]


def _max_pool(
    values: Tensor,
    *,
    kernel_shape: Sequence[int],
    pads: Sequence[int] = _NO_PADS,
    strides: Sequence[int] = _ONES,
    dilations: Sequence[int] = _ONES,
    ceil_mode: int = 0,
    **_: Any,
) -> Tensor:
    padded = _padded(values, pads, -torch.inf)
    pooled: Tensor = F.max_pool2d(padded, list(kernel_shape), list(strides), 0, list(dilations), bool(ceil_mode))
    return pooled


def _average_pool(
    values: Tensor,
    *,
    kernel_shape: Sequence[int],
    pads: Sequence[int] = _NO_PADS,
    strides: Sequence[int] = _ONES,
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    **_: Any,
) -> Tensor:
    def pooled(values: Tensor, padding: Sequence[int] = (0, 0)) -> Tensor:
        counted = bool(count_include_pad)
        return F.avg_pool2d(values, list(kernel_shape), list(strides), list(padding), bool(ceil_mode), counted)

    if tuple(pads[:2]) == tuple(pads[2:]):
        return pooled(values, pads[:2])
    found = pooled(_padded(values, pads))
    return found if count_include_pad else found / pooled(_padded(torch.ones_like(values), pads))


def _reduce_mean(values: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, **_: Any) -> Tensor:
    dims = list(range(values.ndim)) if axes is None else axes.tolist()
    return values.mean(dim=dims, keepdim=bool(keepdims))


def _resize(
    values: Tensor,
    _roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
    *,
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    **_: Any,
) -> Tensor:
    size = None if sizes is None else sizes.tolist()[2:]
    factors = None if size is not None or scales is None else scales.tolist()[2:]
    aligned = None if mode == "nearest" else coordinate_transformation_mode == "align_corners"
    return F.interpolate(values, size=size, scale_factor=factors, mode=_RESIZES[mode], align_corners=aligned)


def _depth_to_space(values: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    if mode == "CRD":
        return F.pixel_shuffle(values, blocksize)
    count, channels, height, width = values.shape
    left = channels // blocksize**2
    dealt = values.reshape(count, blocksize, blocksize, left, height, width).permute(0, 3, 4, 1, 5, 2)
    return dealt.reshape(count, left, height * blocksize, width * blocksize)


def _space_to_depth(values: Tensor, *, blocksize: int) -> Tensor:
    count, channels, height, width = values.shape
    rows, columns = height // blocksize, width // blocksize
    dealt = values.reshape(count, channels, rows, blocksize, columns, blocksize).permute(0, 3, 5, 1, 2, 4)
    return dealt.reshape(count, channels * blocksize**2, rows, columns)


def _pad(values: Tensor, pads: Tensor, fill: Tensor | None = None, *, mode: str = "constant") -> Tensor:
    """With a constant over all axes, or with image values over height and width; torch wants the last axis first."""
    before, after = pads.tolist()[: values.ndim], pads.tolist()[values.ndim :]
    pairs = [amount for pair in zip(before[::-1], after[::-1], strict=True) for amount in pair]
    if mode != "constant":
        return F.pad(values, pairs[:4], PADS[mode])
    return F.pad(values, pairs, value=0.0 if fill is None else fill.item())


def _slice(
    values: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
) -> Tensor:
    places = range(len(starts)) if axes is None else axes.tolist()
    strides = [1] * len(starts) if steps is None else steps.tolist()
    index = [slice(None)] * values.ndim
    for axis, start, end, step in zip(places, starts.tolist(), ends.tolist(), strides, strict=True):
        index[axis] = slice(start, min(end, values.shape[axis]), step)
    return values[tuple(index)]


def _reshape(values: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    """A size of 0 keeps that of the input, unless `allowzero` makes it mean 0."""
    sizes = enumerate(shape.tolist())
    return values.reshape([values.shape[i] if size == 0 and not allowzero else size for i, size in sizes])


def _gather(values: Tensor, index: Tensor, *, axis: int = 0) -> Tensor:
    axis %= values.ndim
    taken = values.index_select(axis, index.reshape(-1) % values.shape[axis])
    return taken.reshape(*values.shape[:axis], *index.shape, *values.shape[axis + 1 :])


def _squeeze(values: Tensor, axes: Tensor | None = None) -> Tensor:
    return values.squeeze() if axes is None else values.squeeze(tuple(axes.tolist()))


def _unsqueeze(values: Tensor, axes: Tensor) -> Tensor:
    for axis in sorted(axes.tolist()):
        values = values.unsqueeze(axis)
    return values


def _gemm(
    left: Tensor,
    right: Tensor,
    added: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    product = alpha * ((left.T if transA else left) @ (right.T if transB else right))
    return product if added is None else product + beta * added


def _cast(values: Tensor, *, to: int, **_: Any) -> Tensor:
    """Cast shapes to integers; activations keep the type that autocast gives them."""
    if to in INTEGERS:
        return values.to(torch.int64)
    return values if values.is_floating_point() else values.float()


def _div(left: Tensor, right: Tensor) -> Tensor:
    """Divide; sizes, which are integers, without remainder."""
    return left / right if left.is_floating_point() else torch.div(left, right, rounding_mode="trunc")


def _shape(values: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(values.shape[start:end], dtype=torch.int64)


OPERATORS: Mapping[str, Operator] = {
    "Add": torch.add,
    "AveragePool": _average_pool,
    "Cast": _cast,
    "Clip": lambda values, low=None, high=None: values.clamp(low, high),
    "Concat": lambda *values, axis: torch.cat(values, axis),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DepthToSpace": _depth_to_space,
    "Div": _div,
    "Flatten": lambda values, axis=1: values.reshape(math.prod(values.shape[:axis]), -1),
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda values: values.mean(dim=tuple(range(2, values.ndim)), keepdim=True),
    "HardSigmoid": lambda values, alpha=0.2, beta=0.5: (alpha * values + beta).clamp(0, 1),
    "HardSwish": F.hardswish,
    "Identity": lambda values: values,
    "LeakyRelu": lambda values, alpha=0.01: F.leaky_relu(values, alpha),
    "MatMul": torch.matmul,
    "MaxPool": _max_pool,
    "Mul": torch.mul,
    "Pad": _pad,
    "ReduceMean": _reduce_mean,
    "Relu": F.relu,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Sigmoid": torch.sigmoid,
    "Slice": _slice,
    "Softmax": lambda values, axis=-1: torch.softmax(values, axis),
    "SpaceToDepth": _space_to_depth,
    "Sqrt": torch.sqrt,
    "Squeeze": _squeeze,
    "Sub": torch.sub,
    "Tanh": torch.tanh,
    "Transpose": lambda values, perm: values.permute(perm),
    "Unsqueeze": _unsqueeze,
}
"""By ONNX name."""
