"""`compress prune`: a checkpoint becomes a smaller, faster checkpoint."""

from pathlib import Path

from compress import checkpoint
from compress.checkpoint import Checkpoint
from compress.data.check import require_sound
from compress.data.match import require_classes
from compress.progress import say
from compress.prune.channels import cut_channels
from compress.prune.levels import cut_levels
from compress.prune.step import PruneStep
from compress.recipe import PruneSettings, Recipe
from compress.steps import StepPlan, finished, require_apart, running
from export.errors import BudgetMissedError, UsageError


def prune(parent: Path, data: Path, out: Path, recipe: Recipe | None = None) -> Checkpoint:
    """Make the checkpoint `parent` smaller until the recipe's goal is met, and let it recover.

    The goal is `prune.ratio` (share of the channels) or `prune.speedup` (measured through ONNX Runtime, FP32,
    against `parent`); the parent then teaches while the pruned network is fine-tuned on `data`. Or it is
    `prune.levels`: the depth that is kept of a UNet++, which has learned to stand alone.

    Raises CheckpointError, DatasetError, BusyError, UsageError; BudgetMissedError when the speed-up is out of
    reach (the narrowest network is kept in `out`).
    """
    recipe = recipe or Recipe()
    if not recipe.prune.goals:
        raise UsageError("nothing says how much to prune; give --speedup 4 or --ratio 0.5")
    source = checkpoint.load(parent)
    require_apart(out, parent)
    dataset = require_sound(data, source.card.channels)
    require_classes(dataset, source.card.classes, parent)
    plan = StepPlan(
        "prune",
        {"data": dataset.fingerprint, "parent": source.weights_sha256, "card": source.card_sha256},
        {
            "prune": recipe.prune.model_dump(mode="json"),
            "crop": recipe.data.crop,
            "augment": recipe.train.augment.model_dump(mode="json"),
            "precision": recipe.train.precision,
            "device": recipe.train.device,
        },
    )
    record = finished(out, plan)
    if record is not None:
        say(f"{out} is up to date")
    else:
        cut = cut_channels if recipe.prune.levels is None else cut_levels
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"size": source.card.size})})
        with running(out, plan) as folder:
            record = {"result": cut(PruneStep(folder, plan, source, dataset, recipe))}
    _require_speedup(recipe.prune, record["result"]["speedup"], out)
    return checkpoint.load(out)


def _require_speedup(settings: PruneSettings, speedup: float, out: Path) -> None:
    if settings.speedup is not None and speedup < settings.speedup:
        raise BudgetMissedError(
            f"a speed-up of {settings.speedup:g} is out of reach: the fastest network found, widths at least "
            f"{settings.channel_multiple}, is {speedup:.2f}x faster and is kept in {out}; ask for less, or train a "
            "model with wider layers to prune from"
        )
