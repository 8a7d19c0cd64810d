"""Traces for OpenTelemetry: a span for each request, and in it one for each stage. Over HTTP, FastAPI makes the first.

OpenTelemetry's own environment variables say where they go (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME,
OTEL_TRACES_SAMPLER ...): whoever runs a collector knows them already.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opentelemetry import context, propagate, trace

from export.errors import require
from serve.record import QUIET

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

# Codes of errors that are the server's, not its caller's. Source: OpenTelemetry's semantic conventions for gRPC.
_FAULTS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")

_PURPOSE = "compress serve --otel"
_FLUSH_SECONDS = 2.0


def tracer_provider() -> "TracerProvider":
    """A provider that collects spans and sends them in batches over OTLP/HTTP, from its own thread.

    Raises MissingExtraError.
    """
    require("opentelemetry.sdk.trace.export", extra="otel", purpose=_PURPOSE)
    require("opentelemetry.exporter.otlp.proto.http.trace_exporter", extra="otel", purpose=_PURPOSE)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # What the environment says about the service takes precedence over this name.
    resource = Resource.create({SERVICE_NAME: "segpress"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def flush_and_end(provider: "TracerProvider") -> None:
    """Send the spans that are left, but do not let an unreachable collector delay the end of the server."""
    ending = threading.Thread(target=provider.shutdown, daemon=True)
    ending.start()
    ending.join(_FLUSH_SECONDS)


def fastapi_options(provider: "TracerProvider | None") -> dict[str, Any]:
    """Options for FastAPI's constructor: spans of requests to `provider`, if there is one, except those of probes and
    scrapers; no other telemetry."""
    telemetry: dict[str, Any] = {"metrics": False, "logs": False, "operation_spans": False, "auto_configure": False}
    if provider is None:
        telemetry["tracing"] = False
    else:
        telemetry |= {"tracer_provider": provider, "exclude": lambda scope: scope["path"].startswith(QUIET)}
    return {"telemetry": telemetry}


class Spans:
    """Makes a span for every gRPC call, and for every stage of a request or call once the stage has ended."""

    def __init__(self, provider: trace.TracerProvider) -> None:
        self._tracer = provider.get_tracer("segpress")

    def of_current_request(self) -> Callable[[str, float], None]:
        """A callback for each stage that ends in the request whose span is current; worker threads may call it."""
        parent = context.get_current()

        def stage_ended(stage: str, seconds: float) -> None:
            end = time.time_ns()
            span = self._tracer.start_span(stage, context=parent, start_time=end - round(seconds * 1e9))
            span.end(end)

        return stage_ended

    @contextmanager
    def of_call(self, service: str, method: str, metadata: Mapping[str, str]) -> Iterator["CallSpan"]:
        """Make the call's span the current one within this context; it continues the trace that the metadata name."""
        with self._tracer.start_as_current_span(
            f"{service}/{method}",
            context=propagate.extract(metadata),
            kind=trace.SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield CallSpan(span)


@dataclass(frozen=True)
class CallSpan:
    """The span of a gRPC call; the default records nothing."""

    span: trace.Span = trace.INVALID_SPAN

    def end_with(self, name: str, number: int) -> None:
        """Record the gRPC status code that the call ended with."""
        self.span.set_attribute("rpc.grpc.status_code", number)
        if name in _FAULTS:
            self.span.set_attribute("error.type", name)
            self.span.set_status(trace.StatusCode.ERROR)
