"""The search for widths: what it finds fits the budget, and is nearly the best, which brute force finds."""

import itertools
import math
import random
from collections.abc import Mapping

import pytest

from compress.prune.widths import Choices, Term, choices_of


def chain(seed: int, groups: int, most: int) -> Choices:
    """A chain of convolutions; each costs its channels in times its channels out, and a fixed part."""
    rng = random.Random(seed)
    names = [f"g{index}" for index in range(groups)]
    widths = {name: choices_of(rng.randrange(32, most + 1, 16), 16) for name in names}
    scores = {name: sorted(rng.expovariate(1) for _ in range(widths[name][-1])) for name in names}
    terms = [product(before, after, rng.uniform(0.5, 2)) for before, after in itertools.pairwise(["", *names, ""])]
    terms.append(product(names[0], names[-1], 1.0))  # a skip connection
    return Choices(widths, lambda name, kept: sum(scores[name][: len(scores[name]) - kept]), terms)


def product(before: str, after: str, dear: float) -> Term:
    def cost(widths: Mapping[str, int]) -> float:
        return dear * (widths.get(before, 3) * widths.get(after, 3) / 1000 + 0.1)

    return Term(tuple(name for name in (before, after) if name), cost)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("share", [0.7, 0.4, 0.2])
def test_it_is_nearly_the_best_of_all(seed: int, share: float) -> None:
    choices = chain(seed, groups=4, most=96)
    budget = share * choices.time(choices.widest)
    everything = (dict(zip(choices.widths, w, strict=True)) for w in itertools.product(*choices.widths.values()))
    fitting = [widths for widths in everything if choices.time(widths) <= budget]
    found = choices.within(budget)
    if not fitting:
        assert found == choices.narrowest
        return
    assert choices.time(found) <= budget
    best = min(map(choices.loss, fitting))
    assert choices.loss(found) <= 1.1 * best + 1e-9


def test_a_smaller_budget_never_loses_less() -> None:
    choices = chain(1, groups=12, most=256)
    whole = choices.time(choices.widest)
    losses = [choices.loss(choices.within(whole / speedup)) for speedup in (1, 1.5, 2, 3, 4, 6, 8)]
    assert losses == sorted(losses)
    assert losses[0] == 0


def test_what_costs_no_time_stays() -> None:
    free = Term(("dear",), lambda widths: float(widths["dear"]))
    choices = Choices({"dear": (16, 32, 48), "free": (16, 32, 48)}, lambda name, kept: 48.0 - kept, [free])
    assert choices.within(32.0) == {"dear": 32, "free": 48}


def test_what_is_worth_nothing_goes_first() -> None:
    terms = [Term((name,), lambda widths, name=name: float(widths[name])) for name in ("idle", "busy")]  # type: ignore[misc]
    lost = {"idle": 0.0, "busy": 1.0}
    choices = Choices({"idle": (16, 64), "busy": (16, 64)}, lambda name, kept: lost[name] * (64 - kept), terms)
    assert choices.within(100.0) == {"idle": 16, "busy": 64}


def test_time_decides_and_not_the_number_of_products() -> None:
    """Both take equally many multiplications, but one runs at a tenth of the other's rate."""
    rates = {"slow": 10.0, "fast": 1.0}
    terms = [Term((name,), lambda widths, name=name: rates[name] * widths[name] ** 2) for name in rates]  # type: ignore[misc]
    choices = Choices(dict.fromkeys(rates, choices_of(64, 16)), lambda name, kept: 64.0 - kept, terms)
    found = choices.within(choices.time(choices.widest) / 3)
    assert found["slow"] < found["fast"]


def test_a_budget_beyond_reach_gives_the_narrowest() -> None:
    choices = chain(0, groups=3, most=64)
    assert choices.within(-math.inf) == choices.narrowest
    assert choices.within(math.inf) == choices.widest


@pytest.mark.parametrize(
    ("width", "multiple", "expected"), [(64, 16, (16, 32, 48, 64)), (40, 16, (16, 32, 40)), (8, 16, (8,))]
)
def test_widths_are_multiples_or_what_there_was(width: int, multiple: int, expected: tuple[int, ...]) -> None:
    assert choices_of(width, multiple) == expected
