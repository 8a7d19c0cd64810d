"""Find how much to cut: plans that should be fast enough are measured as whole graphs until one is."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from compress.models.plan import PruningPlan
from compress.progress import task
from compress.prune.costs import NetworkCosts
from compress.prune.scores import Scores

HALVINGS = 6
"""Of the range of ratios: a 64th of the channels is mostly finer than steps of 16."""
MEASUREMENTS = 4
"""Of plans as whole graphs, whose exports take seconds each. Twice as many while none of them is fast enough."""
QUESTIONS = 16
STRIDE = 1.04
CLOSE = 1.03
"""A plan up to this many times faster than asked for is as good as one that is just fast enough."""


class Search(Protocol):
    """One way to find plans."""

    def plan(self, speedup: float) -> PruningPlan:
        """The one that loses least of those that should be `speedup` times faster; the narrowest where none is."""


@dataclass(frozen=True)
class ByTable:
    """A width for every group, and which levels stay: the least damage within the time that the latency table
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
        """The speed-up that the table predicts for `plan`."""
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
    """The slowest plan measured to be at least `wanted` times faster; else the fastest of all, the narrowest included.

    Asks `search` for more where the last plan was too slow, and for less where it was faster than `wanted`.
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
            # Where it fell short, a hundredth more, so that the next is on the right side of `wanted`.
            asked *= wanted / found[plan] * (1.01 if short else 1.0)
    if max(found.values()) < wanted:
        # On a machine that drifts, any plan may fall short; only the narrowest shows that the goal is out of reach.
        narrowest = search.plan(math.inf)
        if narrowest not in found:
            found[narrowest] = measure(narrowest)
    enough = {plan: speedup for plan, speedup in found.items() if speedup >= wanted}
    if enough:
        return min(enough, key=enough.__getitem__)
    return max(filter(_cuts, found), key=found.__getitem__, default=plan)


def _cuts(plan: PruningPlan) -> bool:
    """Whether `plan` removes anything. If not, nothing is faster, whatever a disturbed clock says."""
    return any(cut.remove for cut in plan.cuts)


def _most(found: Mapping[PruningPlan, float], wanted: float) -> int:
    """How many plans may be measured."""
    return MEASUREMENTS if max(found.values()) >= wanted else 2 * MEASUREMENTS
