"""Put work into the queue, and wait for its result or for the problem that it ends in.

All interfaces share this: the image endpoint, and the Open Inference Protocol over HTTP and over gRPC.
"""

import asyncio
import math
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import Request
from starlette.datastructures import Headers

from serve.pipeline import Work
from serve.problems import CLIENT_CLOSED_REQUEST, ProblemError
from serve.queue import DeadlineError, QueueFullError
from serve.service import Service

T = TypeVar("T")


DEADLINE = "X-Deadline-Ms"
"""Header: milliseconds that a request may wait for its turn, or for its last turn if it takes several, counted from
when its body was complete."""

DEADLINE_PARAMETER = {
    "name": DEADLINE,
    "in": "header",
    "required": False,
    "description": (
        "Milliseconds that the request may wait for its turn; after that it is answered 504 and never computed. No "
        "window of an image is begun later, either"
    ),
    "schema": {"type": "number", "exclusiveMinimum": 0},
}


def deadline_of(headers: Headers) -> float:
    """The deadline that the request sets itself, in seconds; infinite if it sets none.

    Raises ProblemError 400.
    """
    given = headers.get(DEADLINE)
    if given is None:
        return math.inf
    try:
        milliseconds = float(given)
    except ValueError:
        milliseconds = math.nan
    if not 0 < milliseconds < math.inf:
        raise ProblemError(400, "deadline_header", f"{DEADLINE}: {given!r} is not a positive number of milliseconds")
    return milliseconds / 1000


def refuse_if_full(service: Service) -> None:
    """Refuse a request for which the queue has no room, before its body is uploaded.

    Raises ProblemError 429.
    """
    try:
        service.queue.check_room()
    except QueueFullError as error:
        raise _overloaded(error) from error


async def dispatch(service: Service, work: Work[T], *, deadline_seconds: float = math.inf) -> T:
    """Run `work` on a worker thread when its turn comes; return what it gives, or raise what it raises. The wait is the
    stage "queue".

    The deadline is `deadline_seconds` from now, or that of the settings if it is sooner. When the caller is cancelled,
    work that has not begun is dropped, and so are windows of it that have not.

    Raises ProblemError 429 when no more may wait, 504 when the deadline passed first.
    """
    [outcome] = await dispatch_all(service, [work], deadline_seconds=deadline_seconds)
    if isinstance(outcome, Exception):
        raise outcome
    result: T = outcome
    return result


async def dispatch_all(
    service: Service, works: Sequence[Work[T]], *, deadline_seconds: float = math.inf
) -> list[T | Exception]:
    """Run several works that share one answer; return what each of them gives, or the exception that it alone raised.

    Raises ProblemError 429 when not all of them may wait, 504 when the deadline passed before all were done.
    """
    seconds = min(service.settings.deadline_seconds, deadline_seconds)
    try:
        outcomes: list[T | Exception] = await service.queue.run_all(works, deadline_seconds=seconds)
    except QueueFullError as error:
        raise _overloaded(error) from error
    late = {work: outcome for work, outcome in zip(works, outcomes, strict=True) if isinstance(outcome, DeadlineError)}
    if not late:
        return outcomes
    for work, lateness in late.items():
        if not lateness.has_begun:
            work.stages.record("queue", work.seconds_since_asked)
    raise _late(late, works)


def _late(late: Mapping[Work[Any], DeadlineError], works: Sequence[Work[Any]]) -> ProblemError:
    error = next(iter(late.values()))
    if error.has_begun:
        how = "not all windows of the image were done; ask for larger ones, send pieces of it, or allow more time"
    elif len(works) > 1:
        how = f"{len(works) - len(late)} of {len(works)} images were done; send fewer, or send them again later"
    else:
        how = "nothing was computed, send it again when the server is less busy"
    return ProblemError(504, "deadline", f"{error}; {how}")


async def unless_the_client_leaves(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the client closes the connection first.

    Raises ProblemError 499, which nobody reads.
    """
    task = asyncio.current_task()
    assert task is not None
    has_left = False

    def leave(leaving: asyncio.Task[None]) -> None:
        nonlocal has_left
        if not leaving.cancelled():
            has_left = True
            task.cancel()

    # `work` runs in this task, and only one other beside it: each further task adds noticeably to a request's time.
    leaving = asyncio.create_task(_left(request))
    leaving.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if not has_left or task.uncancel():  # somebody else wants this task to end
            raise
        raise ProblemError(CLIENT_CLOSED_REQUEST, "disconnected", "the client left before its answer") from None
    finally:
        leaving.remove_done_callback(leave)
        leaving.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _overloaded(error: QueueFullError) -> ProblemError:
    return ProblemError(429, error.reason, str(error), headers={"Retry-After": str(error.retry_after_seconds)})
