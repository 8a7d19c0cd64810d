"""`compress serve`"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from export.errors import SegpressError, require
from export.sessions import MemoryPool, Provider
from serve.logs import LogFormat, last_line, logs_as
from serve.starting import ends_on_sigterm


@ends_on_sigterm()  # importing what serves takes a second, too
def command(
    bundles: Annotated[
        list[Path],
        typer.Argument(metavar="BUNDLE...", help="Bundles, or folders with bundles as NAME/VERSION or NAME."),
    ],
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 takes any free port.")
    ] = 8000,
    grpc_port: Annotated[
        int | None,
        typer.Option("--grpc-port", min=0, max=65535, help="Serve the Open Inference Protocol over gRPC here, too."),
    ] = None,
    allow_load: Annotated[
        bool, typer.Option("--allow-load", help="Without API keys: let anybody load and unload models.")
    ] = False,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", min=1, help="Requests computed at once; default: the cores.")
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of one run of the model.")] = 1,
    queue_limit: Annotated[
        int, typer.Option("--queue-limit", min=0, help="Requests that may wait for their turn.")
    ] = 64,
    max_wait_seconds: Annotated[
        float,
        typer.Option("--max-wait", min=0.001, help="Refuse a request that would wait longer than this, in seconds."),
    ] = 10.0,
    max_batch: Annotated[
        int, typer.Option("--max-batch", min=1, help="Run up to this many waiting requests together.")
    ] = 1,
    batch_delay_ms: Annotated[
        float, typer.Option("--batch-delay-ms", min=0, help="With --max-batch: wait this long for more requests.")
    ] = 0.0,
    size_bucket: Annotated[
        int, typer.Option("--size-bucket", min=1, help="Pad images to multiples of this many pixels, too.")
    ] = 1,
    memory_pool: Annotated[
        MemoryPool,
        typer.Option("--memory-pool", help="Memory between runs: keep all, shrink after large runs, or no pool."),
    ] = "shrink",
    providers: Annotated[
        list[Provider] | None,
        typer.Option("--provider", help="What runs the models; may be repeated, in order of preference. Default: cpu."),
    ] = None,
    deadline_seconds: Annotated[
        float, typer.Option("--deadline", min=0.001, max=86400, help="Seconds that a request may wait in the queue.")
    ] = 30.0,
    grace_seconds: Annotated[
        float,
        typer.Option("--grace", min=0, max=86400, help="Seconds after SIGTERM to say not ready but still answer."),
    ] = 2.0,
    drain_seconds: Annotated[
        float,
        typer.Option("--drain", min=0.001, max=86400, help="Seconds after the grace to finish accepted requests."),
    ] = 25.0,
    log_format: Annotated[
        LogFormat | None,
        typer.Option("--log-format", help="Log lines as text or JSON; default: text at a terminal, else json."),
    ] = None,
    objective_ms: Annotated[
        float | None,
        typer.Option("--objective-ms", min=0.001, help="Promised latency: histograms get fine buckets around it."),
    ] = None,
    triton_metrics: Annotated[
        bool, typer.Option("--triton-metrics", help="Show /metrics under Triton Inference Server's names, too.")
    ] = False,
    otel: Annotated[
        bool, typer.Option("--otel", help="Send OpenTelemetry traces to where OTEL_EXPORTER_OTLP_ENDPOINT says.")
    ] = False,
    api_keys: Annotated[
        Path | None,
        typer.Option(
            "--api-keys",
            metavar="FILE",
            help="Require an API key from FILE, made by `compress serve-key`.",
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option("--tls-cert", metavar="FILE", help="Certificate chain (PEM), to serve HTTPS.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option("--tls-key", metavar="FILE", help="Private key (PEM) of --tls-cert, not encrypted.")
    ] = None,
    more: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Set any field of serve.settings.ServeSettings; may be repeated."
        ),
    ] = None,
) -> None:
    """Verify bundles, warm them up, and answer requests. SIGTERM finishes accepted requests and ends."""
    require("fastapi", extra="serve", purpose="compress serve")
    if grpc_port is not None:
        require("grpc", extra="grpc", purpose="--grpc-port")
    from export.machine import usable_cores
    from serve.runner import run
    from serve.settings import ServeSettings

    form = log_format or LogFormat.here()
    try:
        given = ServeSettings().with_given(
            more or [],
            host=host,
            port=port,
            grpc_port=grpc_port,
            allow_load=allow_load,
            concurrency=concurrency or usable_cores(),
            threads_per_run=threads,
            queue_limit=queue_limit,
            max_wait_seconds=max_wait_seconds,
            max_batch=max_batch,
            batch_delay_seconds=batch_delay_ms / 1000,
            size_bucket=size_bucket,
            memory_pool=memory_pool,
            providers=tuple(providers or (Provider.CPU,)),
            deadline_seconds=deadline_seconds,
            grace_seconds=grace_seconds,
            drain_seconds=drain_seconds,
            objective_seconds=None if objective_ms is None else objective_ms / 1000,
            triton_metrics=triton_metrics,
            otel=otel,
            api_keys=api_keys,
            tls_cert=tls_cert,
            tls_key=tls_key,
        )
        with logs_as(form):
            run(bundles, given)
    except SegpressError as error:
        if form is LogFormat.TEXT:
            raise
        sys.stderr.write(last_line(error) + "\n")
        raise typer.Exit(error.exit_status) from error
