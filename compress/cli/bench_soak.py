"""`compress bench soak`"""

from pathlib import Path
from typing import Annotated

import typer

from compress.cli.common import JsonOption, emit, require_for_report, typed
from export.errors import require


def command(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle to serve, in a separate process.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the report.")] = Path("soak"),
    minutes: Annotated[float, typer.Option("--minutes", min=0.01, help="Duration in minutes.")] = 20.0,
    load: Annotated[
        float, typer.Option("--load", min=0.01, help="Share of the capacity, which is measured first.")
    ] = 0.8,
    hostile: Annotated[float, typer.Option("--hostile", min=0.0, help="Hostile clients per good request.")] = 0.01,
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
    """Serve a bundle under load for a long time, with some hostile clients, and report what was lost or has grown.

    Every image has its own random size. Hostile clients send garbage, decompression bombs, 40 MB bodies, one byte per
    second or something other than HTTP, or disconnect. Anything that is not as it should be is NOT OK in the report,
    and the exit status is 1.
    """
    require("fastapi", extra="serve", purpose="compress bench soak")
    require_for_report(out)
    from benchmarks.load.server import settings_of
    from benchmarks.load.soak import soak
    from benchmarks.report.folder import to_open
    from benchmarks.report.load.soak import headline, hostile_table
    from benchmarks.report.met import require_met
    from benchmarks.report.table import for_terminal
    from benchmarks.report.words import verdict_lines
    from compress.progress import show_table, task

    report = soak(
        bundle,
        out=out,
        settings=settings_of(settings or []),
        minutes=minutes,
        load_share=load,
        hostile=hostile,
        command=typed(),
        progress=task,
    )
    if report.hostile and not as_json:
        show_table(for_terminal(hostile_table(report)))
    lines = [headline(report), *verdict_lines(report.verdicts), f"report: {to_open(out)}"]
    emit(report.model_dump(mode="json"), "\n".join(lines), as_json=as_json)
    require_met(report.verdicts, out)
