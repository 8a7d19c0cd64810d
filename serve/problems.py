"""Errors as clients see them: RFC 9457 problem details, each saying what to do."""

from collections.abc import Callable, Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from export.errors import SegpressError, field_problems
from serve.record import current_record

MEDIA_TYPE = "application/problem+json"

CLIENT_CLOSED_REQUEST = 499
"""For metrics and the log: nobody is left to read it. Source: nginx's code for the same thing."""


_METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
_TOLD = 5
"""At most this many errors of one request are named."""


class ProblemError(SegpressError):
    """A request that is not answered with a mask.

    `reason` is one of a short list of words, fit for a metric's label and for a client's `if`.
    """

    def __init__(self, status: int, reason: str, detail: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.detail = detail
        self.headers = dict(headers or {})
        self.is_counted = False
        """Whether the metrics have it."""


class Problem(BaseModel):
    """What went wrong, in the form of RFC 9457; `reason` is the word to test for, `detail` says what to do."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str = "about:blank"
    title: str
    """The HTTP status in words."""
    status: int
    detail: str
    error: str
    """The same as `detail`, where clients of the Open Inference Protocol look for it."""
    reason: str
    """One of a short, stable list of words."""
    request_id: str
    """Id of this request, also in the header X-Request-ID and in the server's log."""
    trace_id: str
    """Id of the trace that the request belongs to, also in the header traceparent and in the server's log."""


def problem_of(problem: ProblemError, request_id: str) -> Problem:
    """`problem` as clients get it."""
    record = current_record()
    return Problem(
        title=_title(problem.status),
        status=problem.status,
        detail=problem.detail,
        error=problem.detail,
        reason=problem.reason,
        request_id=request_id,
        trace_id=record.trace.trace_id if record else "",
    )


def problem_response(problem: ProblemError, request_id: str) -> Response:
    """The answer that carries `problem`."""
    body = problem_of(problem, request_id).model_dump_json().encode()
    return Response(body, status_code=problem.status, headers=problem.headers, media_type=MEDIA_TYPE)


def install(app: FastAPI, *, count: Callable[[str], None]) -> None:
    """Turn every error that the application or its router raises into a problem+json answer.

    `count` gets the reason of each that no route has counted.
    """

    def answer(request: Request, problem: ProblemError) -> Response:
        if not problem.is_counted:
            count(problem.reason)
        return problem_response(problem, request_id_of(request))

    async def known(request: Request, error: Exception) -> Response:
        assert isinstance(error, ProblemError)
        return answer(request, error)

    async def routing(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return answer(request, _routing_problem(request, error))

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return answer(request, _invalid_problem(error))

    app.add_exception_handler(ProblemError, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, routing)


def request_id_of(request: Request) -> str:
    """The id that the middleware gave this request."""
    return str(request.state.request_id)


def _invalid_problem(error: RequestValidationError) -> ProblemError:
    wrong = "; ".join(field_problems(error.errors()[:_TOLD]))
    return ProblemError(400, "invalid", f"{wrong}; see /docs for what this route takes")


def _routing_problem(request: Request, error: HTTPException) -> ProblemError:
    if error.status_code == 404:
        detail = f"there is nothing at {request.url.path}; /docs lists the routes"
        return ProblemError(404, "unknown_route", detail)
    if error.status_code == 405:
        # Not the methods in the error: they are those of the first of several routes with this path.
        methods = ", ".join(method for method in _METHODS if _is_taken(request, "GET" if method == "HEAD" else method))
        detail = f"{request.url.path} does not take {request.method}; use {methods}"
        return ProblemError(405, "method", detail, headers={"Allow": methods})
    return ProblemError(error.status_code, "http", str(error.detail), headers=error.headers)


def _is_taken(request: Request, method: str) -> bool:
    scope = {**request.scope, "method": method}
    return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)


def _title(status: int) -> str:
    return "Client Closed Request" if status == CLIENT_CLOSED_REQUEST else HTTPStatus(status).phrase
