"""What the server is held to, decided from the figures alone."""

from collections.abc import Iterable

from benchmarks.report.load.results import LoadReport, Run
from benchmarks.report.load.words import conditions
from benchmarks.report.results import Verdict
from benchmarks.report.words import number, optional, percent

KEPT = 0.92
"""Share of the throughput of the same work without HTTP."""
ADDED_MS = 3.0
"""What HTTP may add to one image at a time."""
HEALTH_MS = 50.0
"""Probes decide within about a second; they must not wait behind images."""

_CLIENT_GAVE_UP = ("timeout", "connection")
_REFUSALS = frozenset({"429", "503", "504"})


def verdicts(report: LoadReport) -> tuple[Verdict, ...]:
    return tuple(_all(report))


def _all(report: LoadReport) -> Iterable[Verdict]:
    ceiling = report.ceiling
    if ceiling is not None:
        shares = ", ".join(percent(pair.over_http / pair.direct) for pair in ceiling.throughput)
        yield Verdict(
            ok=ceiling.kept >= KEPT,
            text=f"at saturation the server keeps {percent(KEPT)} of the throughput of the same work without HTTP",
            detail=f"{percent(ceiling.kept)}; by turn {shares}; {conditions(report)}",
        )
        added = ", ".join(number(pair.over_http - pair.direct) for pair in ceiling.latency_ms)
        yield Verdict(
            ok=ceiling.added_ms <= ADDED_MS,
            text=f"HTTP adds at most {number(ADDED_MS)} ms to one image at a time",
            detail=f"{number(ceiling.added_ms)} ms; by turn {added}; {conditions(report)}",
        )
    probed = [run.health for run in report.runs if run.health is not None]
    if probed:
        slowest = max((health.p99_ms for health in probed if health.p99_ms is not None), default=None)
        failed = sum(health.failed for health in probed)
        asked = sum(health.asked for health in probed)
        yield Verdict(
            ok=not failed and slowest is not None and slowest < HEALTH_MS,
            text=f"health answers within {number(HEALTH_MS)} ms at every load",
            detail=f"{asked} probes, {failed} failed, the largest p99 of a run {optional(slowest)} ms",
        )
    odd = [error for run in report.runs for error in run.client.errors if error not in _REFUSALS]
    yield Verdict(
        ok=not odd,
        text="no request failed other than by a refusal",
        detail=", ".join(sorted(set(odd))) or f"{sum(run.client.ok for run in report.runs)} answered 200",
    )
    yield from _counted(report.runs)


def _counted(runs: Iterable[Run]) -> Iterable[Verdict]:
    """Both sides count the same answers, in the runs where no client left first."""
    compared = [run for run in runs if run.server is not None and not {*_CLIENT_GAVE_UP} & run.client.errors.keys()]
    if compared:
        ours = [{**run.client.errors, "200": run.client.ok} for run in compared]
        theirs = [run.server.answers for run in compared if run.server is not None]
        same = [_nonzero(one) == _nonzero(other) for one, other in zip(ours, theirs, strict=True)]
        yield Verdict(
            ok=all(same),
            text="every request has exactly one answer, counted on both sides",
            detail=f"{sum(run.client.sent for run in compared)} requests in {len(compared)} runs, "
            f"{same.count(False)} runs differ",
        )


def _nonzero(counts: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}
