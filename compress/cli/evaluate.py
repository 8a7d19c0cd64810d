"""`compress evaluate`"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from compress.cli.common import DataOption, JsonOption, ThreadsOption, emit


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
    result = {
        "miou": score.miou,
        "miou_interval": [low, high],
        "iou_per_class": score.iou_per_class,
        "split": split,
        "images": len(score.images),
    }
    width = max(map(len, score.classes))
    lines = [f"mIoU {score.miou:.4f} (95 % interval {low:.4f} to {high:.4f}), {len(score.images)} images of {split}"]
    lines += [
        f"  {name:<{width}}  {'does not occur' if iou is None else f'{iou:.4f}'}"
        for name, iou in score.iou_per_class.items()
    ]
    emit(result, "\n".join(lines), as_json=as_json)
