"""A bounded queue in front of a few worker threads.

The waiting work is bounded, by number and by how long the last of it would wait: in a burst the excess is refused at
once, and the rest does not wait for ever.
Work that nobody waits for any more, because its deadline has passed or its client has left, is dropped from the queue
and never computed. The threads take work straight from the queue: no turn of the event loop lies between the end of
one run and the start of the next.

A worker that becomes free may take several pieces of work, if they can be run together. It takes only what is waiting
already, unless a delay is set, and leaves to other idle workers what these can take at that moment.

Work that takes several turns stays with its worker, which checks between turns whether somebody still waits for it. So
no more work is ever in progress than the workers hold.
"""

import asyncio
import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final, Generic, TypeVar

from export.errors import WorkFailedError
from serve.scheduling import take_long_turns

W = TypeVar("W")

UNFINISHED: Final = object()
"""Outcome of a turn of work that needs another turn."""

# Weight of the newest run in the moving average of service time: the last ten or so count.
_NEWEST = 0.2


class QueueFullError(WorkFailedError):
    """The queue is full, or new work would wait too long in it."""

    def __init__(self, reason: str, detail: str, retry_after_seconds: int) -> None:
        super().__init__(f"{detail}; try again in {retry_after_seconds} s")
        self.reason = reason
        """queue_full or wait_too_long."""
        self.retry_after_seconds = retry_after_seconds


class DeadlineError(WorkFailedError):
    """The deadline passed before the work's turn came, or before its next one."""

    def __init__(self, *, has_begun: bool) -> None:
        when = "before the request's next turn came" if has_begun else "while the request waited for its turn"
        super().__init__(f"the deadline passed {when}")
        self.has_begun = has_begun


class WorkQueue(Generic[W]):
    """Runs work on `workers` threads, first come first served, while at most `limit` pieces of work wait."""

    def __init__(
        self,
        run_together: Callable[[Sequence[W]], Sequence[Any]],
        *,
        workers: int,
        limit: int,
        max_wait_seconds: float = math.inf,
        max_batch: int = 1,
        batch_delay_seconds: float = 0.0,
        mates: Callable[[W, W], bool] = lambda _one, _other: False,
        kind: Callable[[W], Hashable] = lambda _work: None,
        took_its_time: Callable[[W], bool] = lambda _work: True,
    ) -> None:
        """`run_together` gets works that are all `mates`, and so of one `kind`, and returns the outcome of each, which
        may be an exception or `UNFINISHED`. Service time is estimated for each kind separately, from work that
        `took_its_time`: work that was refused in a moment says nothing about how long the next will take."""
        self.workers = workers
        self.limit = limit
        self.max_wait_seconds = max_wait_seconds
        self._run_together = run_together
        self._max_batch = max_batch
        self._batch_delay_seconds = batch_delay_seconds
        self._mates = mates
        self._kind = kind
        self._took_its_time = took_its_time
        self._lock = threading.RLock()
        self._arrived = threading.Condition(self._lock)
        self._waiting: deque[_Job[W]] = deque()
        self._in_work: set[_Job[W]] = set()
        self._idle: list[threading.Condition] = []
        self._called = 0
        self._closed = False
        self._service_seconds: dict[Hashable, float] = {}
        self._threads: list[threading.Thread] = []

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._in_work)

    @property
    def estimated_wait_seconds(self) -> float:
        """How long new work would wait for its turn, from the moving averages of service time."""
        return self._wait_seconds()

    @property
    def retry_after_seconds(self) -> int:
        """The estimated wait, rounded up to the whole seconds that Retry-After takes; at least 1."""
        return max(1, math.ceil(self.estimated_wait_seconds))

    @property
    def capacity(self) -> int:
        """How many pieces of work can be running or waiting at once."""
        return self.workers + self.limit

    def check_room(self, deadline_seconds: float = math.inf, *, works: Sequence[W] = ()) -> None:
        """Raises QueueFullError when there is no room for all `works` (for one, if none are given), or when the last of
        them would wait longer than `max_wait_seconds` or than its own deadline."""
        # Workers and limit together: what idle workers are about to take is still in the queue for a moment.
        if self.waiting + self.running + max(1, len(works)) > self.capacity:
            raise QueueFullError("queue_full", f"{self.waiting} requests are waiting already", self.retry_after_seconds)
        wait, longest = self._wait_seconds(works), min(self.max_wait_seconds, deadline_seconds)
        if wait > longest:
            over = math.ceil(wait - longest)
            detail = f"the request would wait about {wait:.2g} s for its turn, longer than the {longest:g} s allowed"
            raise QueueFullError("wait_too_long", detail, max(1, over))

    def start(self) -> None:
        """Start the worker threads."""
        # Daemons: a run that outlasts the drain must not keep the process alive.
        self._threads = [
            threading.Thread(target=self._serve, name=f"worker-{index}", daemon=True) for index in range(self.workers)
        ]
        for thread in self._threads:
            thread.start()

    def close(self, *, timeout_seconds: float) -> None:
        """Let the threads end after their current work; work that still waits is dropped."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
            self._call(len(self._idle))
        end = time.monotonic() + timeout_seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    async def run(self, work: W, *, deadline_seconds: float) -> Any:
        """Run `work` on a worker thread and return its outcome, or raise the exception that it ended in.

        Work that has not begun when `deadline_seconds` have passed, or when the caller is cancelled, is never begun.
        Raises QueueFullError and DeadlineError.
        """
        [outcome] = await self.run_all([work], deadline_seconds=deadline_seconds)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def run_all(self, works: Sequence[W], *, deadline_seconds: float) -> list[Any]:
        """Run several works, which are admitted all or none, and return the outcome of each, exceptions included.

        Raises QueueFullError.
        """
        loop = asyncio.get_running_loop()
        deadline = time.monotonic() + deadline_seconds
        jobs = [_Job(work, self._kind(work), loop, loop.create_future(), deadline) for work in works]
        with self._lock:
            self.check_room(deadline_seconds, works=works)
            self._waiting.extend(jobs)
            self._call(len(jobs))
        timer = loop.call_later(deadline_seconds, self._expire, jobs)
        try:
            return [await job.future for job in jobs]
        finally:
            timer.cancel()
            for job in jobs:
                if not job.future.done() or job.future.cancelled():
                    self._withdraw(job)

    def _withdraw(self, job: "_Job[W]") -> bool:
        """Drop `job`: even if it has been taken for a batch, it is not begun. Returns whether it was still waiting."""
        with self._lock:
            job.is_dropped = True
            # Usually it is not there. Tested first, since the error from `remove` would format the whole job.
            if job not in self._waiting:
                return False
            self._waiting.remove(job)
            return True

    def _expire(self, jobs: "Sequence[_Job[W]]") -> None:
        for job in jobs:
            with self._lock:
                is_waiting = job in self._waiting
            # Otherwise it has begun, or it was taken for a batch, whose worker checks the deadline again.
            if is_waiting and self._withdraw(job):
                job.end(DeadlineError(has_begun=False))

    def _call(self, workers: int) -> None:
        """Wake that many idle workers, and those that wait for a larger batch."""
        # The worker that became idle last comes first: its core still has the model in its caches.
        for _ in range(min(workers, len(self._idle))):
            self._idle.pop().notify()
            self._called += 1
        self._arrived.notify_all()

    def _wait_seconds(self, newcomers: Sequence[W] = ()) -> float:
        """How long the last of `newcomers` would wait: until a running job has ended, and all jobs ahead of it have."""
        with self._lock:
            ahead = [*(job.kind for job in self._waiting), *map(self._kind, newcomers[:-1])]
            turns = len(ahead) + 1 + self.running - self.workers
            if turns <= 0 or not self._service_seconds:
                return 0.0
            unknown = fmean(self._service_seconds.values())

            def mean(kind: Hashable) -> float:
                return self._service_seconds.get(kind, unknown)

            one_that_runs = fmean(mean(job.kind) for job in self._in_work) if self._in_work else unknown
            return turns * fmean([one_that_runs, *map(mean, ahead)]) / self.workers

    def _serve(self) -> None:
        take_long_turns()
        called = threading.Condition(self._lock)
        while self._serve_some(called):
            pass

    def _serve_some(self, called: threading.Condition) -> bool:
        # A method of its own, so that the local variables of an idle worker do not keep the last image in memory.
        left = self._take(called)
        if not left:
            return False
        begun, taken = time.perf_counter(), left
        while left:
            outcomes = self._outcomes(left)
            ended = [(job, outcome) for job, outcome in zip(left, outcomes, strict=True) if outcome is not UNFINISHED]
            self._ran([job for job, _ in ended], taken, time.perf_counter() - begun)
            for job, outcome in ended:
                job.deliver(outcome)
            left = self._wanted([job for job, outcome in zip(left, outcomes, strict=True) if outcome is UNFINISHED])
        return True

    def _outcomes(self, jobs: "list[_Job[W]]") -> Sequence[Any]:
        for job in jobs:
            job.has_begun = True
        try:
            return self._run_together([job.work for job in jobs])
        except Exception as error:
            return [error] * len(jobs)

    def _wanted(self, jobs: "list[_Job[W]]") -> "list[_Job[W]]":
        """Those of the taken `jobs` that somebody still waits for; the others are no longer run."""
        with self._lock:
            wanted = [job for job in jobs if not job.is_dropped and self._is_in_time(job)]
            self._in_work.difference_update(set(jobs).difference(wanted))
            return wanted

    def _take(self, called: threading.Condition) -> "list[_Job[W]]":
        """The next job that is still wanted, with those that can be run with it; empty once the queue is closed."""
        with self._lock:
            while True:
                first = self._next(called)
                if first is None:
                    return []
                jobs = [first]
                self._in_work.add(first)
                if self._max_batch > 1:
                    self._add_mates(jobs)
                # While the batch waited for more, clients may have left or deadlines passed.
                wanted = self._wanted(jobs)
                if wanted:
                    return wanted

    def _is_in_time(self, job: "_Job[W]") -> bool:
        # The event loop's timer may be late, because the loop is busy; the deadline holds all the same.
        if time.monotonic() < job.deadline:
            return True
        job.deliver(DeadlineError(has_begun=job.has_begun))
        return False

    def _next(self, called: threading.Condition) -> "_Job[W] | None":
        while not (self._waiting or self._closed):
            self._idle.append(called)
            called.wait()
            self._called -= 1
        return None if self._closed else self._waiting.popleft()

    def _add_mates(self, jobs: "list[_Job[W]]") -> None:
        end = time.monotonic() + self._batch_delay_seconds
        while not self._closed:
            # As many as the idle workers can take at once are left to them.
            spare = max(0, len(self._waiting) - len(self._idle) - self._called)
            wanted = sum(not job.is_dropped for job in jobs)
            mates = [job for job in self._waiting if self._mates(jobs[0].work, job.work)]
            for job in mates[: min(spare, self._max_batch - wanted)]:
                self._waiting.remove(job)
                jobs.append(job)
                self._in_work.add(job)
                wanted += 1
            left = end - time.monotonic()
            if left <= 0 or wanted >= self._max_batch:
                return
            self._arrived.wait(left)

    def _ran(self, ended: "list[_Job[W]]", taken: "list[_Job[W]]", seconds: float) -> None:
        """Take note of the jobs that `ended`, out of those that were `taken` together `seconds` ago."""
        share = seconds / max(1, sum(self._took_its_time(job.work) for job in taken))
        with self._lock:
            self._in_work.difference_update(ended)
            # Jobs that end together count once: the time is that of all of them.
            for kind in {job.kind for job in ended if self._took_its_time(job.work)}:
                previous = self._service_seconds.get(kind, share)
                self._service_seconds[kind] = previous + _NEWEST * (share - previous)


@dataclass(eq=False)
class _Job(Generic[W]):
    """Work, and the future that takes its outcome to the event loop."""

    work: W
    kind: Hashable
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Any]"
    deadline: float
    is_dropped: bool = False
    has_begun: bool = False

    def deliver(self, outcome: object) -> None:
        """End the job from another thread than the event loop's."""
        # If the drain took too long, the loop is closed, and nobody waits for the outcome any more.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.end, outcome)

    def end(self, outcome: object) -> None:
        """Set `outcome`: the result of the work, or the exception that it ended in."""
        if not self.future.done():
            self.future.set_result(outcome)
