"""The queue on its own: accepted work ends exactly once, and work that nobody waits for is not begun."""

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.queue import UNFINISHED, DeadlineError, QueueFullError, WorkQueue

Call = Callable[[], Any]


def both_are_partial(one: Call, other: Call) -> bool:
    """Keep the gates that hold workers up out of batches: work run together with one would have begun."""
    return isinstance(one, partial) and isinstance(other, partial)


def call_each(calls: Sequence[Call]) -> list[Any]:
    """What each call returns, or the ValueError that it raises."""
    outcomes: list[Any] = []
    for call in calls:
        try:
            outcomes.append(call())
        except ValueError as error:
            outcomes.append(error)
    return outcomes


@asynccontextmanager
async def running(*, workers: int, limit: int, **batching: Any) -> AsyncIterator[WorkQueue[Call]]:
    queue = WorkQueue(call_each, workers=workers, limit=limit, **batching)
    queue.start()
    try:
        yield queue
    finally:
        queue.close(timeout_seconds=5)


@settings(max_examples=40)
@given(
    workers=st.integers(1, 4),
    fates=st.lists(st.sampled_from(["result", "error", "cancelled", "deadline"]), max_size=30),
    max_batch=st.integers(1, 5),
    delay=st.sampled_from([0.0, 0.002]),
)
def test_every_piece_of_work_has_exactly_the_end_it_should(
    workers: int, fates: list[str], max_batch: int, delay: float
) -> None:
    """Cancellations and failures at random never change what their neighbours get, in a batch or out of it."""
    batching = {"max_batch": max_batch, "batch_delay_seconds": delay, "mates": both_are_partial}
    begun: list[int] = []

    def work(index: int) -> int:
        begun.append(index)
        time.sleep(0.0005)
        if fates[index] == "error":
            raise ValueError(index)
        return 10 * index

    async def scenario() -> Sequence[Any]:
        async with running(workers=workers, limit=len(fates), **batching) as queue:
            gate = threading.Event()
            blockers = [asyncio.create_task(queue.run(gate.wait, deadline_seconds=60)) for _ in range(workers)]
            while queue.running < workers:
                await asyncio.sleep(0)
            tasks = [
                asyncio.create_task(queue.run(partial(work, i), deadline_seconds=0.01 if fate == "deadline" else 60))
                for i, fate in enumerate(fates)
            ]
            await asyncio.sleep(0)
            late = [task for task, fate in zip(tasks, fates, strict=True) if fate == "deadline"]
            await asyncio.gather(*late, return_exceptions=True)
            for task, fate in zip(tasks, fates, strict=True):
                if fate == "cancelled":
                    task.cancel()
            await asyncio.sleep(0)
            gate.set()
            await asyncio.gather(*blockers)
            return await asyncio.gather(*tasks, return_exceptions=True)

    outcomes = asyncio.run(scenario())
    for index, (fate, outcome) in enumerate(zip(fates, outcomes, strict=True)):
        if fate == "result":
            assert outcome == 10 * index
        else:
            expected = {"error": ValueError, "cancelled": asyncio.CancelledError, "deadline": DeadlineError}[fate]
            assert isinstance(outcome, expected)
            assert fate != "error" or (isinstance(outcome, ValueError) and outcome.args == (index,))
    assert sorted(begun) == [index for index, fate in enumerate(fates) if fate in ("result", "error")]


def test_work_is_begun_in_the_order_in_which_it_came() -> None:
    begun: list[int] = []

    async def scenario() -> None:
        async with running(workers=1, limit=50) as queue:
            await asyncio.gather(*[queue.run(partial(begun.append, i), deadline_seconds=60) for i in range(50)])

    asyncio.run(scenario())
    assert begun == list(range(50))


@pytest.mark.parametrize(("workers", "limit"), [(1, 0), (2, 3), (3, 1)])
def test_workers_and_limit_bound_what_is_accepted(workers: int, limit: int) -> None:
    async def scenario() -> tuple[int, list[int]]:
        async with running(workers=workers, limit=limit) as queue:
            gate = threading.Event()
            tasks = [asyncio.create_task(queue.run(gate.wait, deadline_seconds=60)) for _ in range(workers + limit + 4)]
            await asyncio.sleep(0.02)
            gate.set()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            again = await queue.run(lambda: 7, deadline_seconds=60)
            assert again == 7
            accepted = sum(outcome is True for outcome in outcomes)
            return accepted, [o.retry_after_seconds for o in outcomes if isinstance(o, QueueFullError)]

    accepted, refusals = asyncio.run(scenario())
    assert accepted == workers + limit
    assert len(refusals) == 4
    assert min(refusals) >= 1


def test_a_deadline_holds_even_when_the_event_loop_is_late() -> None:
    begun = threading.Event()

    async def scenario() -> None:
        async with running(workers=1, limit=2) as queue:
            gate = threading.Event()
            blocker = asyncio.create_task(queue.run(gate.wait, deadline_seconds=60))
            late = asyncio.create_task(queue.run(begun.set, deadline_seconds=0.05))
            await asyncio.sleep(0)
            time.sleep(0.1)  # the loop is busy: its timer for the deadline cannot fire
            gate.set()
            time.sleep(0.1)
            await blocker
            with pytest.raises(DeadlineError):
                await late

    asyncio.run(scenario())
    assert not begun.is_set()


def test_the_estimate_follows_the_service_time() -> None:
    async def scenario() -> tuple[float, float]:
        async with running(workers=2, limit=10) as queue:
            assert queue.estimated_wait_seconds == 0
            for _ in range(3):
                await queue.run(lambda: time.sleep(0.05), deadline_seconds=60)
            idle = queue.estimated_wait_seconds
            gate = threading.Event()
            tasks = [asyncio.create_task(queue.run(gate.wait, deadline_seconds=math.inf)) for _ in range(6)]
            await asyncio.sleep(0.02)
            busy = queue.estimated_wait_seconds
            gate.set()
            await asyncio.gather(*tasks)
            return idle, busy

    idle, busy = asyncio.run(scenario())
    assert idle == 0
    # Four wait, two run: the fifth in line is served after five turns shared by two workers.
    assert 5 * 0.05 / 2 <= busy < 5 * 0.5 / 2


def test_what_is_refused_in_a_moment_does_not_shorten_the_estimate() -> None:
    def garbage() -> None:
        raise ValueError("no image")

    async def scenario() -> tuple[float, float]:
        async with running(workers=1, limit=10, took_its_time=lambda call: call is not garbage) as queue:

            async def estimate() -> float:
                async with held(queue, []):
                    return queue.estimated_wait_seconds

            for _ in range(3):
                await queue.run(lambda: time.sleep(0.05), deadline_seconds=60)
            before = await estimate()
            for _ in range(50):
                with pytest.raises(ValueError, match="no image"):
                    await queue.run(garbage, deadline_seconds=60)
            assert queue.running == 0
            return before, await estimate()

    before, after = asyncio.run(scenario())
    assert before >= 0.05
    assert after >= 0.8 * before, "at most the call that held the worker up counts beside the three"


def test_what_waits_is_estimated_by_its_own_kind() -> None:
    async def scenario() -> dict[str, float]:
        async with running(workers=1, limit=20, kind=lambda call: getattr(call, "args", ("gate",))) as queue:
            slow, fast, new = partial(time.sleep, 0.2), partial(time.sleep, 0.002), partial(time.sleep, 0.0)
            for call in (slow, fast) * 2:
                await queue.run(call, deadline_seconds=60)
            found = {}
            for name, calls in {"slow": [slow] * 3, "fast": [fast] * 3, "both": [slow, fast], "new": [new]}.items():
                async with held(queue, calls):
                    found[name] = queue.estimated_wait_seconds
            async with held(queue, []):
                found["gate"] = queue.estimated_wait_seconds
            return found

    found = asyncio.run(scenario())
    # Each waits behind a gate, which holds the worker up: a kind of its own that takes next to no time after the first.
    ahead = {name: seconds - found["gate"] for name, seconds in found.items()}
    assert 0.6 <= ahead["slow"] < 0.9
    assert ahead["fast"] < 0.2
    assert 0.2 <= ahead["both"] < 0.4
    assert ahead["new"] > 0.01, "of what has not run yet, what is known of the others is supposed"


@asynccontextmanager
async def held(queue: WorkQueue[Call], calls: Sequence[Call]) -> AsyncIterator[list["asyncio.Task[Any]"]]:
    """Calls that wait in `queue` until the block is left, behind a gate for each of its workers."""
    gate = threading.Event()
    blockers = [asyncio.create_task(queue.run(gate.wait, deadline_seconds=60)) for _ in range(queue.workers)]
    while queue.running < queue.workers:
        await asyncio.sleep(0)
    tasks = [asyncio.create_task(queue.run(call, deadline_seconds=60)) for call in calls]
    while queue.waiting < len(calls):
        await asyncio.sleep(0)
    yield tasks
    gate.set()
    await asyncio.gather(*blockers, *tasks)


class Batches:
    """Runs calls and remembers how many were run together."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, calls: Sequence[Call]) -> list[Any]:
        self.sizes.append(len(calls))
        return call_each(calls)


def test_what_waits_is_taken_together_up_to_the_largest_batch() -> None:
    batches = Batches()

    def mates(one: Call, other: Call) -> bool:
        return bool(one() == other())

    async def scenario() -> list[Any]:
        queue = WorkQueue(batches, workers=1, limit=20, max_batch=3, mates=mates)
        queue.start()
        calls = [partial(int, kind) for kind in "1121121"]
        async with held(queue, calls) as tasks:
            pass
        queue.close(timeout_seconds=5)
        return [task.result() for task in tasks]

    assert asyncio.run(scenario()) == [1, 1, 2, 1, 1, 2, 1]
    # The gate; three of kind 1 from anywhere in the queue; both of kind 2, which came before the last 1s; those.
    assert batches.sizes == [1, 3, 2, 2]


def test_without_batching_each_is_run_alone() -> None:
    batches = Batches()

    async def scenario() -> None:
        queue = WorkQueue(batches, workers=1, limit=20, mates=lambda one, other: True)
        queue.start()
        async with held(queue, [int] * 5):
            pass
        queue.close(timeout_seconds=5)

    asyncio.run(scenario())
    assert batches.sizes == [1] * 6


def test_a_delay_waits_for_more_to_come() -> None:
    batches = Batches()

    async def scenario() -> None:
        queue = WorkQueue(
            batches, workers=1, limit=20, max_batch=3, batch_delay_seconds=30, mates=lambda one, other: True
        )
        queue.start()
        tasks = []
        for _ in range(3):
            tasks.append(asyncio.create_task(queue.run(int, deadline_seconds=60)))
            await asyncio.sleep(0.01)
        await asyncio.gather(*tasks)  # the third fills the batch, which ends the delay
        queue.close(timeout_seconds=5)

    asyncio.run(scenario())
    assert batches.sizes == [3]


def test_a_batch_that_waits_for_more_does_not_hear_what_is_meant_for_another() -> None:
    async def scenario() -> list[str]:
        queue: WorkQueue[str] = WorkQueue(
            list,
            workers=2,
            limit=20,
            max_batch=2,
            batch_delay_seconds=30,
            mates=lambda one, other: one == other,
        )
        queue.start()
        tasks = []
        for kind in ("one", "two", "two"):
            tasks.append(asyncio.create_task(queue.run(kind, deadline_seconds=60)))
            await asyncio.sleep(0.05)
        async with asyncio.timeout(15):  # the pair is a full batch; only the first still waits for a mate
            pair = await asyncio.gather(*tasks[1:])
        assert not tasks[0].done()
        tasks[0].cancel()
        queue.close(timeout_seconds=5)
        return pair

    assert asyncio.run(scenario()) == ["two", "two"]


def test_the_worker_that_worked_last_works_next() -> None:
    """Its processor still has the model in its cache."""

    async def scenario() -> list[str]:
        names = []
        async with running(workers=2, limit=20) as queue:
            for _ in range(20):
                names.append(await queue.run(lambda: threading.current_thread().name, deadline_seconds=60))
                await asyncio.sleep(0.02)  # by now the worker is idle again
        return names

    names = asyncio.run(scenario())
    assert max(map(names.count, names)) > 15


def test_who_leaves_while_a_batch_waits_for_more_is_not_computed() -> None:
    begun: list[int] = []

    async def scenario() -> list[Any]:
        batching = {"max_batch": 4, "batch_delay_seconds": 30, "mates": both_are_partial}
        async with running(workers=1, limit=20, **batching) as queue:
            tasks = [asyncio.create_task(queue.run(partial(begun.append, i), deadline_seconds=60)) for i in range(2)]
            tasks.append(asyncio.create_task(queue.run(partial(begun.append, 2), deadline_seconds=0.05)))
            while queue.waiting or not queue.running:
                await asyncio.sleep(0)
            tasks[0].cancel()
            await asyncio.sleep(0.1)
            # A full batch with the second and the third, whose deadline has passed unnoticed so far.
            tasks += [
                asyncio.create_task(queue.run(partial(begun.append, index), deadline_seconds=60)) for index in (3, 4, 5)
            ]
            return await asyncio.gather(*tasks[:5], return_exceptions=True)

    first, second, third, fourth, fifth = asyncio.run(scenario())
    assert isinstance(first, asyncio.CancelledError)
    assert isinstance(third, DeadlineError)
    assert (second, fourth, fifth, begun[:3]) == (None, None, None, [1, 3, 4])


def test_who_would_wait_too_long_is_refused_at_once() -> None:
    async def scenario() -> list[str]:
        async with running(workers=1, limit=50) as queue:
            await queue.run(lambda: time.sleep(0.05), deadline_seconds=60)
            gate = threading.Event()
            tasks = [asyncio.create_task(queue.run(gate.wait, deadline_seconds=60)) for _ in range(2)]
            while queue.waiting < 1:
                await asyncio.sleep(0)
            # One runs, one waits: a third would wait for two turns.
            turn = queue.estimated_wait_seconds / 2
            assert turn >= 0.05
            queue.max_wait_seconds = 2.5 * turn
            seen: list[str] = []
            for deadline in (60, 1.5 * turn, 60, 60):
                task = asyncio.create_task(queue.run(gate.wait, deadline_seconds=deadline))
                await asyncio.sleep(0)
                if task.done():
                    error = task.exception()
                    assert isinstance(error, QueueFullError)
                    assert error.retry_after_seconds >= 1
                    seen.append(error.reason)
                else:
                    tasks.append(task)
                    seen.append("waits")
            gate.set()
            await asyncio.gather(*tasks)
            return seen

    # The second has too short a deadline; with the first in the queue, the third would wait for three turns.
    assert asyncio.run(scenario()) == ["waits", "wait_too_long", "wait_too_long", "wait_too_long"]


@settings(max_examples=25)
@given(
    turns=st.lists(st.integers(1, 4), min_size=1, max_size=12),
    workers=st.integers(1, 3),
    max_batch=st.integers(1, 4),
)
def test_work_in_several_turns_gets_all_of_them_and_ends_once(turns: list[int], workers: int, max_batch: int) -> None:
    done = [0] * len(turns)

    def turn(index: int) -> object:
        done[index] += 1
        if done[index] < turns[index]:
            return UNFINISHED
        if index % 4 == 3:
            raise ValueError(index)
        return index

    async def scenario() -> list[Any]:
        batching = {"max_batch": max_batch, "mates": both_are_partial}
        async with running(workers=workers, limit=len(turns), **batching) as queue:
            works = [partial(turn, index) for index in range(len(turns))]
            outcomes = await queue.run_all(works, deadline_seconds=60)
            while queue.running:
                await asyncio.sleep(0)
            assert queue.waiting == 0
            return outcomes

    outcomes = asyncio.run(scenario())
    assert done == turns
    for index, outcome in enumerate(outcomes):
        assert outcome == index or (index % 4 == 3 and isinstance(outcome, ValueError) and outcome.args == (index,))


@pytest.mark.parametrize("end", ["cancelled", "deadline"])
def test_between_two_turns_work_that_nobody_waits_for_ends(end: str) -> None:
    done: list[str] = []
    begun, gate = threading.Event(), threading.Event()

    def endless() -> object:
        done.append("turn")
        begun.set()
        gate.wait()
        return UNFINISHED

    async def scenario() -> None:
        async with running(workers=1, limit=5) as queue:
            task = asyncio.create_task(queue.run(endless, deadline_seconds=1 if end == "deadline" else 60))
            assert await asyncio.to_thread(begun.wait, 20)
            if end == "cancelled":
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            else:
                await asyncio.sleep(1.05)
            gate.set()
            if end == "deadline":
                with pytest.raises(DeadlineError, match="next turn"):
                    await task
            assert await queue.run(lambda: 7, deadline_seconds=60) == 7
            assert queue.running == 0

    asyncio.run(scenario())
    assert done == ["turn"]


def test_several_works_are_taken_all_or_none() -> None:
    begun: list[int] = []

    async def scenario() -> None:
        async with running(workers=1, limit=3) as queue:
            gate = threading.Event()
            blocker = asyncio.create_task(queue.run(gate.wait, deadline_seconds=60))
            while queue.running < 1:
                await asyncio.sleep(0)
            with pytest.raises(QueueFullError):
                await queue.run_all([partial(begun.append, index) for index in range(4)], deadline_seconds=60)
            assert queue.waiting == 0
            three = asyncio.create_task(
                queue.run_all([partial(begun.append, index) for index in range(3)], deadline_seconds=60)
            )
            gate.set()
            await asyncio.gather(blocker, three)

    asyncio.run(scenario())
    assert begun == [0, 1, 2]


def test_closing_drops_what_waits_and_ends_the_threads() -> None:
    before = threading.active_count()
    begun: list[str] = []

    async def scenario() -> None:
        queue = WorkQueue(call_each, workers=1, limit=5)
        queue.start()
        gate = threading.Event()
        blocker = asyncio.create_task(queue.run(gate.wait, deadline_seconds=60))
        waiting = asyncio.create_task(queue.run(lambda: begun.append("late"), deadline_seconds=60))
        await asyncio.sleep(0.02)
        threading.Timer(0.05, gate.set).start()
        await asyncio.to_thread(queue.close, timeout_seconds=5)
        assert await blocker is True
        waiting.cancel()

    asyncio.run(scenario())
    assert begun == []
    assert threading.active_count() <= before + 1  # asyncio's own helper thread may linger
