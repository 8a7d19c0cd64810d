"""`compress data check`, `compress data sample` and `compress data suspects`"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from compress.cli.common import JsonOption, emit
from export.bands import MAX_CHANNELS
from export.errors import UsageError

app = typer.Typer(
    help="Check a dataset folder, find masks that may be wrong, or write the built-in sample set.", no_args_is_help=True
)

FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="Dataset folder.")]


@app.command("check")
def check_command(
    folder: FolderArgument,
    channels: Annotated[
        str,
        typer.Option(
            "--channels",
            metavar="N|auto",
            help="Channels that the model takes: 1 for grey, 3 for RGB, any other number for the bands or pages of the "
            "files; auto: 1 or 3, depending on the images.",
        ),
    ] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Report counts, sizes and classes of a dataset folder, and every problem at once (exit status 2)."""
    from compress.data.check import check
    from compress.data.report import render
    from compress.progress import counter

    chosen = _channels(channels)
    with counter("check") as progress:
        report = check(folder, chosen, progress=progress)
    emit(report.model_dump(mode="json"), render(report), as_json=as_json)
    if report.problems:
        raise UsageError(f"{folder}: {len(report.problems)} kinds of problem, listed in the report above")


@app.command("sample")
def sample_command(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """Write the built-in sample set: coastlines of the earth, land against water, as an ordinary dataset folder."""
    from compress.data.lookup import lookup_table_miou
    from compress.data.sample import write_sample

    dataset = write_sample(folder)
    counts = {"train": len(dataset.train), "val": len(dataset.val), "test": len(dataset.test)}
    lookup = lookup_table_miou(dataset)
    emit(
        {"path": str(folder), **counts, "classes": dataset.classes, "lookup_table_miou": lookup},
        f"{folder}: {', '.join(f'{count} {split}' for split, count in counts.items())}; "
        f"the best grey-value look-up table has a test mIoU of {lookup:.4f}",
        as_json=as_json,
    )


@app.command("suspects")
def suspects_command(
    folder: FolderArgument,
    model: Annotated[
        Path, typer.Option("--model", metavar="MODEL", help="Checkpoint or bundle that judges the masks.")
    ],
    split: Annotated[Literal["train", "val", "test"], typer.Option("--split", help="Split to look at.")] = "train",
    count: Annotated[int, typer.Option("--count", min=1, help="Most images to list.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List the images whose masks a model doubts most, and in which to look for mistakes.

    A model that was trained on other images is a better judge.
    """
    from compress.suspects import suspects

    found = suspects(model, folder, split=split, count=count)
    lines = [
        f"{suspect.name}: doubt {suspect.doubt:.3f}, drawn as {suspect.drawn} and answered as {suspect.answered} on "
        f"{suspect.share:.1%} of the pixels"
        for suspect in found
    ]
    emit(
        {"split": split, "suspects": [suspect.as_tree() for suspect in found]},
        "\n".join(lines) or f"the model agrees with every mask of {split}",
        as_json=as_json,
    )


def _channels(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal() or not 1 <= int(text) <= MAX_CHANNELS:
        raise typer.BadParameter(f"--channels {text!r} is neither auto nor a number from 1 to {MAX_CHANNELS}")
    return int(text)
