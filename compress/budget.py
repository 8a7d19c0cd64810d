"""What may be lost; and whether the measurement can tell."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.progress import say
from export.errors import BudgetMissedError


@dataclass(frozen=True)
class Budget:
    """mIoU that may be lost, absolute: 0.01 is one point."""

    max_drop: float


def require_kept(budget: Budget, result: Mapping[str, Any], out: Path) -> None:
    """Judge a step's result (`miou_parent`, `miou`, `drop`, `drop_interval`, `images`) by the budget.

    Warns when the split is too small to tell: when the interval of the drop holds the limit.
    Raises BudgetMissedError when the drop is larger; what is in `out` is kept.
    """
    low, high = result["drop_interval"]
    figures = (
        f"mIoU {result['miou_parent']:.4f} -> {result['miou']:.4f} on {result['images']} validation images, "
        f"a drop of {result['drop']:.4f} (95 % interval {low:.4f} to {high:.4f}); {budget.max_drop:g} may be lost"
    )
    if low <= budget.max_drop <= high:
        say(f"warning: {result['images']} images are too few to tell whether the budget holds: {figures}")
    if result["drop"] > budget.max_drop:
        raise BudgetMissedError(f"the accuracy budget is missed: {figures}. The bundle is kept in {out}")
    say(figures)
