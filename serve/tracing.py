"""Traces for OpenTelemetry: a span for each request, which FastAPI itself makes, and in it one for each stage.

Where they go is said by OpenTelemetry's own environment variables (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME,
OTEL_TRACES_SAMPLER ...), which whoever runs a collector knows already.
"""

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from opentelemetry import context, trace

from export.errors import require
from serve.record import QUIET

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

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
    """For FastAPI's constructor: spans of requests to `provider` and nothing else, probes and scrapers left out."""
    if provider is None:
        return {}
    telemetry = {
        "tracer_provider": provider,
        "metrics": False,
        "logs": False,
        "operation_spans": False,
        "auto_configure": False,
        "exclude": lambda scope: scope["path"].startswith(QUIET),
    }
    return {"telemetry": telemetry}


class StageSpans:
    """Makes a span of every stage of a request, after it has ended."""

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
