"""The outcomes of a run of requests, in figures."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from benchmarks.load.drive import OK, Outcome
from benchmarks.report.load.results import LoadSummary, Percentile

PERCENTILES = (50.0, 95.0, 99.0, 99.9)


def summarised(outcomes: Sequence[Outcome]) -> LoadSummary:
    """All of a run's requests; the latencies are of those that were answered 200."""
    return pooled([outcomes])


def pooled(runs: Sequence[Sequence[Outcome]]) -> LoadSummary:
    """Several runs as if they were one: percentiles of all their requests, over the sum of their seconds."""
    outcomes = [outcome for run in runs for outcome in run]
    times = np.array([outcome.latency_ms for outcome in outcomes if outcome.result == OK])
    errors = Counter(outcome.result for outcome in outcomes if outcome.result != OK)
    seconds = sum(max((outcome.ended for outcome in run), default=0.0) for run in runs)
    return LoadSummary(
        sent=len(outcomes),
        ok=len(times),
        errors=dict(sorted(errors.items())),
        seconds=seconds,
        throughput=len(times) / seconds if seconds else 0.0,
        latency=tuple(_percentile(times, percent) for percent in PERCENTILES) if len(times) else (),
    )


def _percentile(times: "np.ndarray[tuple[int], np.dtype[np.float64]]", percent: float) -> Percentile:
    # A time that was measured, not an interpolated one: with few requests the tail must not be smoothed.
    found = float(np.percentile(times, percent, method="higher"))
    return Percentile(percent=percent, milliseconds=found, beyond=int((times > found).sum()))
