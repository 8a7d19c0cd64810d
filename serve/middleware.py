"""What surrounds every request: an id, its place in a trace, the count of requests in flight, and a line in the log."""

import asyncio
import logging

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.headers import secure
from serve.lifecycle import Lifecycle
from serve.problems import ProblemError, problem_response
from serve.record import QUIET, REQUEST_ID, RequestRecord, set_current
from serve.trace import TRACEPARENT
from serve.tracing import Spans

logger = logging.getLogger(__name__)

_FAILED = ProblemError(500, "internal", "the server failed on this request; its log has the cause under the request id")
_CUT_OFF = ProblemError(
    503,
    "cut_off",
    "this server shut down before it could answer; send the request to another one, or again later",
    headers={"Retry-After": "1", "Connection": "close"},
)


class RequestEnvelope:
    """ASGI middleware that wraps each request from its first byte to the last byte of its answer."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle, spans: Spans | None = None) -> None:
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
                secure(headers)
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
                # Not the path as it was sent: it would bring what clients make up into the log, and requests to one
                # route would look like many.
                route = getattr(scope.get("route"), "path", "") or "(no route)"
                record.log(scope["method"], route, status, quiet=scope["path"].startswith(QUIET))

    def _record(self, headers: Headers) -> RequestRecord:
        record = RequestRecord.of(headers)
        if self._spans is not None:
            record.on_stage = self._spans.of_current_request()
        return record
