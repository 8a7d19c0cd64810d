"""Around every request: an id, a place in the count of what is in flight, a line in the log."""

import asyncio
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.lifecycle import Lifecycle
from serve.problems import ProblemError, problem_response

logger = logging.getLogger(__name__)

REQUEST_ID = "X-Request-ID"

_WELL_FORMED_ID = re.compile(r"[A-Za-z0-9._:+/=-]{1,128}")

# Asked every few seconds by probes and scrapers; in the log they would hide the requests that matter.
_QUIET = ("/v2/health/", "/metrics")

_FAILED = ProblemError(500, "internal", "the server failed on this request; its log tells more under the request id")
_CUT_OFF = ProblemError(
    503,
    "cut_off",
    "this server shut down before it could answer; send the request to another one, or again later",
    headers={"Retry-After": "1", "Connection": "close"},
)


class RequestEnvelope:
    """ASGI middleware that wraps each request from its first byte to the last byte of its answer."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle) -> None:
        self._app = app
        self._lifecycle = lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        begun = time.perf_counter()
        status: int | None = None

        async def send_enveloped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = request_id
                if self._lifecycle.is_draining:
                    headers["Connection"] = "close"
            await send(message)

        with self._lifecycle.request():
            try:
                await self._app(scope, receive, send_enveloped)
            except asyncio.CancelledError:
                if status is not None:
                    raise
                await problem_response(_CUT_OFF, request_id)(scope, receive, send_enveloped)
            except Exception:
                logger.exception("request %s failed; this is a bug", request_id)
                if status is not None:
                    raise
                await problem_response(_FAILED, request_id)(scope, receive, send_enveloped)
            finally:
                _log(scope, status, time.perf_counter() - begun, request_id)


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get(REQUEST_ID, "")
    return given if _WELL_FORMED_ID.fullmatch(given) else uuid.uuid4().hex


def _log(scope: Scope, status: int | None, seconds: float, request_id: str) -> None:
    level = logging.DEBUG if scope["path"].startswith(_QUIET) else logging.INFO
    # Still percent-encoded: what a client sends must not break the log's lines.
    path = scope["raw_path"].decode("latin-1")
    answered = status or "unanswered"
    logger.log(level, "%s %s %s %.1f ms id=%s", scope["method"], path, answered, 1000 * seconds, request_id)
