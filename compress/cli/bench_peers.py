"""`compress bench peers`"""

from pathlib import Path
from typing import Annotated

import typer

from compress.cli.common import JsonOption, emit, parse_size, require_no_run, typed
from export.errors import require


def command(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle whose graph all of them serve.")],
    peers: Annotated[
        list[str] | None,
        typer.Option("--peer", metavar="NAME=ENV", help="litserve, mosec, bentoml or mlserver, and its environment."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the report.")] = Path("peers"),
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Dataset whose test images are sent; default: made-up pictures."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="HxW", help="Image size; default: what the bundle is for, else 360x480."),
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="Length of each run.")] = 10.0,
    turns: Annotated[int, typer.Option("--turns", min=1, help="Turns of the servers at saturation.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Our server beside others with the same model: throughput, latency, and behaviour in hard cases.

    Each of the others runs in an environment of its own; `make peers` makes them in build/peers. The status is 1 when
    ours does not behave in a hard case; that another is faster is a result, and the status stays 0.
    """
    require("fastapi", extra="serve", purpose="compress bench peers")
    require_no_run(out)
    from benchmarks.peers.bench import bench
    from benchmarks.report.met import require_met
    from benchmarks.report.peers.write import behaves, behaviours, speeds
    from benchmarks.report.table import for_terminal
    from benchmarks.report.words import failed_first
    from compress.progress import show_table, task

    report = bench(
        bundle,
        peers=dict(map(_named, peers or [])),
        out=out,
        data=data,
        size=parse_size(size),
        seconds=seconds,
        turns=turns,
        command=typed(),
        progress=task,
    )
    if not as_json:
        for table in (speeds(report), behaviours(report)):
            show_table(for_terminal(table))
    lines = [
        *(f"{'ok' if v.ok else 'NOT OK'}: {v.text} ({v.detail})" for v in failed_first(report.verdicts)),
        *report.failures,
        f"report: {out / 'report.md'}",
    ]
    emit(report.model_dump(mode="json"), "\n".join(lines), as_json=as_json)
    # To be slower than another is what was to be found out; to behave is what a server owes.
    require_met([behaves(report)], out)


def _named(text: str) -> tuple[str, Path]:
    name, equals, place = text.partition("=")
    if not (equals and place):
        raise typer.BadParameter(
            f"{text!r} is not NAME=ENV, such as litserve=build/peers/litserve", param_hint="--peer"
        )
    return name.strip(), Path(place).expanduser()
