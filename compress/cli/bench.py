"""`compress bench latency` and `compress bench amp`"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from compress.cli import (
    bench_ablation,
    bench_load,
    bench_ops,
    bench_peers,
    bench_soak,
    bench_table,
    bench_widths,
)
from compress.cli.common import (
    JsonOption,
    OutOption,
    RecipeOption,
    SetOption,
    ThreadsOption,
    emit,
    parse_size,
    recipe_of,
    require_for_report,
    typed,
    usual_recipe,
)
from export.errors import UsageError, require
from export.sessions import Provider

app = typer.Typer(help="Compare models, servers and training recipes side by side.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Compare models, servers and training recipes side by side."""


app.command("ablation")(bench_ablation.command)
app.command("load")(bench_load.command)
app.command("ops")(bench_ops.command)
app.command("peers")(bench_peers.command)
app.command("soak")(bench_soak.command)
app.command("table")(bench_table.command)
app.command("widths")(bench_widths.command)


@app.command("latency")
def latency_command(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="Bundles; the first is the reference.")],
    out: OutOption = Path("report"),
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Dataset, to score the bundles and time real images."),
    ] = None,
    split: Annotated[Literal["train", "val", "test"], typer.Option("--split", help="Split to score.")] = "test",
    size: Annotated[
        str | None,
        typer.Option(
            "--size", metavar="HxW", help="Size to time all at; default: what each resizes to, else that of the data."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Timed runs of each bundle.")] = 50,
    threads: ThreadsOption = None,
    providers: Annotated[
        list[Provider] | None,
        typer.Option(
            "--provider", help="What runs the models; may be repeated, to time each bundle on each. Default: cpu."
        ),
    ] = None,
    pictures: Annotated[
        bool,
        typer.Option(
            "--pictures/--no-pictures", help="Show images of the dataset; turn off if they must not be passed on."
        ),
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Time bundles interleaved in one process, and write JSON, Markdown and one HTML page with plots."""
    require_for_report(out)
    from benchmarks.latency import bench
    from benchmarks.report.folder import to_open
    from benchmarks.report.table import terminal_table
    from compress.progress import show_table, task

    report = bench(
        bundles,
        data=data,
        split=split,
        size=parse_size(size),
        threads=threads,
        rounds=rounds,
        providers=providers or (Provider.CPU,),
        pictures=pictures,
        out=out,
        command=typed(),
        progress=task,
    )
    if not as_json:
        show_table(terminal_table(report))
    emit(report.model_dump(mode="json"), f"report: {to_open(out)}", as_json=as_json)


@app.command("amp")
def amp_command(
    out: OutOption = Path("amp"),
    part: Annotated[
        Literal["grid", "accuracy", "both"],
        typer.Option(
            "--part", help="grid: time and memory of a training step; accuracy: mIoU lost in whole trainings."
        ),
    ] = "grid",
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, or auto: CUDA if there is one.")] = "auto",
    base: Annotated[int, typer.Option("--base", min=1, help="Grid: width of the UNet's first level.")] = 64,
    size: Annotated[
        str | None, typer.Option("--size", metavar="HxW", help="Grid: image size; default 256x256.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Grid: images per step.")] = 8,
    channels: Annotated[int, typer.Option("--channels", min=1, help="Grid: channels of the images.")] = 3,
    classes: Annotated[int, typer.Option("--classes", min=1, max=255, help="Grid: classes of the masks.")] = 12,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Grid: timed steps per cell.")] = 10,
    cell_seconds: Annotated[
        float,
        typer.Option("--cell-seconds", min=0.0, help="Grid: a cell that takes longer is stopped and marked as such."),
    ] = 600.0,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile/--no-compile", help="Grid: also with torch.compile, which takes minutes per cell on a CPU."
        ),
    ] = True,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="Accuracy: dataset folder; default: the sample set.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Accuracy: trainings per precision, at most 10.")] = 3,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Same as --set train.epochs=N.")] = None,
    recipe: RecipeOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what mixed precision gains in time and memory on this machine, and what it loses in mIoU.

    The grid measures a training step in every precision x memory format x torch.compile; a cell that cannot run states
    why. The accuracy part trains in float32 and in the precision that `compress train` chooses (or another, with --set
    train.precision=NAME), by default a UNet-16 with the recipe of the demo. If it is interrupted, the same command
    continues with the trainings.
    """
    require("torch", extra="train", purpose="compress bench amp")
    require_for_report(out)
    from benchmarks.amp.bench import bench
    from benchmarks.report.amp.markdown import failures
    from benchmarks.report.amp.results import Workload
    from benchmarks.report.amp.table import tables
    from benchmarks.report.folder import to_open
    from benchmarks.report.table import for_terminal
    from compress.progress import show_table, task

    unused = {"--data": data, "--epochs": epochs, "--recipe": recipe, "--set": settings}
    if part == "grid" and (given := [name for name, value in unused.items() if value]):
        raise UsageError(
            f"the grid trains nothing, so {', '.join(given)} would do nothing; add --part accuracy or both"
        )
    height, width = parse_size(size) or (256, 256)
    workload = Workload(
        base=base,
        height=height,
        width=width,
        batch=batch,
        channels=channels,
        classes=classes,
        steps=steps,
        cell_seconds=cell_seconds,
    )
    usual = [] if recipe else ["model.base=16"]
    chosen = recipe_of(recipe or usual_recipe(data, settings), [*usual, *(settings or [])], train__epochs=epochs)
    report = bench(
        out,
        workload=None if part == "accuracy" else workload,
        compiled=compiled,
        recipe=None if part == "grid" else chosen,
        device=device,
        data=data,
        seeds=seeds,
        command=typed(),
        progress=task,
    )
    if not as_json:
        for table in tables(report):
            show_table(for_terminal(table))
    lines = [
        *failures(report),
        *(f"{verdict.text} ({verdict.detail})" for verdict in report.verdicts),
        f"report: {to_open(out)}",
    ]
    emit(report.model_dump(mode="json"), "\n".join(lines), as_json=as_json)
