"""How much a figure varies from seed to seed."""

from collections.abc import Sequence
from statistics import fmean, stdev

from benchmarks.report.results import Part

T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""Quantile 0.975 of Student's t distribution with 1, 2, ... 30 degrees of freedom."""


class Spread(Part):
    """One figure over the seeds."""

    mean: float
    deviation: float | None
    """Of the sample (n - 1); None for one seed."""

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(mean=fmean(values), deviation=stdev(values) if len(values) > 1 else None)


def quantile(degrees: int) -> float:
    """Student's t for a 95 % interval; beyond 30 `degrees` of freedom that of 30, which is a little too wide."""
    return T_975[min(degrees, len(T_975)) - 1]
