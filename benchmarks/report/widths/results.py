"""The figures of `compress bench widths`: what its report.json holds.

Times are milliseconds, mIoU is between 0 and 1.
"""

from benchmarks.report.results import DataUsed, Latency, Measurement, Part
from export.manifest import Precision


class Choice(Part):
    """One way to choose widths, carried out and not fine-tuned."""

    name: str
    how: str
    widths: dict[str, int]
    """Channels that stay, by the first layer of each group."""
    importance_lost: float
    """Share of the importance of all channels."""
    damage: float | None = None
    """What a search of widths minimises: `Scores.damage`, summed over the groups; None in reports from before."""
    macs: int
    """Multiply-accumulates of the convolutions that the latency table knows."""
    latency_ms: Latency
    speedup: float
    """Median latency of the dense network over this one's, all taking turns in one run."""
    speedup_predicted: float
    """By the latency table."""
    miou: float
    """On the validation split, with BatchNorm statistics recomputed."""


class WidthsReport(Measurement):
    """The same network cut in several ways."""

    data: DataUsed
    precision: Precision
    importance: str
    """The criterion."""
    threads: int
    height: int
    width: int
    asked: float
    """The speed-up that was asked of the latency table and of the ratios."""
    choices: tuple[Choice, ...]
    """The first is the dense network."""
