"""Traces for OpenTelemetry: a span for each request, which over HTTP FastAPI itself makes, and in it one a stage.

Where they go is said by OpenTelemetry's own environment variables (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME,
OTEL_TRACES_SAMPLER ...), which whoever runs a collector knows already.
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

# What is an error of the server's, not of its caller's. Source: OpenTelemetry's semantic conventions for gRPC.
_FAULTS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")

_PURPOSE = "compress serve --otel"
_FLUSH_SECONDS = 2.0


def tracer_provider() -> "TracerProvider":
    """What collects spans and sends them in batches over OTLP/HTTP, from a thread of its own.

    Raises MissingExtraError.
    """
    require("opentelemetry.sdk.trace.export", extra="otel", purpose=_PURPOSE)
    require("opentelemetry.exporter.otlp.proto.http.trace_exporter", extra="otel", purpose=_PURPOSE)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # What the environment says about the service goes before what is said here.
    resource = Resource.create({SERVICE_NAME: "segpress"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def flush_and_end(provider: "TracerProvider") -> None:
    """Send what is left, but let no collector that is away hold up the end of the server."""
    ending = threading.Thread(target=provider.shutdown, daemon=True)
    ending.start()
    ending.join(_FLUSH_SECONDS)


def fastapi_options(provider: "TracerProvider | None") -> dict[str, Any]:
    """For FastAPI's constructor: spans of requests to `provider`, if there is one, and nothing else; probes and
    scrapers left out."""
    telemetry: dict[str, Any] = {"metrics": False, "logs": False, "operation_spans": False, "auto_configure": False}
    if provider is None:
        telemetry["tracing"] = False
    else:
        telemetry |= {"tracer_provider": provider, "exclude": lambda scope: scope["path"].startswith(QUIET)}
    return {"telemetry": telemetry}


class Spans:
    """Makes a span of every gRPC call, and of every stage of a request or call, after it has ended."""

    def __init__(self, provider: trace.TracerProvider) -> None:
        self._tracer = provider.get_tracer("segpress")

    def of_current_request(self) -> Callable[[str, float], None]:
        """What is to be told of the stages of the request whose span is current; worker threads may call it."""
        parent = context.get_current()

        def stage_ended(stage: str, seconds: float) -> None:
            end = time.time_ns()
            span = self._tracer.start_span(stage, context=parent, start_time=end - round(seconds * 1e9))
            span.end(end)

        return stage_ended

    @contextmanager
    def of_call(self, service: str, method: str, metadata: Mapping[str, str]) -> Iterator["CallSpan"]:
        """Within it the call's span is the current one; it goes on with the trace that the metadata name."""
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
    """Of one gRPC call, or of none."""

    span: trace.Span = trace.INVALID_SPAN

    def end_with(self, name: str, number: int) -> None:
        """Say what the call ended with: the status code of gRPC."""
        self.span.set_attribute("rpc.grpc.status_code", number)
        if name in _FAULTS:
            self.span.set_attribute("error.type", name)
            self.span.set_status(trace.StatusCode.ERROR)
