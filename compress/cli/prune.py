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
    levels: Annotated[
        int | None, typer.Option("--levels", help="Depth that is kept of a UNet++ with deep supervision.")
    ] = None,
    recipe: RecipeOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cut channels until the network is fast enough, then fine-tune it with its parent as teacher.

    With --levels, keep the smaller network inside a UNet++ as it is.
    """
    require("torch", extra="train", purpose="compress prune")
    from compress.prune import prune
    from compress.steps import read_record

    goals = {"speedup": speedup, "ratio": ratio, "levels": levels}
    given = {f"prune__{name}": value for name, value in goals.items() if value is not None}
    if len(given) > 1:
        raise UsageError("--speedup, --ratio and --levels exclude each other; give one")
    # The goal on the line takes the place of the one in the recipe.
    cleared = [f"prune.{name}=none" for name in goals] if given else []
    chosen = recipe_of(recipe, [*(settings or []), *cleared], **given)
    with Missed() as missed:
        prune(checkpoint, data, out, chosen)
    result = (read_record(out) or {})["result"]
    kept = result.get("levels")
    cut = f"cut to depth {kept}" if kept else f"{result['channels_removed']:.0%} of the channels removed"
    emit(
        result,
        f"{out}: {result['speedup']:.2f}x faster in FP32, mIoU {result['miou_parent']:.4f} -> {result['miou']:.4f} "
        f"on the validation split, {cut}",
        as_json=as_json,
    )
    missed.reraise()
