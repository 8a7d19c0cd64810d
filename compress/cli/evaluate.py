"""`compress evaluate`"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from compress.cli.common import DataOption, JsonOption, MirrorOption, ThreadsOption, WindowOption, emit, parse_size

PER_CLASS = ("iou", "dice", "precision", "recall", "boundary_f1")
HEADERS = {
    "IoU": "miou",
    "Dice (F1)": "f1",
    "precision": "precision",
    "recall": "recall",
    "edges (F1)": "boundary_f1",
}
"""Of the same columns, and the mean below each."""


def command(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Checkpoint (run by torch) or bundle (by ONNX Runtime).")
    ],
    data: DataOption,
    split: Annotated[Literal["train", "val", "test"], typer.Option("--split", help="Split to score.")] = "test",
    threads: ThreadsOption = None,
    mirror: MirrorOption = False,
    window: WindowOption = None,
    auc: Annotated[
        bool, typer.Option("--auc", help="Also report ROC-AUC per class; a bundle must output logits (--outputs both).")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Score a checkpoint or a bundle: mIoU over the whole split, at the size of the masks, void ignored.

    The boundary F1 measures how well edges are found, within 0.75 % of the image's diagonal.
    """
    from compress.anymodel import evaluate
    from export.boundaries import BoundaryScore
    from export.ranking import RankingScore
    from export.refine import Refinement

    boundaries = BoundaryScore()
    ranking = RankingScore() if auc else None
    score = evaluate(
        model,
        data,
        split=split,
        threads=threads,
        refine=Refinement(mirror, parse_size(window)),
        on_answer=boundaries.update,
        ranking=ranking,
    )
    low, high = score.interval()
    figures = {
        **score.metrics.as_tree(),
        "boundary_f1": boundaries.f1(score.classes),
        "boundary_f1_per_class": boundaries.f1_per_class(score.classes),
    }
    if ranking is not None:
        figures |= {"auc": ranking.auc(score.classes), "auc_per_class": ranking.auc_per_class(score.classes)}
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

    ranked = {"ROC-AUC": "auc"} if "auc" in figures else {}
    per_class = (*PER_CLASS, *ranked.values())
    table = Table(box=SIMPLE, show_edge=False, pad_edge=False, show_footer=True)
    table.add_column("class", "mean", overflow="fold")
    for header, mean in {**HEADERS, **ranked}.items():
        table.add_column(header, _figure(figures[mean]), justify="right", no_wrap=True)
    for name, iou in figures["iou_per_class"].items():
        if iou is None:
            table.add_row(escape(f"{name} (does not occur)"))
        else:
            table.add_row(escape(name), *(_figure(figures[f"{figure}_per_class"][name]) for figure in per_class))
    show_table(table)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
