"""Try what comes after training before it, so that nobody trains for hours a network that cannot be exported."""

import copy
import tempfile
from pathlib import Path

from torch import nn

from compress import models
from compress.models.plan import Dependencies, GroupCut, PruningPlan
from compress.progress import say
from export.errors import ModelError, UsageError, WorkFailedError
from export.to_onnx import export_onnx


def rehearse(factory: str, network: nn.Module, channels: int) -> None:
    """Export a user's network with its fresh weights, and try to prune it. `network` itself is not changed.

    A network that cannot be pruned is reported and accepted: it can still be quantized and served.

    Raises ModelError when it cannot be exported.
    """
    with tempfile.TemporaryDirectory() as scratch:
        try:
            export_onnx(
                copy.deepcopy(network),
                Path(scratch) / "model.onnx",
                channels=channels,
                size_multiple=models.size_multiple(network),
            )
        except WorkFailedError as error:
            raise ModelError(factory, [str(error)]) from error
    try:
        _half(network, channels).apply(network, channels=channels)
    except UsageError as error:
        say(f"{factory} can be trained, quantized and served, but not pruned: {error}")


def _half(network: nn.Module, channels: int) -> PruningPlan:
    """A plan that removes every other channel of every group."""
    widths = Dependencies(copy.deepcopy(network), channels).widths()
    return PruningPlan(
        cuts=tuple(
            GroupCut(layer=layer, width=width, remove=tuple(range(1, width, 2))) for layer, width in widths.items()
        )
    )
