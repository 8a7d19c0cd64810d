"""A server process: from bundles to an open port, and from SIGTERM to a clean end."""

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from prometheus_client import disable_created_metrics
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from export.errors import SegpressError, UsageError, WorkFailedError
from export.machine import usable_cores
from serve.app import create_app
from serve.connections import guarded
from serve.lifecycle import Lifecycle
from serve.memory import keep_freed
from serve.service import Service
from serve.settings import ServeSettings
from serve.starting import end_the_start, ends_on_sigterm
from serve.tls import tls_context

logger = logging.getLogger(__name__)

# The port stays open at least this long: requests on their way when the signal came are answered (503), not reset.
_SETTLE_SECONDS = 0.5


@ends_on_sigterm()
def run(bundles: Sequence[Path], settings: ServeSettings) -> None:
    """Serve `bundles` until SIGTERM or SIGINT, then answer what has been accepted and return.

    The port opens when every bundle is verified and warm; SIGTERM before that ends the process at once, with status 0.
    A second signal ends it at once, too, with the status of that signal.

    Raises BundleError for bundles that must not serve, UsageError for an address that it cannot listen on and for
    invalid key files or certificates, WorkFailedError when the server does not start, or when requests were cut off
    because the drain took longer than `settings.drain_seconds`.
    """
    keep_freed()
    # They are a second time series for every counter and histogram, and nobody looks at them.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    tls = tls_context(settings)
    if settings.grpc_port:
        # gRPC binds only when the server starts; find out before bundles are loaded whether the port is free.
        _bind(settings.host, settings.grpc_port).close()
    with contextlib.closing(_bind(settings.host, settings.port)) as listener:
        app = create_app(bundles, settings)
        service: Service = app.state.service
        _log_choices(service)
        start = _Start(app)
        config = server_config(start, service, tls)
        server = _Server(config, service.lifecycle, settings)
        try:
            server.run(sockets=[listener])
        except SystemExit as error:
            if start.error is not None:
                raise start.error from None
            raise WorkFailedError("the server did not start; the log above says why") from error
    if server.deaf is not None:
        raise _cannot_listen(settings.host, settings.port, server.deaf) from server.deaf
    if server.cut_off:
        raise WorkFailedError(
            f"{server.cut_off} accepted requests were cut off after draining for {settings.drain_seconds:g} s; "
            "raise drain_seconds, or lower queue_limit"
        )
    logger.info("every accepted request is answered; stopped")


def server_config(app: ASGIApp, service: Service, tls: ssl.SSLContext | None = None) -> uvicorn.Config:
    """How uvicorn serves `app`, the application around `service`: over HTTPS when there is a `tls` context."""
    settings = service.settings
    return uvicorn.Config(
        app,
        http=guarded(settings, service.metrics),
        loop="asyncio",  # uvloop raises where a client has left before its answer
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # over HTTP nothing depends on the client's address
        timeout_keep_alive=settings.keep_alive_seconds,
        ssl_context_factory=(lambda _config, _default: tls) if tls else None,
    )


class _Start:
    """An application that keeps the error of a failed start for one message, where uvicorn would log a traceback."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self.error: SegpressError | None = None
        """Why it did not start."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        failed: Message | None = None

        async def send_unless_failed(message: Message) -> None:
            nonlocal failed
            if message["type"] == "lifespan.startup.failed":
                failed = message  # held back: the reason is known only once the exception arrives below
            else:
                await send(message)

        try:
            await self._app(scope, receive, send_unless_failed)
        except SegpressError as error:
            self.error = error
            await send({"type": "lifespan.startup.failed", "message": ""})
        except BaseException:
            if failed is not None:
                await send(failed)
            raise


class _Server(uvicorn.Server):
    """Uvicorn, but the first signal drains with the port still open, and a drained server returns normally.

    Uvicorn on its own closes the port at once and afterwards raises the signal again.
    """

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle, settings: ServeSettings) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._grace_seconds = settings.grace_seconds
        self._drain_seconds = settings.drain_seconds
        self._draining: asyncio.Task[None] | None = None
        self.cut_off = 0
        """Requests that were accepted and not answered within the drain."""
        self.deaf: OSError | None = None
        """Why it cannot listen."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except OSError as error:
            # Raised from here, it would cancel the application's lifespan, which logs a traceback.
            self.deaf = error
            await self.lifespan.shutdown()
            self.should_exit = True
            return
        if self._lifecycle.is_ready:
            for listener in sockets or []:
                logger.info("ready on %s", _url(listener, self.config.is_ssl))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield  # signals can be handled only in the main thread
            return
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        for number in signals:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    def _on_signal(self, number: signal.Signals) -> None:
        if not self._lifecycle.has_started:
            end_the_start()
        if self._draining is None:
            # Ctrl-C comes from a terminal: there is no load balancer that would notice late.
            grace_seconds = self._grace_seconds if number == signal.SIGTERM else 0
            self._lifecycle.leave()
            self._draining = asyncio.create_task(self._drain(grace_seconds))
            return
        logger.warning("second signal: stopping at once, %d requests unanswered", self._lifecycle.in_flight)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    async def _drain(self, grace_seconds: float) -> None:
        if grace_seconds:
            logger.info("no longer ready; requests are answered for %g s more", grace_seconds)
            await asyncio.sleep(grace_seconds)
        self._lifecycle.drain()
        logger.info("draining: %d requests in flight, %g s at most", self._lifecycle.in_flight, self._drain_seconds)
        end = asyncio.get_running_loop().time() + self._drain_seconds
        try:
            async with asyncio.timeout(self._drain_seconds):
                await asyncio.sleep(_SETTLE_SECONDS)
                await self._lifecycle.idle()
        except TimeoutError:
            self.cut_off = self._lifecycle.in_flight
        # Answers may still be on their way to slow clients.
        self.config.timeout_graceful_shutdown = max(1, math.floor(end - asyncio.get_running_loop().time()))
        self.should_exit = True


def _bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address, not listening yet."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise _cannot_listen(host, port, error) from error
    return listener


def _cannot_listen(host: str, port: int, error: OSError) -> UsageError:
    return UsageError(f"cannot listen on {host}:{port}: {error.strerror}; choose another host or port")


def _url(listener: socket.socket, is_tls: bool) -> str:
    host, port = listener.getsockname()[:2]
    return f"{'https' if is_tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def _log_choices(service: Service) -> None:
    settings = service.settings
    for predictor in service.repository.all_served():
        manifest = predictor.manifest
        logger.info(
            "%s version %s, %s, digest %s", manifest.name, manifest.version, manifest.precision, manifest.digest
        )
    logger.info(
        "%d usable cores: %d requests computed at once on %d threads each, %d more may wait, deadline %g s",
        usable_cores(),
        settings.concurrency,
        settings.threads_per_run,
        settings.queue_limit,
        settings.deadline_seconds,
    )
