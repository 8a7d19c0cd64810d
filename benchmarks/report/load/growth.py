"""Whether memory grows with time, and how certain that is."""

from dataclasses import dataclass

import numpy as np

from benchmarks.report.load.results import SoakReport, SoakSample

SETTLED = 0.25
"""Share of a soak after which memory must have settled."""
_EARLY, _LATE = 500, 5000
"""Requests."""


@dataclass(frozen=True)
class Slope:
    """Of a straight line by least squares."""

    per_hour: float
    error: float
    """Its standard error. Memory changes in steps, so neighbouring samples are not independent, and the true error is
    larger."""


def slope(samples: tuple[SoakSample, ...]) -> Slope | None:
    """The slope of resident memory in MiB, after SETTLED; None for fewer than three samples."""
    chosen = samples[round(SETTLED * len(samples)) :]
    if len(chosen) < 3:
        return None
    hours = np.array([sample.seconds / 3600 for sample in chosen])
    memory = np.array([sample.resident_mib for sample in chosen])
    line, covariance = np.polyfit(hours, memory, 1, cov=True)
    return Slope(float(line[0]), float(np.sqrt(covariance[0, 0])))


def ratio(report: SoakReport) -> float | None:
    """Resident memory after 5,000 images of random sizes over that after 500; None where fewer were answered."""
    early = next((sample for sample in report.samples if sample.answered >= _EARLY), None)
    late = next((sample for sample in report.samples if sample.answered >= _LATE), None)
    return None if early is None or late is None else late.resident_mib / early.resident_mib
