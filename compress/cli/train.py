"""`compress train`"""

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
    require_no_run,
    typed,
)
from compress.recipe import Recipe
from export.errors import UsageError, require


def command(
    data: DataOption,
    out: OutOption,
    recipe: RecipeOption = None,
    settings: SetOption = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="unet, unetpp, encoder-unet, or your own as path/to/file.py:factory or package.module:factory. "
            "Same as --set model.factory=NAME.",
        ),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option("--init", help="Checkpoint folder, or state dict (.safetensors, .pt), to start from."),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option("--teacher", metavar="CKPT", help="Checkpoint of a teacher, whose logits to follow as well."),
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Same as --set train.epochs=N.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Same as --set train.seed=N.")] = None,
    find_lr: Annotated[
        bool,
        typer.Option("--find-lr", help="Try learning rates for up to 100 steps and suggest one; no network is kept."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a network with mixed precision on a dataset folder, and write a checkpoint.

    If it is killed or interrupted, the same command continues and ends with the same weights.

    With --find-lr, write only a table and a picture of the loss at rising learning rates to --out.
    """
    require("torch", extra="train", purpose="compress train")
    chosen = recipe_of(recipe, settings, model__factory=model, train__epochs=epochs, train__seed=seed)
    if find_lr:
        if teacher is not None:
            raise UsageError("--find-lr measures only the loss against the masks; leave out --teacher")
        _find_rate(data, out, chosen, init, as_json=as_json)
    else:
        _train(data, out, chosen, init, teacher, as_json=as_json)


def _train(data: Path, out: Path, recipe: Recipe, init: Path | None, teacher: Path | None, *, as_json: bool) -> None:
    from compress.steps import result_of
    from compress.train import train

    train(data, out, recipe, init=init, teacher=teacher)
    result = result_of(out)
    kept = "average of the last epochs" if result.get("averaged") else f"epoch {result['best_epoch']}"
    emit(result, f"{out}: mIoU {result['miou']:.4f} on the validation split, {kept}", as_json=as_json)


def _find_rate(data: Path, out: Path, recipe: Recipe, init: Path | None, *, as_json: bool) -> None:
    from benchmarks.report.rates import as_tree, losses, verdict, write
    from benchmarks.report.table import for_terminal
    from compress.progress import show_table
    from compress.train.find_rate import find_rate

    require_no_run(out)
    test = find_rate(data, recipe, init=init)
    path = write(test, out, command=typed())
    if not as_json:
        show_table(for_terminal(losses(test)))
    emit(as_tree(test), f"{verdict(test)} ({path})", as_json=as_json)
