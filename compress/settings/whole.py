"""The sections `export`, `budget` and `bench`: what a bundle carries, and what a whole run is held to."""

from typing import Annotated, Literal

from pydantic import Field

from compress.settings.common import Positive, Settings, Share
from export.manifest import ModelName, ModelVersion


class ExportSettings(Settings):
    """What every bundle carries."""

    name: ModelName | None = None
    """Model name in the manifest and in URLs; None: that of the bundle's folder."""
    version: Annotated[ModelVersion, Field(coerce_numbers_to_str=True)] = "1"
    """Of the model in the manifest and in URLs, and of its folder in a folder of models, NAME/VERSION. The server takes
    the greatest number for the newest."""
    outputs: Literal["mask", "logits", "both"] = "mask"
    """Of the graph: the class of each pixel, the logits that it comes from (windows and probabilities need them)."""
    golden: Literal["calibration", "synthetic"] = "calibration"
    """Where the golden inputs come from; synthetic when pixels must not leave the house."""
    golden_images: Positive = 4
    """How many golden inputs a bundle carries."""


class BudgetSettings(Settings):
    """What a whole run must gain and may lose: the served model against the dense one in FP32, on the test split."""

    speedup: Annotated[float, Field(gt=1)] | None = None
    """Wanted latency gain, both through ONNX Runtime in one run; None: none is asked for."""
    max_drop: Share | None = None
    """mIoU that may be lost, absolute; None: the report only states it."""
    above_lookup_table: Share | None = None
    """mIoU by which the dense model must beat the best grey-value look-up table."""


class BenchSettings(Settings):
    """The latency part of the report."""

    rounds: Positive = 50
    """Times that each model is timed, in turns."""
    threads: Positive | None = None
    """None: all cores that the process may use."""
