"""A report whose verdicts decide how a command ends."""

from collections.abc import Iterable
from pathlib import Path

from benchmarks.report.results import Verdict
from export.errors import BudgetMissedError


def require_met(verdicts: Iterable[Verdict], out: Path) -> None:
    """Raise BudgetMissedError naming each of `verdicts` that does not hold; the report in `out` is already written."""
    missed = [f"{verdict.text}: {verdict.detail}" for verdict in verdicts if not verdict.ok]
    if missed:
        lines = "".join(f"\n  - {line}" for line in missed)
        raise BudgetMissedError(f"measured, and the report is in {out}, but these checks failed:{lines}")
