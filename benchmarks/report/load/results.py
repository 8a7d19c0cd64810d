"""The figures of `compress bench load` and `compress bench soak`: what their report.json holds.

Times are milliseconds, throughput is images a second, shares are between 0 and 1 but may pass 1 for CPUs: 1 is one
core.
"""

from collections.abc import Collection
from typing import Literal

from pydantic import Field

from benchmarks.report.results import Measurement, Part, Verdict
from export.manifest import Precision


class Percentile(Part):
    """A point of the distribution, and how many requests lie beyond it."""

    percent: float
    milliseconds: float
    beyond: int = Field(ge=0)
    """Requests that took longer; with fewer than ten, the figure is chance."""


class LoadSummary(Part):
    """What the clients saw of one run."""

    sent: int
    """Requests that were due; each is in `ok` or once in `errors`."""
    ok: int
    errors: dict[str, int]
    """How often each occurred: timeout, connection, or a status."""
    seconds: float
    """From the start to the last outcome."""
    throughput: float
    """Answers 200 a second."""
    latency: tuple[Percentile, ...]
    """Of the answers 200, from when they were due; empty if there are none."""

    def ms(self, percent: float) -> float | None:
        """The latency at `percent`; None where nothing was answered."""
        return next((point.milliseconds for point in self.latency if point.percent == percent), None)


class Requests(Part):
    """What was sent."""

    media_type: str
    height: int
    width: int
    mean_bytes: float
    source: str


class ServerView(Part):
    """What the server's own metrics say of one run."""

    answers: dict[str, int]
    """By HTTP status."""
    stages_ms: dict[str, float]
    """Mean of each stage, and of the `request` from its headers to its answer."""
    cpu: float
    """Cores that the server kept busy."""
    resident_mib: float
    """At the end."""


class Health(Part):
    """What probes of /v2/health/ready found during the load."""

    asked: int
    failed: int
    p50_ms: float | None
    p99_ms: float | None
    max_ms: float | None


class Run(Part):
    """One run of the load generator."""

    kind: Literal["closed", "open"]
    load: float | None
    """Of an open loop: the rate of arrivals as a share of the capacity that the closed loop found."""
    rate: float | None
    """Of an open loop: requests a second."""
    connections: int | None
    """Of a closed loop."""
    client: LoadSummary
    generator_cpu: float
    """Cores that the load generator kept busy."""
    server: ServerView | None
    """None for a server without our metrics."""
    health: Health | None


class Pair(Part):
    """The same images without HTTP and over HTTP, one after the other."""

    direct: float
    over_http: float


class Ceiling(Part):
    """The server's own work without HTTP, in a process of its own, taking turns with the server."""

    workers: int
    throughput: tuple[Pair, ...]
    """Images a second at saturation, a pair for each turn."""
    latency_ms: tuple[Pair, ...]
    """Median of one image after the other, a pair for each turn."""
    kept: float
    """Throughput over HTTP divided by throughput without, median over the turns."""
    added_ms: float
    """What HTTP adds to one image, median over the turns."""
    model_ms: float | None = None
    """Median of the model's own run, one image after the other without HTTP; None in reports from before it was
    measured."""


class LoadReport(Measurement):
    """How a server behaves under load, and everything that is needed to reproduce the figures."""

    target: str
    """The bundle's folder, or the URL."""
    precision: Precision | None
    """None for a server that was already running."""
    settings: dict[str, str]
    """Those of the server that decide how much load it takes."""
    requests: Requests
    seconds: float
    """Of each run."""
    capacity: float
    """Median of the closed loops' throughput."""
    ceiling: Ceiling | None
    runs: tuple[Run, ...]
    verdicts: tuple[Verdict, ...] = ()


CLIENT_ERROR = "4xx"
"""Among accepted outcomes: any status that says that the client is wrong."""


def is_accepted(outcome: str, accepted: Collection[str]) -> bool:
    """Whether the `outcome` of a hostile client is among those `accepted`."""
    refused = len(outcome) == len(CLIENT_ERROR) and outcome.startswith("4")
    return outcome in accepted or (refused and CLIENT_ERROR in accepted)


class HostileTraffic(Part):
    """The outcomes of one kind of hostile client."""

    kind: str
    outcomes: dict[str, int]
    """How often each occurred: a status, gone, closed or silent."""
    accepted: tuple[str, ...]
    """Outcomes that are acceptable, as `is_accepted` reads them."""


class SoakSample(Part):
    """The server's process at one moment."""

    seconds: float
    """Since the load began."""
    answered: int
    """Requests, since the server's start."""
    resident_mib: float
    descriptors: int
    connections: int = 0
    """To its port, whose clients' ends are open; each needs a descriptor. Older reports do not count them."""
    threads: int

    @property
    def own_descriptors(self) -> int:
        """Those that no open connection needs: files, and what a leak leaves."""
        return self.descriptors - self.connections


class SoakReport(Measurement):
    """How a server holds up over time, and everything that is needed to reproduce the figures."""

    target: str
    """The bundle's folder."""
    minutes: float
    load: float
    """Share of the capacity that a closed loop found just before."""
    rate: float
    """Good requests a second, on average."""
    smallest: int
    largest: int
    """Bounds of height and width in pixels, between which both are drawn evenly for every image."""
    client: LoadSummary
    """Of the good requests."""
    answers: dict[str, int]
    """All, by HTTP status, as the server counts them."""
    hostile: tuple[HostileTraffic, ...]
    samples: tuple[SoakSample, ...]
    verdicts: tuple[Verdict, ...] = ()
