"""The figures of `compress bench ops`: what its report.json holds.

Times are milliseconds; GMAC/s are thousands of millions of multiply-accumulates a second; shares are between 0 and 1.
"""

from typing import Literal

from benchmarks.report.results import Latency, Measurement, Part
from export.manifest import Precision

Kind = Literal["integer", "float"]
"""What an operator works on: float if a tensor that it reads or writes is float, weights and scales aside."""


class NodeTime(Part):
    """One node of the graph that the runtime made of the bundle's."""

    name: str
    layer: str | None
    """The layer or node of model.onnx that it came from; None for what the runtime added."""
    op: str
    output: tuple[int, ...]
    """Shape of its first output, in the runtime's own layout."""
    kind: Kind
    milliseconds: float
    """Median over the profiled runs."""
    share: float
    """Of the sum over all nodes."""
    macs: int | None
    """Of a convolution, for the whole batch; channels that the runtime adds to fill its blocks are not counted."""
    gmacs_per_s: float | None
    samples_ms: tuple[float, ...]
    """Raw times in the order in which they were taken."""


class OperatorTime(Part):
    """All nodes of one operator and kind."""

    op: str
    kind: Kind
    nodes: int
    milliseconds: float
    share: float
    macs: int | None
    gmacs_per_s: float | None


class FloatNode(Part):
    """What runs in float in an INT8 bundle."""

    node: str
    layer: str | None
    op: str
    milliseconds: float
    share: float
    reason: str
    told_by: Literal["manifest", "graph"]
    """Where the reason comes from: the bundle's manifest, or the graph as it is run here."""


class PeakPoint(Part):
    """One product of square matrices."""

    side: int
    milliseconds: float
    """Of the fastest run: a disturbance only ever makes a product slower."""
    gmacs_per_s: float
    samples_ms: tuple[float, ...]


class Peak(Part):
    """How fast this machine multiplies at best, through the same runtime with the same threads in the same run."""

    precision: Precision
    op: str
    gmacs_per_s: float
    """Of the fastest side."""
    points: tuple[PeakPoint, ...]


class BundleOps(Part):
    """Where the time of one bundle goes."""

    name: str
    bundle: str
    """Name of the bundle's folder."""
    precision: Precision
    macs: int
    """Of the convolutions, for the whole batch."""
    whole_ms: Latency
    """Whole runs without the profiler, uint8 image to uint8 mask."""
    profiled_ms: float
    """Whole runs with the profiler: the median of what all nodes took together."""
    nodes_ms: float
    """Sum of the nodes' medians; less than `profiled_ms` where a busy machine disturbs some node in most runs."""
    convolutions_ms: float
    """The part of `nodes_ms` that convolutions take."""
    convolutions_gmacs_per_s: float | None
    """None without a convolution."""
    graph_gmacs_per_s: float | None
    """The same multiply-accumulates over the median of whole runs."""
    convolutions_of_peak: float | None
    """Share of the machine's measured peak in this precision; None where that was not measured."""
    graph_of_peak: float | None
    nodes: tuple[NodeTime, ...]
    """In the order in which they run."""
    operators: tuple[OperatorTime, ...]
    """The slowest first."""
    floats: tuple[FloatNode, ...]
    """In the order in which they run; none for a float bundle, which is meant to be float."""
    not_in_float: tuple[str, ...]
    """Layers that the manifest names as left in float, but that do not run in float here."""


class OpsReport(Measurement):
    """Bundles taken apart, side by side."""

    threads: int
    batch: int
    height: int
    width: int
    """Of the images that the graphs were given, padding included."""
    runs: int
    """With the profiler, and as many without it."""
    peaks: tuple[Peak, ...]
    """One for each precision among the bundles; none where they were not asked for."""
    bundles: tuple[BundleOps, ...]
