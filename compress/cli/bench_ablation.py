"""`compress bench ablation`"""

from pathlib import Path
from typing import Annotated

import typer

from compress.cli.common import (
    JsonOption,
    OutOption,
    RecipeOption,
    SetOption,
    emit,
    require_for_report,
    typed,
    usual_recipe,
)
from export.errors import WorkFailedError, require


def command(
    out: OutOption = Path("ablation"),
    recipe: RecipeOption = None,
    settings: SetOption = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="Dataset folder; default: the sample set.")
    ] = None,
    changes: Annotated[
        Path | None,
        typer.Option(
            "--changes",
            metavar="FILE",
            help="Changes in groups (TOML), each a list of settings; default: a built-in list.",
        ),
    ] = None,
    groups: Annotated[
        list[str] | None, typer.Option("--group", metavar="NAME", help="Run only this group; may be repeated.")
    ] = None,
    seeds: Annotated[
        list[str] | None,
        typer.Option(
            "--seeds", metavar="[GROUP=]N", help="Trainings per change, of all or of one group; may be repeated."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what each part of a training recipe is worth: train the recipe and each change to it alone, and compare.

    By default the changes are of losses, augmentation, schedules, averaging and encoders. Differences are reported with
    those that seeds alone cause. If it is interrupted, the same command continues. A change that fails is reported, and
    the others go on.
    """
    require("torch", extra="train", purpose="compress bench ablation")
    require_for_report(out)
    from benchmarks.ablation.bench import bench
    from benchmarks.report.ablation.table import of_group
    from benchmarks.report.ablation.write import headlines
    from benchmarks.report.folder import to_open
    from benchmarks.report.table import for_terminal
    from compress.progress import show_table

    usual, by_group = _seeds(seeds or [])
    report = bench(
        out,
        recipe=recipe or usual_recipe(data, settings),
        settings=settings or (),
        changes=changes,
        groups=groups or (),
        seeds=usual,
        seeds_by_group=by_group,
        data=data,
        command=typed(),
    )
    if not as_json:
        for group in report.by_group():
            show_table(for_terminal(of_group(report, group)))
    text = "\n".join([*headlines(report), f"report: {to_open(out)}"])
    emit(report.model_dump(mode="json"), text, as_json=as_json)
    if failed := report.failures():
        raise WorkFailedError(
            f"{len(failed)} of the changes failed, the others are in the report: " + "; ".join(failed)
        )


def _seeds(given: list[str]) -> tuple[int, dict[str, int]]:
    usual, by_group = 3, {}
    for text in given:
        group, equals, count = text.rpartition("=")
        if not count.isdecimal() or (equals and not group):
            raise typer.BadParameter(f"{text!r} is neither N nor GROUP=N, such as losses=3", param_hint="--seeds")
        if group:
            by_group[group] = int(count)
        else:
            usual = int(count)
    return usual, by_group
