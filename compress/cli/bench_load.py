"""`compress bench load`"""

from pathlib import Path
from typing import Annotated

import typer

from compress.cli.common import JsonOption, emit, parse_size, require_for_report, typed
from export.errors import require


def command(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle to serve, in a separate process.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for the report: JSON, Markdown, HTML.")
    ] = Path("load"),
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Dataset whose test images are sent; default: synthetic images."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="HxW", help="Image size; default: that of the bundle, else 360x480."),
    ] = None,
    loads: Annotated[
        list[float] | None,
        typer.Option(
            "--load",
            min=0.01,
            help="Open loop at this share of the capacity; may be repeated; default: 0.5, 0.8 and 2.",
        ),
    ] = None,
    connections: Annotated[
        int | None,
        typer.Option(
            "--connections", min=1, help="Connections of the closed loop; default: four times the server's concurrency."
        ),
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="Length of each run.")] = 10.0,
    turns: Annotated[int, typer.Option("--turns", min=1, help="Turns of HTTP and the same work without it.")] = 3,
    timeout: Annotated[
        float,
        typer.Option("--timeout", min=0.1, help="Seconds after which a client gives up, which counts as an error."),
    ] = 30.0,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A setting of the server, as in `compress serve --set`; not port, grace, TLS or keys.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Serve a bundle, put it under load, and report what it can handle; needs no torch.

    First one request at a time and a closed loop at saturation, each in turns with the same work without HTTP. Then an
    open loop, with Poisson arrivals at shares of the capacity that was found. The report has latency from when a
    request was due, errors by kind, and the server's stages beside the clients' view; health is probed throughout.
    Anything that is not as it should be is NOT OK in the report, and the exit status is 1.
    """
    require("fastapi", extra="serve", purpose="compress bench load")
    require_for_report(out)
    from benchmarks.load.bench import DEFAULT_LOADS, bench
    from benchmarks.load.server import settings_of
    from benchmarks.report.folder import to_open
    from benchmarks.report.load.table import ceiling, costs, runs, stages
    from benchmarks.report.load.words import headline
    from benchmarks.report.met import require_met
    from benchmarks.report.table import for_terminal
    from benchmarks.report.words import verdict_lines
    from compress.progress import show_table, task

    report = bench(
        bundle,
        out=out,
        data=data,
        size=parse_size(size),
        settings=settings_of(settings or []),
        connections=connections,
        loads=loads or DEFAULT_LOADS,
        seconds=seconds,
        turns=turns,
        timeout=timeout,
        command=typed(),
        progress=task,
    )
    if not as_json:
        for table in (ceiling(report), runs(report), stages(report), costs(report)):
            if table is not None:
                show_table(for_terminal(table))
    lines = [headline(report), *verdict_lines(report.verdicts), f"report: {to_open(out)}"]
    emit(report.model_dump(mode="json"), "\n".join(lines), as_json=as_json)
    require_met(report.verdicts, out)
