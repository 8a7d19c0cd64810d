"""The place of a request in a trace, which a caller began or which begins here.

Source: W3C Trace Context, https://www.w3.org/TR/trace-context/. OpenTelemetry's API parses it; its SDK is not needed.
"""

import random
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers

TRACEPARENT = "traceparent"


@dataclass(frozen=True)
class TraceContext:
    """The trace, and this server's own part of it."""

    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """16 hexadecimal digits."""
    is_sampled: bool

    @classmethod
    def of(cls, headers: Headers) -> "TraceContext":
        """The trace that the headers continue; a new one when they name none, or a malformed one."""
        recorded = trace.get_current_span().get_span_context()
        if recorded.is_valid:  # with --otel this server has begun a span already, which is the one to name
            return cls(f"{recorded.trace_id:032x}", f"{recorded.span_id:016x}", recorded.trace_flags.sampled)
        parent = _named(headers)
        trace_id = f"{parent.trace_id:032x}" if parent.is_valid else f"{random.getrandbits(128):032x}"
        return cls(trace_id, f"{random.getrandbits(64):016x}", parent.is_valid and parent.trace_flags.sampled)

    def header(self) -> str:
        """The value of a traceparent header that continues the trace from here."""
        return f"00-{self.trace_id}-{self.span_id}-{self.is_sampled:02x}"


def _named(headers: Headers) -> trace.SpanContext:
    """The span that the headers name; an invalid one when they name none."""
    given = headers.get(TRACEPARENT)
    if given is None:
        return trace.INVALID_SPAN_CONTEXT
    context = TraceContextTextMapPropagator().extract({TRACEPARENT: given})
    return trace.get_current_span(context).get_span_context()
