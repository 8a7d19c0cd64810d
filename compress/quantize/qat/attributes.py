"""What a node asks of its operator by attributes, and whether `operators.py` does that.

An attribute that is ignored would mean training another function than the one that is served.
"""

import inspect
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import onnx

from compress.quantize.qat.operators import INTEGERS, OPERATORS, PADS
from export.graph import attributes

_FLOATS = (1, 10, 11, 16)
"""FLOAT, FLOAT16, DOUBLE and BFLOAT16 of onnx.TensorProto."""
_ONLY: Mapping[str, Collection[Any]] = {
    "antialias": (0,),
    "auto_pad": ("NOTSET",),
    "cubic_coeff_a": (-0.75,),
    "dilations": ([1, 1],),
    "exclude_outside": (0,),
    "keep_aspect_ratio_policy": ("stretch",),
    "noop_with_empty_axes": (0,),
}
"""For attributes that an operator's function does not name, the values that change nothing."""
_SAY_NOTHING = ("extrapolation_value", "kernel_shape", "nearest_mode", "saturate", "storage_order")
"""Attributes that matter only with others that are refused, or repeat what a weight's shape says."""
_OF_MAPS = ("AveragePool", "ConvTranspose", "MaxPool")
"""Operators that are implemented here for height and width alone."""
_NAMED_ONLY: Mapping[str, Mapping[str, Collection[Any]]] = {"Cast": {"to": INTEGERS + _FLOATS}, "Pad": {"mode": PADS}}
"""For attributes that a function names, the values that are accepted; for those not listed here, any is."""
_RESIZE_DEFAULTS = {
    "mode": "nearest",
    "coordinate_transformation_mode": "half_pixel",
    "nearest_mode": "round_prefer_floor",
}
_SMOOTH: Mapping[str, Collection[Any]] = {"coordinate_transformation_mode": ("half_pixel", "align_corners")}
_RESIZE_ONLY: Mapping[str, Mapping[str, Collection[Any]]] = {
    "nearest": {"coordinate_transformation_mode": ("asymmetric",), "nearest_mode": ("floor",)},
    "linear": _SMOOTH,
    "cubic": _SMOOTH,
}
"""By mode: the values that torch supports, too."""


def refused(node: onnx.NodeProto) -> list[str]:
    """What `node` asks of its operator that is not implemented here, as `attribute=value`."""
    return list(_refused(node.op_type, attributes(node)))


def _refused(operator: str, asked: Mapping[str, Any]) -> Iterator[str]:
    only = _NAMED_ONLY.get(operator, {})
    if operator == "Resize":
        asked = {**_RESIZE_DEFAULTS, **asked}
        only = _RESIZE_ONLY[asked["mode"]]
    named = inspect.signature(OPERATORS[operator]).parameters if asked else ()
    if operator in _OF_MAPS and len(kernel := asked.get("kernel_shape", [1, 1])) != 2:
        yield f"kernel_shape={kernel}"
    for name, value in asked.items():
        taken = name in named or name in _SAY_NOTHING or value in _ONLY.get(name, ())
        if not (value in only[name] if name in only else taken):
            yield f"{name}={value}"
