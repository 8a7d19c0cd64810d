"""`compress bench latency`"""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from compress.cli.common import JsonOption, OutOption, ThreadsOption, emit, parse_size
from export.errors import UsageError

app = typer.Typer(help="Measure bundles side by side.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Measure bundles side by side."""


@app.command("latency")
def latency_command(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="Bundles; the first is the reference.")],
    out: OutOption = Path("report"),
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Dataset: scores the bundles, times real images."),
    ] = None,
    split: Annotated[Literal["train", "val", "test"], typer.Option("--split", help="Split to score.")] = "test",
    size: Annotated[str | None, typer.Option("--size", metavar="HxW", help="Image size to time at.")] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Timed runs of each bundle.")] = 50,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time bundles interleaved in one process; writes JSON, Markdown and one HTML page with plots."""
    if (out / "step.json").exists():
        raise UsageError(f"{out} belongs to a run; its report would be lost: give another --out")
    from benchmarks.latency import bench
    from benchmarks.report.table import terminal_table
    from compress.progress import show_table, task

    report = bench(
        bundles,
        data=data,
        split=split,
        size=parse_size(size),
        threads=threads,
        rounds=rounds,
        out=out,
        command=shlex.join(["compress", *sys.argv[1:]]),
        progress=task,
    )
    if not as_json:
        show_table(terminal_table(report))
    page = next(path for path in (out / "report.html", out / "report.md") if path.exists())
    emit(report.model_dump(mode="json"), f"report: {page}", as_json=as_json)
