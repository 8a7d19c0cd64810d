"""What is counted and timed, in Prometheus' format.

A `Metrics` is passed to the code that measures, and has its own registry: two applications in one process, or two
tests, do not share counters. Names follow Prometheus' rules: base units, `_seconds`, `_bytes`, `_total`.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from export.manifest import Manifest
from serve.problems import ProblemError
from serve.record import current_record
from serve.statistics import Statistics
from serve.triton_metrics import TritonMetrics

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

STAGES = ("queue", "decode", "preprocess", "inference", "postprocess", "encode")
"""In the order in which a request passes them."""

# From a pruned model's few milliseconds to a request that waited for its whole deadline.
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30)

# Multiples of an objective, so close to each other that a quantile near it is known to a tenth of it.
_AROUND = (0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.5, 2)

_IMAGES = (1, 2, 4, 8, 16, 32, 64)

UNKNOWN_MODEL = ""
"""Label of requests for models that are not served: names that clients make up must not become time series."""


class Metrics:
    """Everything that /metrics shows."""

    def __init__(self, *, objective_seconds: float | None = None, triton_names: bool = False) -> None:
        """`objective_seconds` gets buckets close around it; ServeSettings explains both."""
        self.registry = CollectorRegistry()
        buckets = buckets_around(objective_seconds)
        # Memory, CPU seconds, file descriptors; the interpreter; its garbage collector.
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._requests = Counter(
            "segpress_requests", "Requests answered, by HTTP status.", ["model", "code"], registry=self.registry
        )
        self._errors = Counter(
            "segpress_errors", "Requests not answered with a mask.", ["model", "reason"], registry=self.registry
        )
        self._duration = Histogram(
            "segpress_request_duration_seconds",
            "From the headers of a request to its answer, upload and queue included.",
            ["model"],
            buckets=buckets,
            registry=self.registry,
        )
        self._stage = Histogram(
            "segpress_stage_duration_seconds",
            "Time that requests spent in each stage; for an image that is run in windows, once for each window.",
            ["model", "stage"],
            buckets=buckets,
            registry=self.registry,
        )
        self._in_flight = Gauge(
            "segpress_requests_in_flight", "Requests for a mask not answered yet.", registry=self.registry
        )
        self._model_info = Gauge(
            "segpress_model_info",
            "1 for each model that is served.",
            ["name", "version", "precision", "digest"],
            registry=self.registry,
        )

        self._unanswered_seconds = Counter(
            "segpress_unanswered_request_seconds",
            "Time spent on requests that did not get a mask.",
            ["model"],
            registry=self.registry,
        )
        self._run_images = Histogram(
            "segpress_run_images",
            "Images in one run of a model: those of one request, or of several that waited.",
            ["model"],
            buckets=_IMAGES,
            registry=self.registry,
        )
        self._last_inference = Gauge(
            "segpress_last_inference_timestamp_seconds",
            "When a model was last run for a request.",
            ["model"],
            registry=self.registry,
        )
        self.statistics = Statistics(
            requests=self._requests,
            duration=self._duration,
            unanswered_seconds=self._unanswered_seconds,
            stage=self._stage,
            run_images=self._run_images,
            last_inference=self._last_inference,
        )

        self._versions: dict[str, str] = {}
        if objective_seconds is not None:
            self.watch(
                "segpress_objective_seconds", "How long a request should take at most.", lambda: objective_seconds
            )
        if triton_names:
            self.registry.register(TritonMetrics(self._versions, self.statistics))

    def add_model(self, manifest: Manifest) -> None:
        """Show a model, with zeros for its stages and requests, so that rates are right from the first request."""
        self._versions[manifest.name] = manifest.version
        self._run_images.labels(manifest.name)
        self._model_info.labels(manifest.name, manifest.version, manifest.precision, manifest.digest).set(1)
        self._duration.labels(manifest.name)
        self._requests.labels(manifest.name, "200")
        for stage in STAGES:
            self._stage.labels(manifest.name, stage)

    def remove_model(self, manifest: Manifest) -> None:
        """Stop showing a model as served. What it has done stays counted: counters only grow."""
        self._model_info.remove(manifest.name, manifest.version, manifest.precision, manifest.digest)

    def watch(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        """Add a gauge whose value is read when /metrics is."""
        Gauge(name, documentation, registry=self.registry).set_function(read)

    @contextmanager
    def request(self, model: str) -> Iterator["Counted"]:
        """Time and count one request, however it ends."""
        begun = time.perf_counter()
        code, reason = 500, "internal"
        counted = Counted(model)
        self._in_flight.inc()
        try:
            yield counted
            code, reason = 200, ""
        except ProblemError as problem:
            code, reason = problem.status, problem.reason
            problem.is_counted = True
            raise
        except asyncio.CancelledError:
            # The drain is over and the server gives up on what is left.
            code, reason = 503, "cut_off"
            raise
        finally:
            self._in_flight.dec()
            seconds, model = time.perf_counter() - begun, counted.model
            self._duration.labels(model).observe(seconds)
            if code != HTTPStatus.OK:
                self._unanswered_seconds.labels(model).inc(seconds)
            self._requests.labels(model, str(code)).inc()
            if reason:
                self._errors.labels(model, reason).inc()

    def refused(self, model: str, reason: str) -> None:
        """Count a request that was refused before any route got it, or one image of several that was refused."""
        self._errors.labels(model, reason).inc()

    def stages(self, model: str) -> "Stages":
        """Timers of one request for `model`."""
        record = current_record()

        def observe(stage: str, seconds: float) -> None:
            self._stage.labels(model, stage).observe(seconds)
            if record is not None:
                record.stage(stage, seconds)

        def ran_on(images: int) -> None:
            self._run_images.labels(model).observe(images)
            self._last_inference.labels(model).set_to_current_time()

        return Stages(observe, ran_on)

    def render(self) -> bytes:
        """Everything, in the text format that `MEDIA_TYPE` names."""
        return generate_latest(self.registry)


class Counted:
    """The model under which a request is counted and logged. It may be set later: over gRPC the message names it."""

    def __init__(self, model: str) -> None:
        self.model = model

    @property
    def model(self) -> str:
        return self._model

    @model.setter
    def model(self, model: str) -> None:
        self._model = model
        if (record := current_record()) is not None:
            record.model = model


def buckets_around(objective_seconds: float | None) -> tuple[float, ...]:
    """Upper bounds of buckets, in seconds: one is the objective itself, so that the share within it is exact."""
    if objective_seconds is None:
        return _BUCKETS
    # Rounded, or the labels would read 0.07000000000000001.
    return tuple(sorted({*_BUCKETS, *(float(f"{objective_seconds * share:.6g}") for share in _AROUND)}))


class Stages:
    """How long one request spent in each stage."""

    def __init__(
        self,
        observe: Callable[[str, float], None] = lambda _stage, _seconds: None,
        ran_on: Callable[[int], None] = lambda _images: None,
    ) -> None:
        self.seconds: dict[str, float] = {}
        self._observe = observe
        self.ran_on = ran_on
        """Called after each run of the model, with the number of its images."""

    def record(self, stage: str, seconds: float) -> None:
        """Add and observe the time of a stage that has just ended, perhaps not for the first time."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        self._observe(stage, seconds)

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Record the time spent inside, even when it raises."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.record(stage, time.perf_counter() - begun)

    def header(self, *others: "Stages") -> str:
        """The value of a Server-Timing header, in milliseconds, over these and `others`. Source: W3C Server Timing."""
        sums = dict(self.seconds)
        for stages in others:
            for stage, seconds in stages.seconds.items():
                sums[stage] = sums.get(stage, 0.0) + seconds
        return ", ".join(f"{stage};dur={1000 * seconds:.3f}" for stage, seconds in sums.items())
