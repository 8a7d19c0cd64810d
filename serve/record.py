"""What is known about the current request: for its line in the log, its trace, and the problem it may end with.

The middleware makes a record and keeps it in a context variable, so that all that runs for the request (routes,
metrics, problems) finds it without its being passed on. Worker threads get what they need of it with their work.
"""

import logging
import random
import re
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from starlette.datastructures import Headers

from serve.logs import event
from serve.trace import TraceContext

logger = logging.getLogger(__name__)

REQUEST_ID = "X-Request-ID"
_WELL_FORMED_ID = re.compile(r"[A-Za-z0-9._:+/=-]{1,128}")

# Probes and scrapers ask for these every few seconds; in logs and traces they would hide the requests that matter.
QUIET = ("/v2/health/", "/metrics")


@dataclass
class RequestRecord:
    """One request, from its first byte to the last byte of its answer."""

    request_id: str
    trace: TraceContext
    begun: float
    """`time.perf_counter` when its headers had arrived."""
    on_stage: Callable[[str, float], None] = lambda _stage, _seconds: None
    """Called with the name and the seconds of every stage that ends."""
    model: str = ""
    """The model that it asks for, if that is served."""
    key: str = ""
    """Name of the API key that came with it."""
    received_bytes: int = 0
    sent_bytes: int = 0
    """Bytes of the bodies, without headers."""
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds in each stage, over all images and windows."""
    _adding: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def of(cls, headers: Headers) -> "RequestRecord":
        """The record of a request whose headers have just arrived. They may name an id, and a trace to continue."""
        given = headers.get(REQUEST_ID, "")
        request_id = given if _WELL_FORMED_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"
        return cls(request_id, TraceContext.of(headers), time.perf_counter())

    def stage(self, stage: str, seconds: float) -> None:
        """Add the time of a stage that has just ended, perhaps not for the first time. Worker threads call it, too."""
        with self._adding:
            self.stages[stage] = self.stages.get(stage, 0.0) + seconds
        self.on_stage(stage, seconds)

    def log(self, method: str, route: str, status: int | None, *, quiet: bool) -> None:
        """Log the request, once it is over; `status` is None if it was not answered."""
        level = logging.DEBUG if quiet else logging.INFO
        if not logger.isEnabledFor(level):
            return
        milliseconds = 1000 * (time.perf_counter() - self.begun)
        fields = {
            "request_id": self.request_id,
            "trace_id": self.trace.trace_id,
            "method": method,
            "route": route,
            "status": status,
            "model": self.model,
            "key": self.key,
            "ms": round(milliseconds, 3),
            "stages_ms": {stage: round(1000 * seconds, 3) for stage, seconds in self.stages.items()},
            "received_bytes": self.received_bytes,
            "sent_bytes": self.sent_bytes,
        }
        logger.log(
            level,
            "%s %s %s %.1f ms model=%s id=%s trace=%s",
            method,
            route,
            status or "unanswered",
            milliseconds,
            self.model or "-",
            self.request_id,
            self.trace.trace_id,
            extra=event("request", fields),
        )


_CURRENT: ContextVar[RequestRecord | None] = ContextVar("segpress_request", default=None)


def current_record() -> RequestRecord | None:
    """The record of the request that this task answers; None outside of requests, such as in a warm-up."""
    return _CURRENT.get()


def set_current(record: RequestRecord) -> None:
    """Make `record` that of the request that this task answers from now on."""
    _CURRENT.set(record)
