"""`compress quantize`"""

from pathlib import Path
from typing import Annotated

import typer

from compress.cli.common import (
    DataOption,
    JsonOption,
    MaxDropOption,
    MinIouOption,
    Missed,
    OutOption,
    RecipeOption,
    SetOption,
    emit,
    floors,
    recipe_of,
)
from export.bundle import MODEL
from export.errors import require


def command(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="Checkpoint folder.")],
    data: DataOption,
    out: OutOption,
    mode: Annotated[str | None, typer.Option("--mode", help="ptq: post-training quantization.")] = None,
    max_drop: MaxDropOption = None,
    min_iou: MinIouOption = None,
    target: Annotated[
        str | None, typer.Option("--for", help="Machine that will serve: auto (this one), vnni, avx2, arm.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Keep INT8 that is not faster than its float parent.")] = False,
    recipe: RecipeOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Quantize a checkpoint to INT8; writes a proven bundle. Status 1 when the accuracy budget is missed."""
    require("torch", extra="train", purpose="compress quantize")
    from compress.quantize import quantize
    from compress.steps import read_record

    chosen = recipe_of(
        recipe,
        settings,
        quantize__mode=mode,
        quantize__max_drop=max_drop,
        quantize__min_iou=floors(min_iou),
        quantize__target=target,
        quantize__force=force or None,
    )
    with Missed() as missed:
        quantize(checkpoint, data, out, chosen)
    result = (read_record(out) or {})["result"]
    size_bytes = (out / MODEL).stat().st_size
    emit(
        {**result, "size_bytes": size_bytes},
        f"{out}: {result['speedup']:.2f}x faster than its float parent, mIoU {result['miou_parent']:.4f} -> "
        f"{result['miou']:.4f} on the validation split, {size_bytes / 1e6:.2f} MB",
        as_json=as_json,
    )
    missed.reraise()
