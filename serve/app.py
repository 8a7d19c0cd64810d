"""The application: routes and lifecycle around one or more models."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI

from export.errors import require
from export.machine import library_versions
from serve import openapi, pages, problems, routes_image, routes_service, tracing
from serve.access import Access
from serve.crowding import Crowding
from serve.folders import ModelFolders
from serve.head import HeadAsGet
from serve.keys import Keyring, load_keys
from serve.metrics import UNKNOWN_MODEL
from serve.middleware import RequestEnvelope
from serve.oip import routes as oip
from serve.predictor import Predictor, SessionSettings, open_newest
from serve.repository import Repository
from serve.service import Service
from serve.settings import ServeSettings

if TYPE_CHECKING:
    from serve.oip.grpc_server import GrpcServer


def create_app(models: Sequence[Path] | Sequence[Predictor], settings: ServeSettings | None = None) -> FastAPI:
    """An ASGI application that serves `models`: bundles, folders of models, or predictors that were made elsewhere.

    Bundles are verified here, golden answers included. When the application starts, every worker runs the
    models to warm up, and only then does the server report that it is ready.

    Raises BundleError with everything that is wrong; UsageError when two models have the same name, for a bad key file,
    when no provider is installed, and for limits that fit no image of a model; MissingExtraError for a `grpc_port`
    without grpcio, and for `otel` without OpenTelemetry.
    """
    settings = settings or ServeSettings()
    keyring = load_keys(settings.api_keys) if settings.api_keys else None
    tracer_provider = tracing.tracer_provider() if settings.otel else None
    spans = tracing.Spans(tracer_provider) if tracer_provider is not None else None
    session = SessionSettings.of(settings)
    service = Service(_repository(models, session), session, settings)

    grpc_server = _grpc_server(service, keyring, spans) if settings.grpc_port is not None else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        app.openapi()  # takes a while the first time; during a request it would hold up all others
        await service.start()
        if grpc_server is not None:
            await grpc_server.start()
        try:
            yield
        finally:
            if grpc_server is not None:
                await grpc_server.stop()
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
        # A redirect would name the host that the client sent, and would not be a problem like other errors.
        redirect_slashes=False,
        **tracing.fastapi_options(tracer_provider),
    )
    app.state.service = service
    app.state.grpc_server = grpc_server
    problems.install(app, count=partial(service.metrics.refused, UNKNOWN_MODEL))
    for router in (routes_image.router, oip.router, routes_service.router, pages.router):
        app.include_router(router)
    openapi.install(app, with_keys=keyring is not None)
    app.add_middleware(HeadAsGet)
    if keyring is not None:
        app.add_middleware(Access, keyring=keyring, metrics=service.metrics)
    app.add_middleware(Crowding, metrics=service.metrics)
    app.add_middleware(RequestEnvelope, lifecycle=service.lifecycle, spans=spans)
    return app


def _grpc_server(service: Service, keyring: Keyring | None, spans: tracing.Spans | None) -> "GrpcServer":
    require("grpc", extra="grpc", purpose="grpc_port")
    from serve.oip.grpc_server import GrpcServer

    return GrpcServer(service, keyring, spans)


def _repository(models: Sequence[Path] | Sequence[Predictor], session: SessionSettings) -> Repository:
    folders = ModelFolders([model for model in models if isinstance(model, Path)])
    repository = Repository(folders, [model for model in models if not isinstance(model, Path)])
    for predictor in open_newest(folders, session):
        repository.switch(predictor.manifest.name, [predictor])
    return repository
