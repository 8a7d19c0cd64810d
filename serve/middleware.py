"""Around every request: an id, its place in a trace, a place in the count of what is in flight, a line in the log."""

import asyncio
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.lifecycle import Lifecycle
from serve.logs import event
from serve.problems import ProblemError, problem_response
from serve.record import QUIET, RequestRecord, set_current
from serve.trace import TRACEPARENT, TraceContext
from serve.tracing import StageSpans

logger = logging.getLogger(__name__)

REQUEST_ID = "X-Request-ID"

_WELL_FORMED_ID = re.compile(r"[A-Za-z0-9._:+/=-]{1,128}")

_FAILED = ProblemError(500, "internal", "the server failed on this request; its log tells more under the request id")
_CUT_OFF = ProblemError(
    503,
    "cut_off",
    "this server shut down before it could answer; send the request to another one, or again later",
    headers={"Retry-After": "1", "Connection": "close"},
)


class RequestEnvelope:
    """ASGI middleware that wraps each request from its first byte to the last byte of its answer."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle, spans: StageSpans | None = None) -> None:
        self._app = app
        self._lifecycle = lifecycle
        self._spans = spans

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = self._record(Headers(scope=scope))
        scope.setdefault("state", {})["request_id"] = record.request_id
        set_current(record)
        status: int | None = None

        async def receive_counted() -> Message:
            message = await receive()
            record.received_bytes += len(message.get("body", b""))
            return message

        async def send_enveloped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = record.request_id
                headers[TRACEPARENT] = record.trace.header()
                if self._lifecycle.is_ending:
                    headers["Connection"] = "close"
            record.sent_bytes += len(message.get("body", b""))
            await send(message)

        with self._lifecycle.request():
            try:
                await self._app(scope, receive_counted, send_enveloped)
            except asyncio.CancelledError:
                if status is not None:
                    raise
                await problem_response(_CUT_OFF, record.request_id)(scope, receive, send_enveloped)
            except Exception:
                logger.exception("request %s failed; this is a bug", record.request_id)
                if status is not None:
                    raise
                await problem_response(_FAILED, record.request_id)(scope, receive, send_enveloped)
            finally:
                _log(scope, status, record)

    def _record(self, headers: Headers) -> RequestRecord:
        record = RequestRecord(_request_id(headers), TraceContext.of(headers), time.perf_counter())
        if self._spans is not None:
            record.on_stage = self._spans.of_current_request()
        return record


def _request_id(headers: Headers) -> str:
    given = headers.get(REQUEST_ID, "")
    return given if _WELL_FORMED_ID.fullmatch(given) else uuid.uuid4().hex


def _log(scope: Scope, status: int | None, record: RequestRecord) -> None:
    level = logging.DEBUG if scope["path"].startswith(QUIET) else logging.INFO
    if not logger.isEnabledFor(level):
        return
    # The path as it was sent would bring what clients make up into the log, and make one line each of like requests.
    route = getattr(scope.get("route"), "path", "") or "(no route)"
    milliseconds = 1000 * (time.perf_counter() - record.begun)
    fields = {
        "request_id": record.request_id,
        "trace_id": record.trace.trace_id,
        "method": scope["method"],
        "route": route,
        "status": status,
        "model": record.model,
        "key": record.key,
        "ms": round(milliseconds, 3),
        "stages_ms": {stage: round(1000 * seconds, 3) for stage, seconds in record.stages.items()},
        "received_bytes": record.received_bytes,
        "sent_bytes": record.sent_bytes,
    }
    logger.log(
        level,
        "%s %s %s %.1f ms model=%s id=%s trace=%s",
        scope["method"],
        route,
        status or "unanswered",
        milliseconds,
        record.model or "-",
        record.request_id,
        record.trace.trace_id,
        extra=event("request", fields),
    )
