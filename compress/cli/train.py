"""`compress train`"""

from pathlib import Path
from typing import Annotated

import typer

from compress.cli.common import DataOption, JsonOption, OutOption, RecipeOption, SetOption, emit, recipe_of
from export.errors import require


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
        Path | None, typer.Option("--teacher", metavar="CKPT", help="Checkpoint whose logits are followed, too.")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Same as --set train.epochs=N.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Same as --set train.seed=N.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a network with mixed precision on a dataset folder; writes a checkpoint.

    Killed or interrupted, the same command continues and ends with the same weights.
    """
    require("torch", extra="train", purpose="compress train")
    from compress.steps import read_record
    from compress.train import train

    chosen = recipe_of(recipe, settings, model__factory=model, train__epochs=epochs, train__seed=seed)
    train(data, out, chosen, init=init, teacher=teacher)
    result = (read_record(out) or {})["result"]
    emit(
        result,
        f"{out}: mIoU {result['miou']:.4f} on the validation split, epoch {result['best_epoch']}",
        as_json=as_json,
    )
