"""Plans are measured as a whole until one is fast enough, whatever was predicted for them."""

from collections.abc import Callable, Sequence

import pytest

from compress.models.plan import GroupCut, PruningPlan
from compress.prune.scores import Scores
from compress.prune.search import MEASUREMENTS, ByRatio, fast_enough


def plan_of(removed: int) -> PruningPlan:
    return PruningPlan(cuts=(GroupCut(layer="a", width=256, remove=tuple(range(removed))),))


class Steps:
    """A plan for each predicted speed-up; `plan` gives the one with the lowest that reaches what is asked for."""

    def __init__(self, predicted: Sequence[float]) -> None:
        self.plans = {speedup: plan_of(index) for index, speedup in enumerate(predicted)}

    def plan(self, speedup: float) -> PruningPlan:
        reach = [predicted for predicted in self.plans if predicted >= speedup]
        return self.plans[min(reach, default=max(self.plans))]


def measured(search: Steps, real: Callable[[float], float]) -> tuple[list[float], Callable[[PruningPlan], float]]:
    """Predicted speed-ups in the order in which their plans are measured, and the function that measures them."""
    asked: list[float] = []
    by_plan = {plan: speedup for speedup, plan in search.plans.items()}

    def measure(plan: PruningPlan) -> float:
        asked.append(by_plan[plan])
        return real(by_plan[plan])

    return asked, measure


def test_a_table_that_is_right_is_asked_once() -> None:
    search = Steps([1.0, 1.5, 2.01, 3.0])
    asked, measure = measured(search, lambda predicted: predicted)
    assert fast_enough(search, measure, 2.0) == search.plans[2.01]
    assert asked == [2.01]


@pytest.mark.parametrize("error", [0.8, 0.9, 0.95, 1.1, 1.3])
def test_a_table_that_is_wrong_by_a_factor_is_made_up_for(error: float) -> None:
    search = Steps([1 + index / 20 for index in range(100)])
    asked, measure = measured(search, lambda predicted: error * predicted)
    found = fast_enough(search, measure, 2.0)
    assert 2.0 <= measure(found) <= 2.1
    assert len(asked) <= MEASUREMENTS + 1


def test_where_the_next_plan_is_far_away_it_is_found_all_the_same() -> None:
    """The first falls a little short, and asking for that little more gives the same plan again."""
    search = Steps([1.0, 2.1, 2.6])
    _, measure = measured(search, lambda predicted: predicted * 0.95)
    assert fast_enough(search, measure, 2.0) == search.plans[2.6]


def test_out_of_reach_is_the_fastest() -> None:
    search = Steps([1.0, 2.0, 3.0])
    _, measure = measured(search, lambda predicted: predicted)
    assert fast_enough(search, measure, 9.0) == search.plans[3.0]


def test_a_machine_that_slows_down_does_not_put_it_out_of_reach() -> None:
    """Each plan is predicted to be fast enough, and no longer is when it is measured."""
    search = Steps([1 + index / 20 for index in range(100)])
    taken = 0

    def slower(predicted: float) -> float:
        nonlocal taken
        taken += 1
        return predicted * 0.97**taken if taken < MEASUREMENTS + 2 else predicted

    _, measure = measured(search, slower)
    found = fast_enough(search, measure, 2.0)
    assert taken <= 2 * MEASUREMENTS
    assert measure(found) >= 2.0


def test_only_the_narrowest_says_that_it_is_out_of_reach() -> None:
    """There may be a gap between the plans found by asking for a little more each time and the narrowest one."""
    search = Steps([1.0, *(2 + index / 100 for index in range(40)), 30.0])
    asked, measure = measured(search, lambda predicted: 1.99 if predicted < 30 else 2.5)
    assert fast_enough(search, measure, 2.0) == search.plans[30.0]
    assert asked[-1] == 30.0


def test_what_cuts_nothing_is_not_taken_for_faster_whatever_the_clock_says() -> None:
    """Each plan measures faster than predicted, until none is left that cuts anything."""
    search = Steps([1.0, 1.5, 2.01, 3.0])
    asked, measure = measured(search, lambda predicted: 5.0 - predicted / 10)
    assert fast_enough(search, measure, 2.0) != search.plans[1.0]
    assert asked[0] == 2.01
    assert 1.0 not in asked


def test_a_search_by_ratio_cuts_something(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lower half of the ratios is too small to remove a single step of channels."""
    asked: list[PruningPlan] = []

    def speedup_of(plan: PruningPlan) -> float:
        asked.append(plan)
        return 4.0

    monkeypatch.setattr(Scores, "plan", lambda _, ratio, multiple: plan_of(int(ratio * 2) * multiple))
    scores = object.__new__(Scores)
    found = ByRatio(scores, 16, speedup_of).plan(2.0)
    assert found in asked
    assert found == plan_of(16)
