"""What the routes of one application share."""

import asyncio
import math
import sys
from collections.abc import Sequence
from functools import partial

import numpy as np
from fastapi import Request

from export.bands import counted_pixels, lossless_format
from export.errors import UsageError
from export.images import FORMATS, encode_image
from export.manifest import Manifest
from serve.answers import to_png
from serve.lifecycle import Lifecycle
from serve.limits import BodyReader, ContentType
from serve.metrics import Metrics, Stages
from serve.pipeline import segment
from serve.predictor import Predictor, by_name
from serve.problems import ProblemError
from serve.queue import WorkQueue
from serve.settings import ServeSettings

# Once to touch every page and kernel, once more so that the estimate of service time is not that of a cold start.
_WARM_UP_ROUNDS = 3
_WARM_UP_SIZE = (256, 256)
_CLOSE_SECONDS = 2.0


class Service:
    """The models, the queue in front of them, and what is measured."""

    def __init__(self, predictors: Sequence[Predictor], settings: ServeSettings) -> None:
        """Raises UsageError when two models have one name, when there is none, or when the limits fit no image."""
        self.settings = settings
        self.predictors = by_name(predictors)
        for predictor in self.predictors.values():
            _check_pixels(predictor.manifest, settings.max_pixels)
        self.lifecycle = Lifecycle()
        self.queue = WorkQueue(workers=settings.concurrency, limit=settings.queue_limit)
        self.bodies = BodyReader(settings)
        self.metrics = self._metrics()

    def predictor(self, name: str) -> Predictor:
        """Raises ProblemError 404."""
        try:
            return self.predictors[name]
        except KeyError:
            served = ", ".join(sorted(self.predictors))
            raise ProblemError(404, "unknown_model", f"no model {name!r} is served here; there is {served}") from None

    async def start(self) -> None:
        """Start the workers and run every model on all of them; then the server is ready."""
        self.queue.start()
        for predictor in self.predictors.values():
            for _ in range(_WARM_UP_ROUNDS):
                await asyncio.gather(*[self._warm_up(predictor) for _ in range(self.settings.concurrency)])
        self.lifecycle.start()

    async def stop(self) -> None:
        """Let the workers end."""
        self.lifecycle.drain()
        await asyncio.to_thread(self.queue.close, timeout_seconds=_CLOSE_SECONDS)

    def unavailable(self) -> ProblemError:
        """The answer to whoever comes before the server is ready, or after its end has begun."""
        if self.lifecycle.is_ending:
            seconds = math.ceil(self.settings.drain_seconds)
            detail = "this server is shutting down; send the request to another one, or again later"
            headers = {"Retry-After": str(seconds), "Connection": "close"}
            return ProblemError(503, "draining", detail, headers=headers)
        detail = "the models are not loaded yet; ask /v2/health/ready first"
        return ProblemError(503, "not_ready", detail, headers={"Retry-After": "1"})

    async def _warm_up(self, predictor: Predictor) -> None:
        manifest = predictor.manifest
        work = partial(
            segment,
            _grey_image(manifest),
            ContentType(FORMATS[lossless_format(manifest.channels)]),
            predictor,
            to_png,
            max_pixels=sys.maxsize,
            stages=Stages(),
        )
        await self.queue.run(work, deadline_seconds=math.inf)

    def _metrics(self) -> Metrics:
        metrics = Metrics(objective_seconds=self.settings.objective_seconds, triton_names=self.settings.triton_metrics)
        for predictor in self.predictors.values():
            metrics.add_model(predictor.manifest)
        metrics.watch("segpress_queue_depth", "Requests that wait for their turn.", lambda: self.queue.waiting)
        metrics.watch("segpress_queue_limit", "Requests that may wait.", lambda: self.queue.limit)
        metrics.watch("segpress_workers", "Requests that are computed at once, at most.", lambda: self.queue.workers)
        metrics.watch("segpress_workers_busy", "Requests being computed.", lambda: self.queue.running)
        metrics.watch(
            "segpress_queue_wait_estimate_seconds",
            "How long a newcomer would wait for its turn.",
            lambda: self.queue.estimated_wait_seconds,
        )
        metrics.watch("segpress_body_bytes", "Request bodies held in memory.", lambda: self.bodies.buffered_bytes)
        metrics.watch("segpress_ready", "1 while requests should be sent here.", lambda: self.lifecycle.is_ready)
        return metrics


def service_of(request: Request) -> Service:
    """The service of the application that `request` came to."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def _check_pixels(manifest: Manifest, max_pixels: int) -> None:
    if manifest.size is None:
        return
    height, width = manifest.geometry(*manifest.size).padded
    pixels = counted_pixels(height, width, manifest.channels)
    if pixels > max_pixels:
        raise UsageError(
            f"{manifest.name} takes images of {width}x{height}: with max_pixels = {max_pixels} every request would be "
            f"refused; set it to {pixels} or more"
        )


def _grey_image(manifest: Manifest) -> bytes:
    """An image of the size that the model was measured at, or is fed with."""
    measured = manifest.latency
    height, width = manifest.size or ((measured.height, measured.width) if measured else _WARM_UP_SIZE)
    return encode_image(np.full((height, width, manifest.channels), 128, dtype=np.uint8))
