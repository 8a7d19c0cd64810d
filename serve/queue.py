"""A bounded queue in front of a few worker threads.

What waits is bounded, so a burst costs the excess an honest refusal and not everybody their patience.
What nobody waits for any more, because its deadline has passed or its client has gone, leaves the queue
without having been computed. The threads take work straight from the queue: no turn of the event loop
lies between the end of one run and the start of the next.

Batching fits into `_take`, where a worker decides what it does next.
"""

import asyncio
import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from export.errors import WorkFailedError

T = TypeVar("T")

# Weight of the newest run in the running estimate of service time: the last ten or so count.
_NEWEST = 0.2


class QueueFullError(WorkFailedError):
    """As much is waiting as may wait."""

    def __init__(self, waiting: int, retry_after_seconds: int) -> None:
        super().__init__(f"{waiting} requests are waiting already; try again in {retry_after_seconds} s")
        self.retry_after_seconds = retry_after_seconds


class DeadlineError(WorkFailedError):
    """The deadline passed before the work's turn came; it was not begun."""


class WorkQueue:
    """Runs callables on `workers` threads, first come first served, with at most `limit` of them waiting."""

    def __init__(self, *, workers: int, limit: int) -> None:
        self.workers = workers
        self.limit = limit
        self._changed = threading.Condition()
        self._waiting: deque[_Job[Any]] = deque()
        self._running = 0
        self._closed = False
        self._service_seconds = 0.0
        self._threads: list[threading.Thread] = []

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return self._running

    @property
    def is_full(self) -> bool:
        # Whatever idle workers are about to take is on its way out of the queue and does not count against it.
        return self.waiting + self._running >= self.workers + self.limit

    @property
    def estimated_wait_seconds(self) -> float:
        """How long a newcomer would wait for its turn, from the running mean of service time."""
        ahead = self.waiting + self._running - self.workers + 1
        return max(0, ahead) * self._service_seconds / self.workers

    @property
    def retry_after_seconds(self) -> int:
        """When what waits now will be done, in the whole seconds that Retry-After takes."""
        return max(1, math.ceil(self.estimated_wait_seconds))

    def start(self) -> None:
        """Start the worker threads."""
        # Daemons: a run that outlasts the drain must not keep the process alive.
        self._threads = [
            threading.Thread(target=self._serve, name=f"worker-{index}", daemon=True) for index in range(self.workers)
        ]
        for thread in self._threads:
            thread.start()

    def close(self, *, timeout_seconds: float) -> None:
        """Let the threads end after what they are running; what still waits is dropped."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        end = time.monotonic() + timeout_seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    async def run(self, work: Callable[[], T], *, deadline_seconds: float) -> T:
        """Do `work` on a worker thread and return what it returns, or raise what it raises.

        Work that has not begun when `deadline_seconds` have passed, or when the caller is cancelled, is never begun.
        Raises QueueFullError and DeadlineError.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        job = _Job(work, loop, future, time.monotonic() + deadline_seconds)
        self._admit(job)
        timer = loop.call_later(deadline_seconds, self._expire, job)
        try:
            return await future
        finally:
            timer.cancel()
            self._withdraw(job)

    def _admit(self, job: "_Job[Any]") -> None:
        with self._changed:
            if self.is_full:
                raise QueueFullError(self.waiting, self.retry_after_seconds)
            self._waiting.append(job)
            self._changed.notify()

    def _withdraw(self, job: "_Job[Any]") -> bool:
        """Whether `job` was still waiting; it is not any more."""
        with self._changed:
            try:
                self._waiting.remove(job)
            except ValueError:
                return False
            return True

    def _expire(self, job: "_Job[Any]") -> None:
        if self._withdraw(job):
            job.fail(_too_late())

    def _serve(self) -> None:
        while self._serve_one():
            pass

    def _serve_one(self) -> bool:
        # One call for one job: an idle worker must not hold on to the last image.
        job = self._take()
        if job is None:
            return False
        begun = time.perf_counter()
        try:
            result = job.work()
        except Exception as error:
            self._ran(time.perf_counter() - begun)
            job.deliver(job.fail, error)
        else:
            self._ran(time.perf_counter() - begun)
            job.deliver(job.succeed, result)
        return True

    def _take(self) -> "_Job[Any] | None":
        """The next job whose deadline has not passed; None when the queue is closed."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return None
                job = self._waiting.popleft()
                if time.monotonic() < job.deadline:
                    self._running += 1
                    return job
                # The loop's own timer is late, because the loop is busy; the deadline holds all the same.
                job.deliver(job.fail, _too_late())

    def _ran(self, seconds: float) -> None:
        with self._changed:
            self._running -= 1
            previous = self._service_seconds or seconds
            self._service_seconds = previous + _NEWEST * (seconds - previous)


@dataclass(eq=False)
class _Job(Generic[T]):
    """Work, and the future through which the event loop hears how it went."""

    work: Callable[[], T]
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[T]"
    deadline: float

    def deliver(self, outcome: Callable[[Any], None], value: object) -> None:
        """Have `outcome` called with `value` in the event loop's thread."""
        # After an overrun drain the loop is closed, and with it everybody who could have been told.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(outcome, value)

    def succeed(self, result: T) -> None:
        if not self.future.done():
            self.future.set_result(result)

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


def _too_late() -> DeadlineError:
    return DeadlineError("the deadline passed while the request waited for its turn")
