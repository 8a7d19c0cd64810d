"""Models take turns, in a new random order each round, on a clock that the test advances."""

from collections.abc import Callable

import pytest

from export.timing import Samples, interleaved


class Clock:
    """Time passes only when a model runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = 0
        self.ran: list[str] = []
        monkeypatch.setattr("time.perf_counter_ns", lambda: self.now_ns)

    def model(self, name: str, *milliseconds: float) -> Callable[[], object]:
        """A model whose runs take these times in turn."""

        def run() -> None:
            self.now_ns += int(milliseconds[self.ran.count(name) % len(milliseconds)] * 1e6)
            self.ran.append(name)

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_every_model_runs_once_a_round_and_warm_up_is_not_counted(clock: Clock) -> None:
    models = {"slow": clock.model("slow", 1000, 1000, 7, 8, 9), "fast": clock.model("fast", 50, 50, 1, 2, 3)}
    taken = interleaved(models, rounds=3, warmup=2)
    assert taken == {"slow": Samples((7, 8, 9)), "fast": Samples((1, 2, 3))}
    rounds = [tuple(clock.ran[i : i + 2]) for i in range(0, len(clock.ran), 2)]
    assert len(rounds) == 5
    assert all(sorted(order) == ["fast", "slow"] for order in rounds)


def test_the_order_changes_between_rounds_and_is_the_same_for_a_seed(clock: Clock) -> None:
    names = "abcd"
    models = {name: clock.model(name, 1) for name in names}
    interleaved(models, rounds=10, warmup=0)
    first, clock.ran = clock.ran, []
    interleaved(models, rounds=10, warmup=0)
    assert clock.ran == first
    assert len({tuple(first[i : i + 4]) for i in range(0, 40, 4)}) > 3


def test_each_round_is_announced(clock: Clock) -> None:
    told: list[int] = []
    interleaved({"a": clock.model("a", 1)}, rounds=4, warmup=1, on_round=lambda: told.append(1))
    assert len(told) == 5


def test_a_model_that_fails_is_not_timed_around(clock: Clock) -> None:
    def broken() -> None:
        raise RuntimeError("no such kernel")

    with pytest.raises(RuntimeError, match="no such kernel"):
        interleaved({"a": clock.model("a", 1), "broken": broken}, rounds=1)


def test_percentiles_are_interpolated() -> None:
    samples = Samples(tuple(float(x) for x in range(1, 101)))
    assert samples.median == 50.5
    assert samples.percentile(0) == 1
    assert samples.percentile(95) == pytest.approx(95.05)
