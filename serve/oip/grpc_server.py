"""The Open Inference Protocol over gRPC: the same models, queue, limits, keys and metrics as over HTTP.

N batch, H height, W width.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from http import HTTPStatus
from typing import Any

import grpc
from google.protobuf.message import Message
from starlette.datastructures import Headers

from export.errors import UsageError
from serve.access import Caller, caller_of, check_may_administer
from serve.keys import Keyring
from serve.metrics import UNKNOWN_MODEL
from serve.oip.call import Call, Context
from serve.oip.grpc_methods import Health, Inference
from serve.oip.messages import HEALTH, INFERENCE, methods
from serve.problems import CLIENT_CLOSED_REQUEST, ProblemError
from serve.record import REQUEST_ID, RequestRecord, set_current
from serve.service import Service
from serve.trace import TRACEPARENT
from serve.tracing import CallSpan, Spans

logger = logging.getLogger(__name__)

Handler = Callable[[Call], Awaitable[Any]]

# Source: the HTTP mapping in google/rpc/code.proto.
_CODES = {
    200: grpc.StatusCode.OK,
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.FAILED_PRECONDITION,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}

_OPEN = ("ServerLive", "ServerReady", "Check")
"""Called by probes, which hold no secrets and would fill the log."""
_ADMINISTERS = ("RepositoryModelLoad", "RepositoryModelUnload")

_TOLD_HEADERS = ("retry-after", "www-authenticate")
"""The headers of a problem that have a meaning over gRPC. Connection would make the answer malformed HTTP/2.

Source: RFC 9113, 8.2.2."""

# A message has names and shapes beside its tensors.
_ROOM_FOR_NAMES = 65536


class GrpcServer:
    """A gRPC server beside the HTTP one, in the same event loop."""

    def __init__(self, service: Service, keyring: Keyring | None, spans: Spans | None = None) -> None:
        self.port = 0
        """The port that it listens on, once it is started."""
        self._service = service
        self._keyring = keyring
        self._spans = spans
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Listen. Raises UsageError when the port is not available."""
        settings = self._service.settings
        limit = settings.max_body_bytes + _ROOM_FOR_NAMES
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", -1),
                # Or a second server could share the port, and take half of the calls.
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=settings.max_connections,
        )
        server.add_generic_rpc_handlers(
            (
                self._handlers(INFERENCE, Inference(self._service)),
                self._handlers(HEALTH, Health(self._service)),
            )
        )
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"{host}:{settings.grpc_port}"
        try:
            if settings.tls_cert and settings.tls_key:
                pair = (settings.tls_key.read_bytes(), settings.tls_cert.read_bytes())
                self.port = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
            else:
                self.port = server.add_insecure_port(address)
        except RuntimeError as error:
            raise UsageError(f"cannot listen for gRPC on {address}; choose another host or port") from error
        await server.start()
        self._server = server
        logger.info("gRPC on %s:%d", host, self.port)

    async def stop(self) -> None:
        """Close the port. Calls in progress are cut off, so drain first."""
        if self._server is not None:
            await self._server.stop(grace=None)

    def _handlers(self, service: str, methods_of: object) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            service,
            {
                name: grpc.stream_unary_rpc_method_handler(
                    self._enveloped(service, name, request, getattr(methods_of, name)),
                    response_serializer=response.SerializeToString,
                )
                for name, (request, response) in methods(service).items()
            },
        )

    def _enveloped(
        self, service: str, method: str, form: type[Message], handler: Handler
    ) -> Callable[[AsyncIterator[Any], Context], Awaitable[Any]]:
        """`handler` with what the middlewares do around an HTTP request."""

        async def answer(_messages: AsyncIterator[Any], context: Context) -> Any:
            headers = Headers(raw=[_latin(pair) for pair in context.invocation_metadata() or ()])
            with self._span(service, method, headers) as span:
                return await answer_in(span, headers, context)

        async def answer_in(span: CallSpan, headers: Headers, context: Context) -> Any:
            record = RequestRecord.of(headers)
            if self._spans is not None:
                record.on_stage = self._spans.of_current_request()
            set_current(record)
            told = [(REQUEST_ID.lower(), record.request_id), (TRACEPARENT, record.trace.header())]
            context.set_trailing_metadata(told)
            status = int(HTTPStatus.INTERNAL_SERVER_ERROR)
            with self._service.lifecycle.request():
                try:
                    self._check(method, headers, record)
                    response = await handler(Call(context, form, self._service.bodies, record, headers))
                    record.sent_bytes = response.ByteSize()
                    status = int(HTTPStatus.OK)
                    return response
                except ProblemError as problem:
                    status = problem.status
                    if not problem.is_counted:
                        self._service.metrics.refused(UNKNOWN_MODEL, problem.reason)
                    context.set_trailing_metadata([*told, *_metadata(problem)])
                    await context.abort(_code(status), problem.detail)
                except asyncio.CancelledError:
                    status = CLIENT_CLOSED_REQUEST
                    raise
                except grpc.aio.AbortError:
                    raise
                except Exception:
                    logger.exception("call %s failed; this is a bug", record.request_id)
                    detail = "the server failed on this call; its log has the cause under the request id"
                    await context.abort(grpc.StatusCode.INTERNAL, f"{detail} {record.request_id}")
                finally:
                    code = _code(status)
                    span.end_with(code.name, code.value[0])
                    record.log("gRPC", f"/{service}/{method}", status, quiet=method in _OPEN)

        return answer

    def _span(self, service: str, method: str, headers: Headers) -> AbstractContextManager[CallSpan]:
        if self._spans is None or method in _OPEN:
            return nullcontext(CallSpan())
        return self._spans.of_call(service, method, headers)

    def _check(self, method: str, headers: Headers, record: RequestRecord) -> None:
        """Raises ProblemError 401 or 403."""
        caller: Caller | None = None
        if self._keyring is not None and method not in _OPEN:
            caller = caller_of(headers, self._keyring)
            record.key = caller.name
        if method in _ADMINISTERS:
            check_may_administer(caller, self._service.settings)


def _code(status: int) -> grpc.StatusCode:
    return _CODES.get(status, grpc.StatusCode.UNKNOWN)


def _metadata(problem: ProblemError) -> list[tuple[str, str]]:
    headers = [(name.lower(), value) for name, value in problem.headers.items()]
    return [(name, value) for name, value in headers if name in _TOLD_HEADERS]


def _latin(pair: tuple[str, str | bytes]) -> tuple[bytes, bytes]:
    name, value = pair
    return name.encode("latin-1"), value if isinstance(value, bytes) else value.encode("latin-1")
