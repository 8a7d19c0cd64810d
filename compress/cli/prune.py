"""`compress prune`"""

from pathlib import Path
from typing import Annotated

import typer

from compress.cli.common import DataOption, JsonOption, Missed, OutOption, RecipeOption, SetOption, emit, recipe_of
from export.errors import UsageError, require


def command(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="Checkpoint folder.")],
    data: DataOption,
    out: OutOption,
    speedup: Annotated[
        float | None, typer.Option("--speedup", help="Wanted latency gain, measured through ONNX Runtime in FP32.")
    ] = None,
    ratio: Annotated[float | None, typer.Option("--ratio", help="Share of the channels that go, 0 to 1.")] = None,
    recipe: RecipeOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cut channels until the network is fast enough, then fine-tune it with its parent as teacher."""
    require("torch", extra="train", purpose="compress prune")
    from compress.prune import prune
    from compress.steps import read_record

    if speedup is not None and ratio is not None:
        raise UsageError("--speedup and --ratio exclude each other; give one")
    # One goal on the line takes the place of the other in the recipe.
    cleared = ["prune.speedup=none"] * (ratio is not None) + ["prune.ratio=none"] * (speedup is not None)
    chosen = recipe_of(recipe, [*(settings or []), *cleared], prune__speedup=speedup, prune__ratio=ratio)
    with Missed() as missed:
        prune(checkpoint, data, out, chosen)
    result = (read_record(out) or {})["result"]
    emit(
        result,
        f"{out}: {result['speedup']:.2f}x faster in FP32, mIoU {result['miou_parent']:.4f} -> {result['miou']:.4f} "
        f"on the validation split, {result['channels_removed']:.0%} of the channels removed",
        as_json=as_json,
    )
    missed.reraise()
