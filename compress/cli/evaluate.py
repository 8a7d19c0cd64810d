"""`compress evaluate`"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from compress.cli.common import DataOption, JsonOption, ThreadsOption, emit

PER_CLASS = ("iou", "dice", "precision", "recall")


def command(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Checkpoint (through torch) or bundle (ONNX Runtime).")
    ],
    data: DataOption,
    split: Annotated[Literal["train", "val", "test"], typer.Option("--split", help="Split to score.")] = "test",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a checkpoint or a bundle: mIoU over the whole split, void ignored, at the size of the masks."""
    from compress.anymodel import evaluate

    score = evaluate(model, data, split=split, threads=threads)
    low, high = score.interval()
    figures = score.metrics.as_tree()
    result = {**figures, "miou_interval": [low, high], "split": split, "images": len(score.images)}
    text = (
        f"mIoU {score.miou:.4f} (95 % interval {low:.4f} to {high:.4f}), pixel accuracy {figures['accuracy']:.4f}, "
        f"{len(score.images)} images of {split}"
    )
    emit(result, text, as_json=as_json)
    if not as_json:
        _show_classes(figures)


def _show_classes(figures: Mapping[str, Any]) -> None:
    """A line for each class, the means below."""
    from rich.box import SIMPLE
    from rich.markup import escape
    from rich.table import Table

    from compress.progress import show_table

    table = Table(box=SIMPLE, show_edge=False, pad_edge=False, show_footer=True)
    table.add_column("class", "mean", overflow="fold")
    for header, mean in (("IoU", "miou"), ("Dice (F1)", "f1"), ("precision", "precision"), ("recall", "recall")):
        table.add_column(header, f"{figures[mean]:.4f}", justify="right", no_wrap=True)
    for name, iou in figures["iou_per_class"].items():
        if iou is None:
            table.add_row(escape(f"{name} (does not occur)"))
        else:
            table.add_row(escape(name), *(f"{figures[f'{figure}_per_class'][name]:.4f}" for figure in PER_CLASS))
    show_table(table)
