"""What the routes of one application share."""

import asyncio
import logging
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import Request

from export.bands import counted_pixels
from export.bundle import is_bundle
from export.errors import BundleError, UsageError
from export.images import encode_image
from export.manifest import Manifest
from serve.answers import Answer, to_png
from serve.lifecycle import Lifecycle
from serve.limits import BodyReader
from serve.metrics import UNKNOWN_MODEL, Metrics, Stages
from serve.pipeline import Sizes, WholeWork, Work, decoded, run_together
from serve.policy import Choice, newest_version
from serve.predictor import USUAL_SIZE, Predictor, SessionSettings, open_bundle
from serve.problems import ProblemError
from serve.queue import WorkQueue
from serve.repository import Repository
from serve.settings import ServeSettings

logger = logging.getLogger(__name__)

# The first touches every page and kernel; after the others the estimate of service time is not that of a cold start.
_WARM_UP_ROUNDS = 3
_CLOSE_SECONDS = 2.0


class Service:
    """The models, the queue in front of them, and the metrics."""

    def __init__(self, repository: Repository, session: SessionSettings, settings: ServeSettings) -> None:
        """Raises UsageError when the limits would refuse every image for a model."""
        self.settings = settings
        self.session = session
        self.repository = repository
        self.lifecycle = Lifecycle()
        self.sizes = Sizes(
            max_pixels=settings.max_pixels,
            bucket=settings.size_bucket,
            max_windowed_pixels=settings.max_windowed_pixels,
            max_probabilities=settings.max_probabilities,
        )
        for predictor in repository.all_served():
            _check_pixels(predictor.manifest, self.sizes)
        self.queue: WorkQueue[Work[Any]] = WorkQueue(
            run_together,
            workers=settings.concurrency,
            limit=settings.queue_limit,
            max_wait_seconds=settings.max_wait_seconds,
            max_batch=settings.max_batch,
            batch_delay_seconds=settings.batch_delay_seconds,
            mates=lambda one, other: one.predictor is other.predictor,
            # Not the predictor itself: its estimate would keep a model in memory that is no longer served.
            # Nor the model alone: an image in hundreds of windows says nothing about one that is run as a whole.
            kind=lambda work: (work.predictor.manifest.digest, type(work)),
            took_its_time=lambda work: work.has_run,
        )
        self.bodies = BodyReader(settings)
        self.metrics = self._metrics()
        self._changing = asyncio.Lock()

    @property
    def max_images(self) -> int:
        """Images in one request: `max_images` of the settings, but no more than can run and wait at once."""
        return min(self.settings.max_images, self.queue.capacity)

    def label(self, model: str) -> str:
        """How metrics and logs label requests for `model`; its own name only if it is served."""
        return model if self.repository.versions(model) else UNKNOWN_MODEL

    async def start(self) -> None:
        """Start the workers and run every model on all of them; then the server is ready."""
        self.queue.start()
        for predictor in self.repository.all_served():
            for _ in range(_WARM_UP_ROUNDS):
                everywhere = [
                    self.queue.run(_warm_up(predictor, self.sizes), deadline_seconds=math.inf)
                    for _ in range(self.settings.concurrency)
                ]
                await asyncio.gather(*everywhere)
        self.lifecycle.start()

    async def stop(self) -> None:
        """Take no more requests, and let the workers end."""
        self.lifecycle.drain()
        await asyncio.to_thread(self.queue.close, timeout_seconds=_CLOSE_SECONDS)

    async def load(self, name: str, choice: Choice = newest_version) -> None:
        """Serve the versions that `choice` picks from the model's folder, and no other versions of it.

        New ones are verified and warmed up first. Until then, and when one is refused, the old ones keep serving.
        Requests in progress end on the version they began with.

        Raises ProblemError 404 for a model or version that is not there, 422 for a bundle that must not serve and for a
        name that two models have.
        """
        async with self._changing:
            try:
                there = await asyncio.to_thread(self.repository.folders.versions, name)
            except UsageError as error:
                logger.warning("%s is refused, and what was served keeps serving: %s", name, error)
                raise ProblemError(422, "bundle_refused", str(error)) from error
            if not there:
                raise ProblemError(
                    404, "unknown_model", f"there is no model {name!r} to load; see /v2/repository/index"
                )
            wanted = choice(list(there))
            missing = [version for version in wanted if version not in there]
            if missing:
                raise ProblemError(
                    404, "unknown_version", f"{name} has no version {missing[0]!r}; its folder has {', '.join(there)}"
                )
            opened = [await asyncio.to_thread(self._opened, there[version], name, version) for version in wanted]
            for gone in self.repository.switch(name, opened):
                self.metrics.remove_model(gone.manifest)
            for predictor in sorted(opened, key=lambda predictor: predictor is self.repository.served[name]):
                self.metrics.add_model(predictor.manifest)  # newest last: Triton's metrics name the last one added
            logger.info("%s: serving version %s", name, ", ".join(wanted))

    async def unload(self, name: str) -> None:
        """Stop serving a model; requests in progress are finished.

        Raises ProblemError 404 for a model that is not served.
        """
        async with self._changing:
            if not self.repository.versions(name):
                raise self.repository.unknown(name)
            for gone in self.repository.switch(name, []):
                self.metrics.remove_model(gone.manifest)
            logger.info("%s: no longer served", name)

    def unavailable(self) -> ProblemError:
        """The problem for requests that arrive before the server is ready, or once its shutdown has begun."""
        if self.lifecycle.is_ending:
            seconds = math.ceil(self.settings.drain_seconds)
            detail = "this server is shutting down; send the request to another one, or again later"
            headers = {"Retry-After": str(seconds), "Connection": "close"}
            return ProblemError(503, "draining", detail, headers=headers)
        detail = "the models are not loaded yet; ask /v2/health/ready first"
        return ProblemError(503, "not_ready", detail, headers={"Retry-After": "1"})

    def _opened(self, path: Path, name: str, version: str) -> Predictor:
        try:
            predictor = open_bundle(path, name, version, self.session)
            _check_pixels(predictor.manifest, self.sizes)
        except (BundleError, UsageError, OSError) as error:
            if not is_bundle(path):
                detail = f"version {version!r} of {name} is gone from its folder; put it back, or load another"
                raise ProblemError(404, "unknown_version", detail) from error
            self.repository.refuse(name, version, str(error))
            logger.warning("%s version %s is refused, and what was served keeps serving: %s", name, version, error)
            raise ProblemError(422, "bundle_refused", str(error)) from error
        served = self.repository.versions(name).get(version)
        if served is not None and served.manifest.digest == predictor.manifest.digest:
            return served
        for _ in range(_WARM_UP_ROUNDS):
            [outcome] = run_together([_warm_up(predictor, self.sizes)])
            if isinstance(outcome, Exception):
                raise outcome
        return predictor

    def _metrics(self) -> Metrics:
        metrics = Metrics(objective_seconds=self.settings.objective_seconds, triton_names=self.settings.triton_metrics)
        for predictor in self.repository.all_served():
            metrics.add_model(predictor.manifest)
        metrics.watch("segpress_queue_depth", "Requests waiting for their turn.", lambda: self.queue.waiting)
        metrics.watch("segpress_queue_limit", "Requests that may wait at once.", lambda: self.queue.limit)
        metrics.watch("segpress_workers", "Requests computed at once, at most.", lambda: self.queue.workers)
        metrics.watch("segpress_workers_busy", "Requests being computed.", lambda: self.queue.running)
        metrics.watch(
            "segpress_queue_wait_estimate_seconds",
            "How long a new request would wait for its turn.",
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


def _warm_up(predictor: Predictor, sizes: Sizes) -> Work[Answer]:
    manifest = predictor.manifest
    grey = _grey_image(manifest, sizes)
    return WholeWork(
        predictor,
        Stages(),
        replace(sizes, max_pixels=sys.maxsize),
        lambda: [decoded(grey, manifest, max_pixels=sys.maxsize)],
        lambda masks_NHW: to_png(masks_NHW[0], manifest),
    )


def _check_pixels(manifest: Manifest, sizes: Sizes) -> None:
    height, width = sizes.planned(*(manifest.size or (1, 1)), manifest).padded
    pixels = counted_pixels(height, width, manifest.channels)
    if pixels > sizes.max_pixels:
        raise UsageError(
            f"{manifest.name} takes images of {width}x{height} at least, as padded: with max_pixels = "
            f"{sizes.max_pixels} every request would be refused; set it to {pixels} or more, or size_bucket to less"
        )


def _grey_image(manifest: Manifest, sizes: Sizes) -> bytes:
    """A grey image of the size that the model is meant for, unless images of that size would be refused."""
    height, width = manifest.own_size or USUAL_SIZE
    if counted_pixels(*sizes.planned(height, width, manifest).padded, manifest.channels) > sizes.max_pixels:
        height, width = USUAL_SIZE
    return encode_image(np.full((height, width, manifest.channels), 128, dtype=np.uint8))
