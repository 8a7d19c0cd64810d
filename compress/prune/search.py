"""How much goes: plans that ought to be fast enough, measured as a whole until one is."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from compress.models.plan import PruningPlan
from compress.progress import task
from compress.prune.costs import NetworkCosts
from compress.prune.scores import Scores

HALVINGS = 6
"""Of the range of ratios: a 64th of the channels is finer than multiples of 16 mostly are."""
MEASUREMENTS = 4
"""Of plans as a whole: each is an export, which takes seconds. Twice as many while none of them is fast enough."""
QUESTIONS = 16
STRIDE = 1.04
CLOSE = 1.03
"""A plan that is so much faster than was asked for is as good as one that is just as fast."""


class Search(Protocol):
    """One way to find plans."""

    def plan(self, speedup: float) -> PruningPlan:
        """The one that loses least of those that ought to be `speedup` times faster; the narrowest where none is."""


@dataclass(frozen=True)
class ByTable:
    """A width for every group, and which levels stay: the least importance lost within the time that the latency table
    allows."""

    scores: Scores
    costs: NetworkCosts

    def plan(self, speedup: float) -> PruningPlan:
        ways = self.costs.choices(self.scores.damage)
        budget = ways[0].time(ways[0].widest) / speedup
        found = [way.within(budget) for way in ways]
        time, loss = ways[0].time, ways[0].loss
        return self.scores.plan_of(min(found, key=lambda widths: (max(0.0, time(widths) - budget), loss(widths))))

    def predicted(self, plan: PruningPlan) -> float:
        """The speed-up that the table predicts of `plan`."""
        return self.costs.milliseconds(self.costs.widest) / self.costs.milliseconds(plan.kept())


@dataclass(frozen=True)
class ByRatio:
    """One ratio for the whole network, found by bisection over measured plans."""

    scores: Scores
    multiple: int
    speedup_of: Callable[[PruningPlan], float]

    def plan(self, speedup: float) -> PruningPlan:
        """The lightest plan whose measured speed-up is at least `speedup`."""
        low, high = 0.0, 1.0
        best = self.scores.plan(high, self.multiple)
        with task("search widths", HALVINGS + 1) as bar:
            measured = {best: self.speedup_of(best)}
            bar.advance(1, speedup=measured[best])
            if measured[best] < speedup:
                return best
            for _ in range(HALVINGS):
                ratio = (low + high) / 2
                plan = self.scores.plan(ratio, self.multiple)
                if plan not in measured:
                    measured[plan] = self.speedup_of(plan) if _cuts(plan) else 1.0
                bar.advance(1, speedup=measured[plan])
                if measured[plan] >= speedup:
                    best, high = plan, ratio
                else:
                    low = ratio
        return best


def fast_enough(search: Search, measure: Callable[[PruningPlan], float], wanted: float) -> PruningPlan:
    """The slowest plan that was measured to be `wanted` times faster; else the fastest of all, the narrowest too.

    Asks `search` for more where the last plan fell short of what it ought to be, and for less where it went beyond.
    """
    asked = wanted
    found: dict[PruningPlan, float] = {}
    for _ in range(QUESTIONS):
        plan = search.plan(asked)
        known = plan in found
        if not known:
            found[plan] = measure(plan) if _cuts(plan) else 1.0
        if wanted <= found[plan] <= CLOSE * wanted or len(found) == _most(found, wanted):
            break
        short = found[plan] < wanted
        if known:
            # Widths come in steps: the next plan is a few hundredths away.
            asked *= STRIDE if short else 1 / STRIDE
        else:
            # A hundredth more, where it fell short: the next is to be on the right side of `wanted`.
            asked *= wanted / found[plan] * (1.01 if short else 1.0)
    if max(found.values()) < wanted:
        # On a machine that drifts, plans may fall short one by one; only this one says that it is out of reach.
        narrowest = search.plan(math.inf)
        if narrowest not in found:
            found[narrowest] = measure(narrowest)
    enough = {plan: speedup for plan, speedup in found.items() if speedup >= wanted}
    if enough:
        return min(enough, key=enough.__getitem__)
    return max(filter(_cuts, found), key=found.__getitem__, default=plan)


def _cuts(plan: PruningPlan) -> bool:
    """What takes nothing away is as fast as it was, whatever a disturbed clock says of it."""
    return any(cut.remove for cut in plan.cuts)


def _most(found: Mapping[PruningPlan, float], wanted: float) -> int:
    """How many plans may be measured."""
    return MEASUREMENTS if max(found.values()) >= wanted else 2 * MEASUREMENTS
