"""The queue on its own: every accepted piece of work has one end, and what nobody wants is not begun."""

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.queue import DeadlineError, QueueFullError, WorkQueue


@asynccontextmanager
async def running(*, workers: int, limit: int) -> AsyncIterator[WorkQueue]:
    queue = WorkQueue(workers=workers, limit=limit)
    queue.start()
    try:
        yield queue
    finally:
        queue.close(timeout_seconds=5)


@settings(max_examples=40, deadline=None)
@given(
    workers=st.integers(1, 4),
    fates=st.lists(st.sampled_from(["result", "error", "cancelled", "deadline"]), max_size=30),
)
def test_every_piece_of_work_has_exactly_the_end_it_should(workers: int, fates: list[str]) -> None:
    """Cancellations and failures at random never change what their neighbours get."""
    begun: list[int] = []

    def work(index: int) -> int:
        begun.append(index)
        time.sleep(0.0005)
        if fates[index] == "error":
            raise ValueError(index)
        return 10 * index

    async def scenario() -> list[int | BaseException]:
        async with running(workers=workers, limit=len(fates)) as queue:
            gate = threading.Event()
            blockers = [asyncio.create_task(queue.run(gate.wait, deadline_seconds=60)) for _ in range(workers)]
            while queue.running < workers:
                await asyncio.sleep(0)
            tasks = [
                asyncio.create_task(queue.run(partial(work, i), deadline_seconds=0.01 if fate == "deadline" else 60))
                for i, fate in enumerate(fates)
            ]
            await asyncio.sleep(0.02 if "deadline" in fates else 0)
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


def test_closing_drops_what_waits_and_ends_the_threads() -> None:
    before = threading.active_count()
    begun: list[str] = []

    async def scenario() -> None:
        queue = WorkQueue(workers=1, limit=5)
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
