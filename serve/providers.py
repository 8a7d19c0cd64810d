"""What runs the models: ONNX Runtime's execution providers, by short names, and what is said when one is not there."""

import logging
from collections.abc import Sequence

from export.errors import UsageError
from export.runtime import CPU, available_providers
from export.sessions import Provider

logger = logging.getLogger(__name__)

# Each of the packages replaces the package onnxruntime.
_PROVIDERS: dict[Provider, tuple[str, str]] = {
    Provider.CPU: (CPU, "onnxruntime"),
    Provider.OPENVINO: ("OpenVINOExecutionProvider", "onnxruntime-openvino"),
    Provider.CUDA: ("CUDAExecutionProvider", "onnxruntime-gpu"),
    Provider.TENSORRT: ("TensorrtExecutionProvider", "onnxruntime-gpu"),
}


def chosen(asked: Sequence[Provider]) -> list[str]:
    """ONNX Runtime's names of those that are there, in order, the CPU as the last; what is missing is said aloud.

    Raises UsageError when none but an unasked CPU is left.
    """
    there = available_providers()
    found = [_PROVIDERS[name][0] for name in asked if _PROVIDERS[name][0] in there]
    missing = [
        f"{name} is not in this onnxruntime (it comes with {_PROVIDERS[name][1]})"
        for name in asked
        if _PROVIDERS[name][0] not in there
    ]
    if not found:
        raise UsageError(f"provider {'; '.join(missing)}; install it, or name cpu as well to fall back on")
    for words in missing:
        logger.warning("provider %s; falling back on %s", words, found[0])
    return found if CPU in found else [*found, CPU]
