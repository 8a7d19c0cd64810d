"""The application: routes and lifecycle around one or more models."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI

from export.machine import library_versions
from serve import openapi, pages, problems, routes_image, routes_service, tracing
from serve.access import Access
from serve.connections import Crowding
from serve.keys import load_keys
from serve.middleware import RequestEnvelope
from serve.predictor import Predictor, open_bundles
from serve.service import Service
from serve.settings import ServeSettings


def create_app(models: Sequence[Path] | Sequence[Predictor], settings: ServeSettings | None = None) -> FastAPI:
    """An ASGI application that serves `models`: bundle folders, or predictors that were made elsewhere.

    Bundles are verified here, golden answers included; the models are run once on every worker when the
    application starts, and only then does it say that it is ready.

    Raises BundleError with all that is wrong, UsageError when two models have one name or for a bad file of keys.
    """
    settings = settings or ServeSettings()
    keyring = load_keys(settings.api_keys) if settings.api_keys else None
    tracer_provider = tracing.tracer_provider() if settings.otel else None
    service = Service(_predictors(models, settings), settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        app.openapi()  # takes a while the first time; later it would hold up everybody else
        await service.start()
        try:
            yield
        finally:
            await service.stop()
            if tracer_provider is not None:
                await asyncio.to_thread(tracing.flush_and_end, tracer_provider)

    app = FastAPI(
        title="segpress",
        version=library_versions().get("segpress", "unknown"),
        description="Image segmentation: an image file in, the class of each of its pixels out.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        **tracing.fastapi_options(tracer_provider),
    )
    app.state.service = service
    problems.install(app)
    for router in (routes_image.router, routes_service.router, pages.router):
        app.include_router(router)
    openapi.install(app, with_keys=keyring is not None)
    if keyring is not None:
        app.add_middleware(Access, keyring=keyring, metrics=service.metrics)
    app.add_middleware(Crowding, metrics=service.metrics)
    spans = tracing.StageSpans(tracer_provider) if tracer_provider is not None else None
    app.add_middleware(RequestEnvelope, lifecycle=service.lifecycle, spans=spans)
    return app


def _predictors(models: Sequence[Path] | Sequence[Predictor], settings: ServeSettings) -> list[Predictor]:
    paths = [model for model in models if isinstance(model, Path)]
    made_elsewhere = [model for model in models if not isinstance(model, Path)]
    return [*open_bundles(paths, threads=settings.threads_per_run), *made_elsewhere]
