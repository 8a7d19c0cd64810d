"""The figures of `compress bench peers`: what its report.json holds."""

from benchmarks.report.load.results import LoadSummary, Requests
from benchmarks.report.results import Measurement, Part, Verdict


class Cell(Part):
    """What one server did in one hard case."""

    good: bool
    text: str


class PeerResult(Part):
    """One server."""

    name: str
    version: str
    """Of its package."""
    closed: tuple[LoadSummary, ...]
    """At saturation, one for each turn."""
    capacity: float
    """Median of their throughput."""
    opened: LoadSummary
    """Poisson arrivals, all servers at the same rate; the requests of all turns together."""
    opened_turns: tuple[LoadSummary, ...] = ()
    """The same, one for each turn; empty in reports from before they took turns."""
    behaviours: dict[str, Cell]


class PeersReport(Measurement):
    """Servers side by side with one model."""

    bundle: str
    requests: Requests
    workers: int
    """Runs at once, in each server."""
    connections: int
    """Of the closed loops."""
    seconds: float
    """Of each closed loop, and of all open loops of a server together."""
    turns: int
    rate: float
    """Of the open loops, requests a second."""
    servers: tuple[PeerResult, ...]
    """Ours first."""
    verdicts: tuple[Verdict, ...] = ()
    failures: tuple[str, ...] = ()
    """Servers that did not run, and why."""
