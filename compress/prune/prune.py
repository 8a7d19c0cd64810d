"""`compress prune`: a checkpoint becomes a smaller, faster checkpoint."""

from pathlib import Path
from typing import Any

import onnx
from torch import nn

from compress import checkpoint
from compress.checkpoint import Checkpoint
from compress.data.augment import Augment
from compress.data.check import require_sound
from compress.data.loader import TrainingImages, ValidationImages
from compress.data.match import require_classes
from compress.models.plan import PruningPlan
from compress.progress import say
from compress.prune.decide import Scores, for_speedup
from compress.prune.probe import LatencyProbe
from compress.recipe import PruneSettings, Recipe
from compress.steps import StepFolder, StepPlan, finished, require_apart, running
from compress.train.batchnorm import reestimate
from compress.train.loop import Fit, Runtime, Teacher, validate
from compress.train.precision import pick_device
from compress.train.train import decoded, precision_of
from export.errors import BudgetMissedError, UsageError
from export.files import write_json
from export.to_onnx import export_onnx, with_outputs

PLAN = "pruning_plan.json"
DECISION = "decision.json"
VERIFICATIONS = 3


def prune(parent: Path, data: Path, out: Path, recipe: Recipe | None = None) -> Checkpoint:
    """Remove channels from the checkpoint `parent` until the recipe's goal is met, then let it recover.

    The goal is `prune.ratio` (share of the channels) or `prune.speedup` (measured through ONNX Runtime, FP32,
    against `parent`). The parent teaches while the pruned network is fine-tuned on `data`.

    Raises CheckpointError, DatasetError, BusyError, UsageError; BudgetMissedError when the speed-up is out of
    reach (the narrowest network is kept in `out`).
    """
    recipe = recipe or Recipe()
    if recipe.prune.ratio is None and recipe.prune.speedup is None:
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
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"size": source.card.size})})
        with running(out, plan) as step:
            images, validation = decoded(dataset, recipe, source.card.size_multiple)
            record = {"result": _prune(step, plan, source, images, validation, recipe)}
    _require_speedup(recipe.prune, record["result"]["speedup"], out)
    return checkpoint.load(out)


def _require_speedup(settings: PruneSettings, speedup: float, out: Path) -> None:
    if settings.speedup is not None and speedup < settings.speedup:
        raise BudgetMissedError(
            f"a speed-up of {settings.speedup:g} is out of reach: the fastest network found, widths at least "
            f"{settings.channel_multiple}, is {speedup:.2f}x faster and is kept in {out}; ask for less, or train a "
            "model with wider layers to prune from"
        )


def _prune(
    step: StepFolder,
    plan: StepPlan,
    source: Checkpoint,
    images: TrainingImages,
    validation: ValidationImages,
    recipe: Recipe,
) -> dict[str, Any]:
    network = source.network()
    device = pick_device(recipe.train.device)
    choice = precision_of(step, recipe, device)
    cut, measured = _decision(step, source, network, validation, recipe.prune)
    card = source.card.model_copy(
        update={
            "pruning": (*source.card.pruning, cut),
            "parents": dict(plan.inputs),
            "recipe": {**source.card.recipe, "prune": plan.settings["prune"]},
        }
    )
    pruned = cut.apply(network, channels=card.channels)
    reestimate(pruned, images)
    settings = recipe.prune.finetune
    parent_miou = validate(network.to(device), validation, device)
    before = validate(pruned.to(device), validation, device)
    say(f"mIoU on validation: parent {parent_miou:.4f}, cut and not yet fine-tuned {before:.4f}")
    fitted = Fit(
        pruned,
        images,
        validation,
        settings,
        Augment(recipe.train.augment),
        Runtime(device, choice.precision),
        step.path,
        Teacher(checkpoint.frozen_copy(network), settings.teacher_weight, settings.temperature),
    ).run("recover")
    pruned.cpu().load_state_dict(fitted.weights)
    checkpoint.save(step.path, pruned, card.model_copy(update={"miou_val": fitted.miou}))
    write_json(step.path / "history.json", fitted.history)
    result = {
        **measured,
        "miou_parent": parent_miou,
        "miou_before_finetune": before,
        "miou": fitted.miou,
        "best_epoch": fitted.best_epoch,
        "widths": {layer: list(pair) for layer, pair in cut.widths().items()},
    }
    step.record(plan, result)
    return result


def _decision(
    step: StepFolder, source: Checkpoint, network: nn.Module, validation: ValidationImages, settings: PruneSettings
) -> tuple[PruningPlan, dict[str, Any]]:
    """The plan and what it measured. It rests on timing, so it is taken once, saved, and then acted on."""
    measured = step.decided(DECISION)
    if measured is None:
        cut, measured = _decide(step, source, network, validation, settings)
        write_json(step.path / PLAN, cut.model_dump(mode="json"))
        write_json(step.path / DECISION, measured)
    cut = PruningPlan.model_validate_json((step.path / PLAN).read_text())
    say(f"cut: {measured['channels_removed']:.0%} of the channels, {measured['speedup']:.2f}x faster than its parent")
    return cut, measured


def _decide(
    step: StepFolder, source: Checkpoint, network: nn.Module, validation: ValidationImages, settings: PruneSettings
) -> tuple[PruningPlan, dict[str, Any]]:
    channels, multiple = source.card.channels, source.card.size_multiple
    height, width = settings.latency_size or validation.typical_size
    size = (-(-height // multiple) * multiple, -(-width // multiple) * multiple)
    scores = Scores.magnitude(network, channels=channels)
    probe = LatencyProbe(_graph(network, step, source), size=size, channels=channels)
    if settings.ratio is not None:
        cut = scores.plan(settings.ratio, settings.channel_multiple)
        speedup = probe.measure(_graph(cut.apply(network, channels=channels), step, source))
    else:
        cut, speedup = _fast_enough(step, source, network, scores, probe, settings)
    total = sum(before for before, _ in cut.widths().values())
    kept = sum(after for _, after in cut.widths().values())
    return cut, {"speedup": speedup, "latency_size": list(size), "channels_removed": 1 - kept / total}


def _fast_enough(
    step: StepFolder,
    source: Checkpoint,
    network: nn.Module,
    scores: Scores,
    probe: LatencyProbe,
    settings: PruneSettings,
) -> tuple[PruningPlan, float]:
    """Decide by the probe, verify on the exported graph, and ask the probe for more when that falls short."""
    assert settings.speedup is not None
    channels, asked = source.card.channels, settings.speedup
    found: list[tuple[PruningPlan, float]] = []
    for _ in range(VERIFICATIONS):
        cut = for_speedup(
            scores,
            settings.channel_multiple,
            asked,
            lambda plan: probe.speedup(plan.apply(network, channels=channels)),
        )
        speedup = probe.measure(_graph(cut.apply(network, channels=channels), step, source))
        found.append((cut, speedup))
        if speedup >= settings.speedup or cut == scores.plan(1.0, settings.channel_multiple):
            break
        asked *= 1.02 * settings.speedup / speedup
    return max(found, key=lambda pair: pair[1])


def _graph(network: nn.Module, step: StepFolder, source: Checkpoint) -> onnx.ModelProto:
    path = step.path / "probe.onnx"
    proto = export_onnx(network, path, channels=source.card.channels, size_multiple=source.card.size_multiple)
    path.unlink()
    return with_outputs(proto, "mask")
