"""What runs the models: ONNX Runtime's execution providers, by short names, and what to do when one is missing."""

import logging
from collections.abc import Sequence

from export.errors import UsageError
from export.runtime import CPU, OPENVINO, TENSORRT, available_providers
from export.sessions import Provider

logger = logging.getLogger(__name__)

# Each of the packages replaces the package onnxruntime.
_PROVIDERS: dict[Provider, tuple[str, str]] = {
    Provider.CPU: (CPU, "onnxruntime"),
    Provider.OPENVINO: (OPENVINO, "onnxruntime-openvino"),
    Provider.CUDA: ("CUDAExecutionProvider", "onnxruntime-gpu"),
    Provider.TENSORRT: (TENSORRT, "onnxruntime-gpu"),
}


def chosen(asked: Sequence[Provider]) -> list[str]:
    """ONNX Runtime's names of those of `asked` that are available, in order, then of the CPU; warns of missing ones.

    Raises UsageError when none of `asked` is available.
    """
    missing = [name for name in asked if not _is_there(name)]
    found = [_PROVIDERS[name][0] for name in asked if name not in missing]
    if not found:
        words = "; ".join(map(_not_there, missing))
        raise UsageError(f"provider {words}; install it, or name cpu as well to fall back on")
    for name in missing:
        logger.warning("provider %s; falling back on %s", _not_there(name), found[0])
    return found if CPU in found else [*found, CPU]


def required(name: Provider) -> list[str]:
    """ONNX Runtime's name of `name`, and of the CPU for operators that it does not take.

    Raises UsageError when `name` is not available.
    """
    if not _is_there(name):
        raise UsageError(f"provider {_not_there(name)}; install that in its place")
    return list(dict.fromkeys([_PROVIDERS[name][0], CPU]))


def _is_there(name: Provider) -> bool:
    return _PROVIDERS[name][0] in available_providers()


def _not_there(name: Provider) -> str:
    return f"{name} is not in this onnxruntime (it comes with {_PROVIDERS[name][1]})"
