"""`compress bench ops`"""

from pathlib import Path
from typing import Annotated

import typer

from compress.cli.common import JsonOption, ThreadsOption, emit, parse_size, require_for_report, typed
from export.errors import require


def command(
    bundles: Annotated[
        list[Path], typer.Argument(metavar="BUNDLE...", help="Bundles; several are compared side by side.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder for a report: JSON with every time, Markdown, HTML."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="HxW", help="Image size; default: that of the first bundle."),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images per run.")] = 1,
    threads: ThreadsOption = None,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Profiled runs, and as many without the profiler.")] = 50,
    peak: Annotated[
        bool,
        typer.Option("--peak/--no-peak", help="Measure how fast this machine multiplies at best, for comparison."),
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Show where the time of a bundle goes, by operator, and what stayed in float and why; needs no torch.

    Every node of the graph that the runtime makes of the bundle is timed, and traced to the layer it came from.
    """
    require("onnx", extra="bench", purpose="compress bench ops")
    if out is not None:
        require_for_report(out)
    from benchmarks.ops.bench import bench
    from benchmarks.report.folder import to_open
    from benchmarks.report.ops.table import nodes, operators, peaks, summary
    from benchmarks.report.ops.words import float_lines, headline, in_float
    from benchmarks.report.table import for_terminal
    from compress.progress import show_table, task

    report = bench(
        bundles,
        size=parse_size(size),
        batch=batch,
        threads=threads,
        runs=runs,
        peak=peak,
        out=out,
        command=typed(),
        progress=task,
    )
    if not as_json:
        for table in (*map(nodes, report.bundles), operators(report), peaks(report), summary(report)):
            if table is not None:
                show_table(for_terminal(table))
    lines = [headline(bundle) for bundle in report.bundles]
    for bundle in report.bundles:
        lines += [in_float(bundle), *(f"  {line}" for line in float_lines(bundle))]
    lines += report.notes
    if out is not None:
        lines.append(f"report: {to_open(out)}")
    emit(report.model_dump(mode="json"), "\n".join(lines), as_json=as_json)
