"""What is answered while there are too many connections, or too much that clients have not taken."""

from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.access import OPEN
from serve.metrics import UNKNOWN_MODEL, Metrics
from serve.problems import ProblemError, problem_response

CROWDED: Final = "crowded"
FULL: Final = "full"
"""Names in the state of a request's scope, set by its connection: one connection too many, and no room for answers."""


class Crowding:
    """ASGI middleware that answers only health, and then closes the connection, where there are too many connections,
    or where answers that clients have not taken fill the memory."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["state"].keys() & {CROWDED, FULL}:
            await self._app(scope, receive, send)
            return

        async def send_last(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        if scope["path"] in OPEN:
            await self._app(scope, receive, send_last)
            return
        if CROWDED in scope["state"]:
            detail = "too many connections are open; use one for several requests, or try again"
            problem = ProblemError(503, "connections", detail, headers={"Retry-After": "1"})
        else:
            detail = "answers that clients have not taken fill the memory set aside for them; try again"
            problem = ProblemError(429, "memory", detail, headers={"Retry-After": "1"})
        self._metrics.refused(UNKNOWN_MODEL, problem.reason)
        await problem_response(problem, scope["state"]["request_id"])(scope, receive, send_last)
