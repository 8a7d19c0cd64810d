"""One piece of work, from its place in the queue to its result or to the problem that waiting ended in.

The same for every door: the image endpoint, the Open Inference Protocol over HTTP and over gRPC.
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
"""Header: milliseconds that a request may wait for its turn, or for its last one, counted from when it was received
whole."""

DEADLINE_PARAMETER = {
    "name": DEADLINE,
    "in": "header",
    "required": False,
    "description": (
        "Milliseconds that the request may wait for its turn; then it is answered 504 and never computed. No window of "
        "an image is begun later, either"
    ),
    "schema": {"type": "number", "exclusiveMinimum": 0},
}


def deadline_of(headers: Headers) -> float:
    """Seconds that the request gives itself; infinite when it does not say.

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
        raise ProblemError(400, "deadline_header", f"{DEADLINE}: {given!r} is no positive number of milliseconds")
    return milliseconds / 1000


def refuse_if_full(service: Service) -> None:
    """Spare a client the upload of what could not even wait.

    Raises ProblemError 429.
    """
    try:
        service.queue.check_room()
    except QueueFullError as error:
        raise _overloaded(error) from error


async def dispatch(service: Service, work: Work[T], *, deadline_seconds: float = math.inf) -> T:
    """What `work` gives, or raises, on a worker thread when its turn has come; the wait is the stage "queue".

    `deadline_seconds` from now, at most those of the settings. A caller that is cancelled takes its work along, if
    that has not begun, and windows of it that have not.

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
    """The same for several works that have one answer: of each what it gives, or what is wrong with it alone.

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
        how = "not all windows of the image were done; ask for larger ones, send pieces of it, or give it longer"
    elif len(works) > 1:
        how = f"{len(works) - len(late)} of {len(works)} images were done; send fewer, or when the server is less busy"
    else:
        how = "nothing was computed, send it again when the server is less busy"
    return ProblemError(504, "deadline", f"{error}; {how}")


async def unless_the_client_leaves(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client closes the connection before it is there.

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

    # One task beside this one, and `work` in this one: every task more is felt in the time of a request.
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
