"""The sections `export`, `budget` and `bench`: what a bundle contains, and what a whole run must reach."""

from typing import Annotated, Literal

from pydantic import Field

from compress.settings.common import Positive, Settings, Share
from export.manifest import ModelName, ModelVersion


class ExportSettings(Settings):
    """What every bundle contains."""

    name: ModelName | None = None
    """Model name in the manifest and in URLs; None: the name of the bundle's folder."""
    version: Annotated[ModelVersion, Field(coerce_numbers_to_str=True)] = "1"
    """Model version in the manifest and in URLs, and the name of its folder in a folder of models (NAME/VERSION). The
    server takes the greatest number as the newest."""
    outputs: Literal["mask", "logits", "both"] = "mask"
    """Outputs of the graph: the class of each pixel (mask), the logits it is computed from, or both. Windows and
    probabilities need the logits."""
    golden: Literal["calibration", "synthetic"] = "calibration"
    """Source of the golden inputs, the images in a bundle on which its answers are verified. synthetic: for data whose
    pixels must not be passed on."""
    golden_images: Positive = 4
    """Number of golden inputs in a bundle."""


class BudgetSettings(Settings):
    """What a whole run must gain and may lose: the served model against the dense FP32 model, on the test split."""

    speedup: Annotated[float, Field(gt=1)] | None = None
    """Speed-up to reach, both models timed through ONNX Runtime in one run; None: no requirement."""
    max_drop: Share | None = None
    """mIoU that may be lost, absolute; None: the report only states the loss."""
    above_lookup_table: Share | None = None
    """mIoU by which the dense model must beat the best look-up table from grey value to class."""


class BenchSettings(Settings):
    """The latency part of the report."""

    rounds: Positive = 50
    """Timed runs of each model; the models take turns."""
    threads: Positive | None = None
    """Threads of one run; None: all cores that the process may use."""
