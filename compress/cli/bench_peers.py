"""`compress bench peers`"""

from pathlib import Path
from typing import Annotated

import typer

from compress.cli.common import JsonOption, emit, parse_size, require_for_report, typed
from export.errors import require


def command(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle whose graph every server serves.")],
    peers: Annotated[
        list[str] | None,
        typer.Option(
            "--peer",
            metavar="NAME=ENV",
            help="litserve, mosec, bentoml or mlserver, and its environment; may be repeated.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the report.")] = Path("peers"),
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Dataset whose test images are sent; default: synthetic images."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="HxW", help="Image size; default: that of the bundle, else 360x480."),
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="Length of each run.")] = 10.0,
    turns: Annotated[int, typer.Option("--turns", min=1, help="Turns of the servers at saturation.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Compare our server with others on the same model: throughput, latency, and behaviour in hard cases.

    Each of the others runs in its own environment; `make peers` creates them in build/peers. The exit status is 1 if
    our server misbehaves in a hard case. That another is faster is a result, and the status stays 0.
    """
    require("fastapi", extra="serve", purpose="compress bench peers")
    require_for_report(out)
    from benchmarks.peers.bench import bench
    from benchmarks.report.folder import to_open
    from benchmarks.report.met import require_met
    from benchmarks.report.peers.write import behaves, behaviours, speeds
    from benchmarks.report.table import for_terminal
    from benchmarks.report.words import verdict_lines
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
    lines = [*verdict_lines(report.verdicts), *report.failures, f"report: {to_open(out)}"]
    emit(report.model_dump(mode="json"), "\n".join(lines), as_json=as_json)
    # Being slower than another server is a finding; misbehaving is a failure.
    require_met([behaves(report)], out)


def _named(text: str) -> tuple[str, Path]:
    name, equals, place = text.partition("=")
    if not (equals and place):
        raise typer.BadParameter(
            f"{text!r} is not NAME=ENV, such as litserve=build/peers/litserve", param_hint="--peer"
        )
    return name.strip(), Path(place).expanduser()
