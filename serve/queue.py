"""A bounded queue in front of a few worker threads.

What waits is bounded, by number and by how long the last of it would wait, so a burst costs the excess an honest
refusal and not everybody their patience.
What nobody waits for any more, because its deadline has passed or its client has gone, leaves the queue
without having been computed. The threads take work straight from the queue: no turn of the event loop
lies between the end of one run and the start of the next.

A worker that comes free may take several at once, if they can be run together: only what waits already, unless a
delay is set. What the others could take at that moment is left to them.

Work that is done in several turns stays with its worker: between two turns it is asked again whether somebody waits for
it. So there is never more begun than the workers hold.
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

W = TypeVar("W")

UNFINISHED: Final = object()
"""What comes of a turn of work that needs another one."""

# Weight of the newest run in the running estimate of service time: the last ten or so count.
_NEWEST = 0.2


class QueueFullError(WorkFailedError):
    """As much is waiting as may wait, or a newcomer would wait too long."""

    def __init__(self, reason: str, detail: str, retry_after_seconds: int) -> None:
        super().__init__(f"{detail}; try again in {retry_after_seconds} s")
        self.reason = reason
        """queue_full or wait_too_long."""
        self.retry_after_seconds = retry_after_seconds


class DeadlineError(WorkFailedError):
    """The deadline passed before the work's turn came, or before its next one."""

    def __init__(self, *, has_begun: bool) -> None:
        when = "before its next turn came" if has_begun else "while the request waited for its turn"
        super().__init__(f"the deadline passed {when}")
        self.has_begun = has_begun


class WorkQueue(Generic[W]):
    """Has works run on `workers` threads, first come first served, with at most `limit` of them waiting."""

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
        """`run_together` gives of each work what came of it, exceptions and `UNFINISHED` included, for works that are
        all `mates`, and so of one `kind`. Service time is estimated for each kind by itself, from works that
        `took_its_time`: what was refused in a moment says nothing of how long the next one takes."""
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
        """How long a newcomer would wait for its turn, from the running means of service time."""
        return self._wait_seconds()

    @property
    def retry_after_seconds(self) -> int:
        """When what waits now will be done, in the whole seconds that Retry-After takes."""
        return max(1, math.ceil(self.estimated_wait_seconds))

    @property
    def capacity(self) -> int:
        """Works that can be in the queue's hands at once, running or waiting."""
        return self.workers + self.limit

    def check_room(self, deadline_seconds: float = math.inf, *, works: Sequence[W] = ()) -> None:
        """Raises QueueFullError when these newcomers, or one without them, could not wait, or the last of them would
        wait too long, or beyond its own deadline."""
        # Whatever idle workers are about to take is on its way out of the queue and does not count against it.
        if self.waiting + self.running + max(1, len(works)) > self.capacity:
            raise QueueFullError("queue_full", f"{self.waiting} requests are waiting already", self.retry_after_seconds)
        wait, longest = self._wait_seconds(works), min(self.max_wait_seconds, deadline_seconds)
        if wait > longest:
            over = math.ceil(wait - longest)
            detail = f"the request would wait about {wait:.2g} s for its turn, and may wait {longest:g} s"
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
        """Let the threads end after what they are running; what still waits is dropped."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
            self._call(len(self._idle))
        end = time.monotonic() + timeout_seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    async def run(self, work: W, *, deadline_seconds: float) -> Any:
        """Have `work` run on a worker thread and return what came of it, or raise that.

        Work that has not begun when `deadline_seconds` have passed, or when the caller is cancelled, is never begun.
        Raises QueueFullError and DeadlineError.
        """
        [outcome] = await self.run_all([work], deadline_seconds=deadline_seconds)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def run_all(self, works: Sequence[W], *, deadline_seconds: float) -> list[Any]:
        """The same for several works, which are taken all or none; gives what came of each, exceptions included.

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
        """Whether `job` was still waiting; it is not any more, and is not begun if it has been taken for a batch."""
        with self._lock:
            job.is_dropped = True
            # Mostly it is not: asked first, since the error that it is not there would spell out the whole job.
            if job not in self._waiting:
                return False
            self._waiting.remove(job)
            return True

    def _expire(self, jobs: "Sequence[_Job[W]]") -> None:
        for job in jobs:
            with self._lock:
                is_waiting = job in self._waiting
            # Otherwise it has begun; or it was taken for a batch, whose worker looks at the deadline again.
            if is_waiting and self._withdraw(job):
                job.end(DeadlineError(has_begun=False))

    def _call(self, workers: int) -> None:
        """Wake so many of those that are idle, and whoever waits for a larger batch."""
        # The last to have worked comes first: its processor still has the model at hand.
        for _ in range(min(workers, len(self._idle))):
            self._idle.pop().notify()
            self._called += 1
        self._arrived.notify_all()

    def _wait_seconds(self, newcomers: Sequence[W] = ()) -> float:
        """How long the last of the newcomers would wait: until one that runs has ended, and all in front of it have."""
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
        called = threading.Condition(self._lock)
        while self._serve_some(called):
            pass

    def _serve_some(self, called: threading.Condition) -> bool:
        # One call for what is taken at once: an idle worker must not hold on to the last image.
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
        """Those of the taken `jobs` that somebody still waits for; the others run no more."""
        with self._lock:
            wanted = [job for job in jobs if not job.is_dropped and self._is_in_time(job)]
            self._in_work.difference_update(set(jobs).difference(wanted))
            return wanted

    def _take(self, called: threading.Condition) -> "list[_Job[W]]":
        """The next job that is still wanted, with those that can be run with it; none when closed."""
        with self._lock:
            while True:
                first = self._next(called)
                if first is None:
                    return []
                jobs = [first]
                self._in_work.add(first)
                if self._max_batch > 1:
                    self._add_mates(jobs)
                # While a batch waited for more, some may have gone, or have become too late.
                wanted = self._wanted(jobs)
                if wanted:
                    return wanted

    def _is_in_time(self, job: "_Job[W]") -> bool:
        # The loop's own timer may be late, because the loop is busy; the deadline holds all the same.
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
            # As many as the idle workers can take at once are theirs.
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
        """Those that `ended`, of those that were `taken` together so many seconds ago."""
        share = seconds / max(1, sum(self._took_its_time(job.work) for job in taken))
        with self._lock:
            self._in_work.difference_update(ended)
            # What ends at once counts once: its time is that of all.
            for kind in {job.kind for job in ended if self._took_its_time(job.work)}:
                previous = self._service_seconds.get(kind, share)
                self._service_seconds[kind] = previous + _NEWEST * (share - previous)


@dataclass(eq=False)
class _Job(Generic[W]):
    """Work, and the future through which the event loop hears how it went."""

    work: W
    kind: Hashable
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Any]"
    deadline: float
    is_dropped: bool = False
    has_begun: bool = False

    def deliver(self, outcome: object) -> None:
        """End the job from another thread than the event loop's."""
        # After an overrun drain the loop is closed, and with it everybody who could have been told.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.end, outcome)

    def end(self, outcome: object) -> None:
        """`outcome` is what the work gave, or the exception that it ended in."""
        if not self.future.done():
            self.future.set_result(outcome)
