"""`compress bench widths`"""

from pathlib import Path
from typing import Annotated

import typer

from compress.cli.common import (
    DataOption,
    JsonOption,
    OutOption,
    RecipeOption,
    SetOption,
    emit,
    recipe_of,
    require_for_report,
    typed,
)
from export.errors import require


def command(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="Checkpoint folder of the dense network.")],
    data: DataOption,
    out: OutOption = Path("widths"),
    speedup: Annotated[float, typer.Option("--speedup", help="Speed-up that each method is to reach.")] = 4.0,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Timed runs of each network.")] = 50,
    recipe: RecipeOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cut a network by the latency table, by counting operations, and by ratios, and compare; nothing is fine-tuned.

    Shows what choosing widths by measured milliseconds is worth here, and how well the table predicts the whole graph.
    """
    require("torch", extra="train", purpose="compress bench widths")
    require_for_report(out)
    from benchmarks.report.folder import to_open
    from benchmarks.report.table import for_terminal
    from benchmarks.report.widths.write import summary
    from benchmarks.widths.bench import bench
    from compress.progress import show_table, task

    report = bench(
        checkpoint,
        data=data,
        out=out,
        recipe=recipe_of(recipe, settings),
        speedup=speedup,
        rounds=rounds,
        command=typed(),
        progress=task,
    )
    if not as_json:
        show_table(for_terminal(summary(report)))
    emit(report.model_dump(mode="json"), f"report: {to_open(out)}", as_json=as_json)
