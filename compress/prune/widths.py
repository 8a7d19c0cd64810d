"""Choose a width for each group of layers: the least importance lost within a budget of time.

This is a knapsack whose items depend on each other: a convolution's time is a function of both what it reads and what
it outputs, and each is a group of its own. So the problem is not solved by filling a table. Two solutions are found:
one minimises the Lagrangian (importance lost + price x time) one group at a time, for the lowest price at which the
time fits; the other removes channels one step at a time, where a millisecond costs least. Exchanges improve both, and
the better one is taken. Idea: HALP, Shen et al. 2022 (arXiv:2110.10811), where a layer's time depends on its own width
alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

Widths = dict[str, int]

_SWEEPS = 20
"""Passes over all groups at one price. Two or three are enough; the bound only ends a tie that goes in circles."""
_HALVINGS = 30
_REACH = 3
"""How many choices up or down an exchange may go."""


@dataclass(frozen=True)
class Term:
    """One layer's part of the time, as a function of the widths of `groups`."""

    groups: tuple[str, ...]
    cost: Callable[[Mapping[str, int]], float]
    _known: dict[tuple[int, ...], float] = field(default_factory=dict, repr=False, compare=False)

    def at(self, widths: Mapping[str, int]) -> float:
        key = tuple(widths[name] for name in self.groups)
        if key not in self._known:
            self._known[key] = self.cost(widths)
        return self._known[key]


@dataclass(frozen=True)
class Choices:
    """The widths to choose from, what they lose and what they cost."""

    widths: Mapping[str, Sequence[int]]
    """By group, rising; the last is its present one."""
    lost: Callable[[str, int], float]
    """The importance lost when a group keeps only so many of its channels."""
    terms: Sequence[Term]
    """Their sum is the time."""

    def time(self, widths: Mapping[str, int]) -> float:
        return sum(term.at(widths) for term in self.terms)

    def loss(self, widths: Mapping[str, int]) -> float:
        return sum(self.lost(name, width) for name, width in widths.items())

    @property
    def widest(self) -> Widths:
        return {name: choices[-1] for name, choices in self.widths.items()}

    @property
    def narrowest(self) -> Widths:
        return {name: choices[0] for name, choices in self.widths.items()}

    def within(self, budget: float) -> Widths:
        """The widths that lose least among those that take at most `budget`; the narrowest where none do."""
        if self.time(self.widest) <= budget:
            return self.widest
        if self.time(self.narrowest) > budget:
            return self.narrowest
        starts = (self._cheapest(budget), self._stepwise(budget))
        return min((self._refined(start, budget) for start in starts), key=self.loss)

    def _cheapest(self, budget: float) -> Widths:
        """The solution for the lowest price at which the time fits."""
        low, high, best = 0.0, self._highest_price(), self.narrowest
        for _ in range(_HALVINGS):
            price = (low * high) ** 0.5 if low else high / 1e3
            found = self._descended(self.widest, price)
            if self.time(found) <= budget:
                best, high = min((best, found), key=self.loss), price
            else:
                low = price
            if high / max(low, 1e-300) < 1.001:
                break
        return best

    def _highest_price(self) -> float:
        """A price at which no importance is worth any time."""
        spared = self.time(self.widest) - self.time(self.narrowest)
        return 1e3 * max(self.loss(self.narrowest), 1e-12) / max(spared, 1e-12)

    def _stepwise(self, budget: float) -> Widths:
        """Down from the widest, each step where the least importance is lost for the time saved."""
        widths, time = self.widest, self.time(self.widest)

        def price(other: Widths) -> float:
            won = time - self.time(other)
            return (self.loss(other) - self.loss(widths)) / won if won > 0 else float("inf")

        while time > budget:
            steps = [{**widths, name: down} for name in self.widths for down in self._moves(widths, name, -1, most=1)]
            widths = min(steps, key=price)
            time = self.time(widths)
        return widths

    def _descended(self, start: Mapping[str, int], price: float) -> Widths:
        widths = dict(start)
        for _ in range(_SWEEPS):
            before = dict(widths)
            for name, choices in self.widths.items():
                shares = [self._share(name, width, widths, price) for width in choices]
                widths[name] = choices[shares.index(min(shares))]
            if widths == before:
                break
        return widths

    def _share(self, name: str, width: int, widths: Mapping[str, int], price: float) -> float:
        """The part of the Lagrangian that depends on the group `name`."""
        tried = {**widths, name: width}
        return self.lost(name, width) + price * sum(term.at(tried) for term in self._touching[name])

    def _refined(self, start: Widths, budget: float) -> Widths:
        """Widen a group, or widen one and narrow another, as long as that loses less and still fits."""
        widths, time = start, self.time(start)
        while True:
            best, gained = widths, 0.0
            for change in self._exchanges(widths):
                gain = sum(self.lost(name, widths[name]) - self.lost(name, width) for name, width in change.items())
                if gain > gained + 1e-12 and time + self._time_change(widths, change) <= budget:
                    best, gained = {**widths, **change}, gain
            if best is widths:
                return widths
            widths, time = best, self.time(best)

    def _exchanges(self, widths: Widths) -> Iterator[Widths]:
        for wider in self.widths:
            for up in self._moves(widths, wider, 1):
                yield {wider: up}
                for narrower in self.widths:
                    if narrower != wider:
                        yield from ({wider: up, narrower: down} for down in self._moves(widths, narrower, -1))

    def _time_change(self, widths: Widths, change: Widths) -> float:
        changed = {**widths, **change}
        terms = {id(term): term for name in change for term in self._touching[name]}.values()
        return sum(term.at(changed) - term.at(widths) for term in terms)

    def _moves(self, widths: Widths, name: str, direction: Literal[1, -1], most: int = _REACH) -> Sequence[int]:
        """Up to `most` choices next to the group's present width."""
        choices = self.widths[name]
        index = choices.index(widths[name])
        return choices[index + 1 : index + 1 + most] if direction > 0 else choices[max(index - most, 0) : index]

    @cached_property
    def _touching(self) -> Mapping[str, Sequence[Term]]:
        return {name: [term for term in self.terms if name in term.groups] for name in self.widths}


def choices_of(width: int, multiple: int) -> tuple[int, ...]:
    """The widths that a group of `width` channels may get: multiples of `multiple`, and `width` itself."""
    return (*range(multiple, width, multiple), width)
