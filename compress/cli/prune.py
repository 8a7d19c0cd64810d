"""`compress prune`"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

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
    typed,
)
from compress.recipe import Recipe
from export.errors import UsageError, require

GOALS = {
    "speedup": "--speedup",
    "latency_ms": "--latency-ms",
    "ratio": "--ratio",
    "levels": "--levels",
    "sparsity": "--unstructured",
}
"""Settings of `prune` by the options that stand for them."""


def command(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="Checkpoint folder.")],
    data: DataOption,
    out: OutOption,
    speedup: Annotated[
        float | None, typer.Option("--speedup", help="Speed-up to reach, measured through ONNX Runtime with all cores.")
    ] = None,
    latency_ms: Annotated[
        float | None, typer.Option("--latency-ms", help="The same goal in milliseconds per image, with all cores.")
    ] = None,
    ratio: Annotated[
        float | None,
        typer.Option("--ratio", help="Share of the channels to remove, 0 to 1; widths stay multiples of 16."),
    ] = None,
    levels: Annotated[
        int | None, typer.Option("--levels", help="Depth to keep of a UNet++ with deep supervision.")
    ] = None,
    unstructured: Annotated[
        float | None,
        typer.Option("--unstructured", help="Share of the single weights to set to zero; saves bytes, not time."),
    ] = None,
    max_drop: MaxDropOption = None,
    min_iou: MinIouOption = None,
    latency_table: Annotated[
        Path | None,
        typer.Option(
            "--latency-table",
            metavar="FILE",
            help="Layer times of the machine that will serve, from `compress bench table`, with the threads that it "
            "was measured with.",
        ),
    ] = None,
    analyze: Annotated[
        bool,
        typer.Option(
            "--analyze", help="Report how much mIoU it costs to cut each group of layers; no network is kept."
        ),
    ] = False,
    recipe: RecipeOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cut channels until the network is fast enough, then fine-tune it with its parent as teacher.

    With only --max-drop or --min-iou, the network is made as fast as they allow. The exit status is 1 if the speed-up
    is out of reach, or if more is lost than they allow.

    With --levels, keep the smaller network inside a UNet++ as it is. With --unstructured, set single weights to zero.
    With --analyze, cut each group of layers alone and write a table and a picture of what that costs.
    """
    require("torch", extra="train", purpose="compress prune")
    values = dict(zip(GOALS, (speedup, latency_ms, ratio, levels, unstructured), strict=True))
    given = {f"prune__{name}": value for name, value in values.items() if value is not None}
    if len(given) > 1:
        both = " and ".join(option for name, option in GOALS.items() if values[name] is not None)
        raise UsageError(f"{both} exclude each other; give one")
    judged = (max_drop, min_iou, latency_table)
    if analyze and (given or any(option is not None for option in judged)):
        without = (*GOALS.values(), "--max-drop", "--min-iou", "--latency-table")
        raise UsageError(f"--analyze keeps no pruned network; leave out {', '.join(without)}")
    # The goal on the line takes the place of the one in the recipe.
    cleared = [f"prune.{name}=none" for name in GOALS] if given else []
    chosen = recipe_of(
        recipe,
        [*(settings or []), *cleared],
        **given,
        prune__max_drop=max_drop,
        prune__min_iou=floors(min_iou),
        prune__latency_table=None if latency_table is None else str(latency_table),
    )
    if analyze:
        _analyze(checkpoint, data, out, chosen, as_json=as_json)
    else:
        _prune(checkpoint, data, out, chosen, as_json=as_json)


def _prune(checkpoint: Path, data: Path, out: Path, recipe: Recipe, *, as_json: bool) -> None:
    from compress.prune import prune
    from compress.steps import result_of

    with Missed() as missed:
        prune(checkpoint, data, out, recipe)
    result = result_of(out)
    emit(
        result,
        f"{out}: {result['speedup']:.2f}x faster in {recipe.prune.precision.upper()}{_where(result)}, mIoU "
        f"{result['miou_parent']:.4f} -> {result['miou']:.4f} on the validation split, {_what_went(result)}",
        as_json=as_json,
    )
    missed.reraise()


def _where(result: Mapping[str, Any]) -> str:
    words = ""
    if "milliseconds" in result:
        words = ", {:.3g} ms at {}x{}".format(result["milliseconds"], *result["latency_size"])
    if "speedup_here" in result:
        words += f" by the latency table ({result['speedup_here']:.2f}x here)"
    return words


def _what_went(result: Mapping[str, Any]) -> str:
    if "levels" in result:
        return f"cut to depth {result['levels']}"
    if "sparsity" in result:
        return (
            f"{result['sparsity']:.0%} of the weights zero, {result['gzip_bytes'] / 1e6:.3g} MB of "
            f"{result['gzip_bytes_parent'] / 1e6:.3g} by gzip"
        )
    return f"{result['channels_removed']:.0%} of the channels removed"


def _analyze(checkpoint: Path, data: Path, out: Path, recipe: Recipe, *, as_json: bool) -> None:
    from benchmarks.report.pruning.table import sensitivity
    from benchmarks.report.pruning.write import MARKDOWN, write
    from benchmarks.report.table import for_terminal
    from compress.progress import show_table
    from compress.prune import analyze

    analysis = analyze(checkpoint, data, out, recipe, write=partial(write, command=typed()))
    if not as_json:
        show_table(for_terminal(sensitivity(analysis)))
    emit(analysis.model_dump(mode="json"), f"analysis: {out / MARKDOWN}", as_json=as_json)
