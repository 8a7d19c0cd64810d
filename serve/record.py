"""What is known of the request at hand: for its line in the log, its trace, and the problem it may end with.

The middleware makes a record and keeps it in a context variable, so that whatever runs for the request (routes,
metrics, problems) finds it without handing it on. Worker threads get what they need of it with their work.
"""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from serve.trace import TraceContext

# Asked every few seconds by probes and scrapers; in logs and traces they would hide the requests that matter.
QUIET = ("/v2/health/", "/metrics")


@dataclass
class RequestRecord:
    """One request, from its first byte to the last byte of its answer."""

    request_id: str
    trace: TraceContext
    begun: float
    """`time.perf_counter` when its headers had come."""
    on_stage: Callable[[str, float], None] = lambda _stage, _seconds: None
    """Told of every stage that ends, with its seconds."""
    model: str = ""
    """That it asks for, if it is served."""
    key: str = ""
    """Name of the API key that came with it."""
    received_bytes: int = 0
    sent_bytes: int = 0
    """Of the bodies, without headers."""
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds in each."""

    def stage(self, stage: str, seconds: float) -> None:
        """Keep a stage that ended just now. Called in worker threads, too."""
        self.stages[stage] = seconds
        self.on_stage(stage, seconds)


_CURRENT: ContextVar[RequestRecord | None] = ContextVar("segpress_request", default=None)


def current_record() -> RequestRecord | None:
    """Of the request that this task answers; None outside of requests, such as in a warm-up."""
    return _CURRENT.get()


def set_current(record: RequestRecord) -> None:
    """From here on this task answers the request of `record`."""
    _CURRENT.set(record)
