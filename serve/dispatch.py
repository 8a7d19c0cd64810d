"""One piece of work, from its place in the queue to its result or to the problem that waiting ended in.

The same for every door: the image endpoint, the Open Inference Protocol over HTTP and over gRPC.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request

from serve.metrics import Stages
from serve.problems import CLIENT_CLOSED_REQUEST, ProblemError
from serve.queue import DeadlineError, QueueFullError
from serve.service import Service

T = TypeVar("T")


def refuse_if_full(service: Service) -> None:
    """Spare a client the upload of what could not even wait.

    Raises ProblemError 429.
    """
    if service.queue.is_full:
        raise _overloaded(QueueFullError(service.queue.waiting, service.queue.retry_after_seconds))


async def dispatch(
    service: Service, work: Callable[[], T], stages: Stages, *, deadline_seconds: float | None = None
) -> T:
    """What `work` returns, or raises, on a worker thread when its turn has come; the wait is the stage "queue".

    `deadline_seconds` from now, at most those of the settings. A caller that is cancelled takes its work along, if
    that has not begun.

    Raises ProblemError 429 when no more may wait, 504 when the deadline passed first.
    """
    begun = time.perf_counter()

    def timed() -> T:
        stages.record("queue", time.perf_counter() - begun)
        return work()

    longest = service.settings.deadline_seconds
    seconds = longest if deadline_seconds is None else min(longest, deadline_seconds)
    try:
        return await service.queue.run(timed, deadline_seconds=seconds)
    except QueueFullError as error:
        raise _overloaded(error) from error
    except DeadlineError as error:
        stages.record("queue", time.perf_counter() - begun)
        detail = f"{error}; nothing was computed, send it again when the server is less busy"
        raise ProblemError(504, "deadline", detail) from error


async def unless_the_client_leaves(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client closes the connection before it is there.

    Raises ProblemError 499, which nobody reads.
    """
    working, leaving = asyncio.create_task(work), asyncio.create_task(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ProblemError(CLIENT_CLOSED_REQUEST, "disconnected", "the client left before its answer")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _overloaded(error: QueueFullError) -> ProblemError:
    return ProblemError(429, "queue_full", str(error), headers={"Retry-After": str(error.retry_after_seconds)})
