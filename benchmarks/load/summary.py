"""What came of a run of requests, in figures."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from pydantic import Field

from benchmarks.load.drive import OK, Outcome
from benchmarks.report.results import Part

PERCENTILES = (50.0, 95.0, 99.0, 99.9)


class Percentile(Part):
    """A point of the distribution, and on how many requests it rests."""

    percent: float
    milliseconds: float
    beyond: int = Field(ge=0)
    """Requests that took longer: of fewer than ten, the figure is chance."""


class LoadSummary(Part):
    """One run."""

    sent: int
    """Requests that were due; each is in `ok` or once in `errors`."""
    ok: int
    errors: dict[str, int]
    """timeout, connection, or a status, with how often."""
    seconds: float
    """From the start to the last outcome."""
    throughput: float
    """Answers 200 a second."""
    latency: tuple[Percentile, ...]
    """Of the answers 200, from when they were due; none where there are none."""

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> "LoadSummary":
        times = np.array([outcome.latency_ms for outcome in outcomes if outcome.result == OK])
        errors = Counter(outcome.result for outcome in outcomes if outcome.result != OK)
        seconds = max((outcome.ended for outcome in outcomes), default=0.0)
        return cls(
            sent=len(outcomes),
            ok=len(times),
            errors=dict(sorted(errors.items())),
            seconds=seconds,
            throughput=len(times) / seconds if seconds else 0.0,
            latency=tuple(_percentile(times, percent) for percent in PERCENTILES) if len(times) else (),
        )


def _percentile(times: "np.ndarray[tuple[int], np.dtype[np.float64]]", percent: float) -> Percentile:
    # A time that was measured, not one between two: with few requests the tail must not be smoothed.
    found = float(np.percentile(times, percent, method="higher"))
    return Percentile(percent=percent, milliseconds=found, beyond=int((times > found).sum()))
