"""`compress prune`: a checkpoint becomes a smaller, faster checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress import checkpoint
from compress.budget import Accuracy, Budget, require_kept
from compress.checkpoint import Checkpoint
from compress.progress import say
from compress.prune.channels import cut_channels
from compress.prune.levels import cut_levels
from compress.prune.probe import QUIET
from compress.prune.step import PruneStep, inputs, opened
from compress.prune.weights import cut_weights
from compress.recipe import Recipe
from compress.settings.prune import PruneSettings
from compress.steps import StepPlan, finished, running
from compress.train import own
from compress.train.freeze import require_encoder
from compress.train.images import window_settings
from compress.train.room import require_room
from compress.train.usable import require_usable
from export.errors import UsageError
from export.files import sha256_file
from export.latency.table import LatencyTable


def prune(parent: Path, data: Path, out: Path, recipe: Recipe | None = None) -> Checkpoint:
    """Make the checkpoint `parent` smaller until the recipe's goal is met, and let it recover.

    The goal is `prune.speedup` (measured through ONNX Runtime against `parent`), `prune.latency_ms`, `prune.ratio`
    (share of the channels) or `prune.sparsity` (share of the single weights; the network is no faster). The parent then
    teaches while the pruned network is fine-tuned on `data`. With `prune.levels`, the goal is the depth to keep of a
    UNet++, which has learned to stand alone. `prune.max_drop` and `prune.min_iou` are the budget; without a goal, the
    network becomes as fast as they allow.

    Raises CheckpointError, DatasetError, RecipeError, BusyError, UsageError; BudgetMissedError when the goal is out of
    reach or the budget is missed (the best network that was found is kept in `out`).
    """
    recipe = recipe or Recipe()
    settings = recipe.prune
    budget = Budget.of(settings)
    if not settings.says_how_much:
        raise UsageError("nothing says how much to prune; give --speedup 4, --ratio 0.5 or --max-drop 0.01")
    source, dataset = opened(parent, data, out)
    budget.require_classes(source.card.classes)
    table = settings.latency_table
    if table is not None:
        LatencyTable.load(table)
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"size": source.card.size})})
    if settings.levels is None:  # with it, nothing is fine-tuned
        require_usable(settings.finetune, source.card.classes)
        require_encoder(source.network(), settings.finetune)
        require_room(recipe.data, settings.finetune, dataset, source.card.size_multiple)
    plan = StepPlan(
        "prune",
        {
            **inputs(source, dataset),
            **own.sources(settings.finetune, recipe.train.augment),
            **({} if table is None else {"latency_table": sha256_file(table)}),
        },
        {
            "prune": settings.model_dump(mode="json", exclude={"analysis_images", "latency_table"}),
            "data": window_settings(recipe),
            "augment": recipe.train.augment.model_dump(mode="json"),
            "precision": recipe.train.precision,
            "device": recipe.train.device,
            **({"target": recipe.quantize.target} if settings.precision == "int8" else {}),
        },
    )
    record = finished(out, plan)
    if record is not None:
        say(f"{out} is up to date")
    else:
        with running(out, plan) as folder:
            record = {"result": _cut(PruneStep(folder, plan, source, dataset, recipe))}
    result = record["result"]
    _look_at_milliseconds(settings, result)
    require_kept(budget, Accuracy.from_result(result), out, gain_missed=_out_of_reach(settings, result))
    return checkpoint.load(out)


def _cut(step: PruneStep) -> dict[str, Any]:
    settings = step.recipe.prune
    if settings.levels is not None:
        return cut_levels(step)
    return cut_channels(step) if settings.sparsity is None else cut_weights(step)


def _out_of_reach(settings: PruneSettings, result: Mapping[str, Any]) -> str | None:
    """What to say of a speed-up that was not reached; None if it was."""
    asked, found = result.get("speedup_asked"), result["speedup"]
    if asked is None or found >= asked:
        return None
    wanted = f"a speed-up of {asked:.3g}"
    if settings.latency_ms is not None:
        wanted = f"{settings.latency_ms:g} ms, which is {wanted},"
    disturbed = 0.0 if "speedup_here" in result else result.get("disturbed", 0.0)
    if disturbed > QUIET:
        return (
            f"{wanted} seems out of reach: the fastest network found is {found:.2f}x faster, but other work kept this "
            f"machine busy (the median run took {disturbed:.0%} longer than the fastest), which slows small networks "
            "down most; remove the result and prune again while the machine is quiet"
        )
    return (
        f"{wanted} is out of reach: the fastest network found, widths at least {settings.channel_multiple}, is "
        f"{found:.2f}x faster; ask for less, or train a model with wider layers to prune from"
    )


def _look_at_milliseconds(settings: PruneSettings, result: Mapping[str, Any]) -> None:
    """Warn when a goal in milliseconds is met only as a ratio, because the machine is slower than at the conversion."""
    goal = settings.latency_ms
    if goal is None or "speedup_here" in result or result["speedup"] < result["speedup_asked"]:
        return
    if result["milliseconds"] > (1 + QUIET) * goal:
        say(
            f"warning: {result['milliseconds']:.3g} ms were measured where {goal:g} are asked for: this machine is "
            f"slower than when the parent took {goal * result['speedup_asked']:.3g} ms, and only the speed-up that the "
            "goal meant then is met; repeat with compress bench latency once it is quiet"
        )
