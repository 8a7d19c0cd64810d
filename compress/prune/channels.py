"""Channels go until the recipe's goal is met, and the parent teaches what is left."""

from functools import partial
from typing import Any

from torch import nn

from compress import checkpoint
from compress.models.plan import PruningPlan
from compress.progress import Task, say, task
from compress.prune.decide import HALVINGS, Scores, for_speedup
from compress.prune.probe import LatencyProbe
from compress.prune.step import PruneStep
from compress.train.batchnorm import reestimate
from compress.train.loop import Fit
from compress.train.objective import Teacher
from compress.train.precision import pick_device
from compress.train.runtime import Runtime
from compress.train.train import decoded, precision_of
from compress.train.validation import validate
from export.errors import BundleError, ShapeError
from export.files import write_json

PLAN = "pruning_plan.json"
DECISION = "decision.json"
VERIFICATIONS = 3


def cut_channels(step: PruneStep) -> dict[str, Any]:
    """Decide which channels go, cut them, fine-tune. Gives the step's result."""
    recipe, card = step.recipe, step.parent.card
    network = step.parent.network()
    device = pick_device(recipe.train.device)
    choice = precision_of(step.folder, recipe, device)
    images, validation = decoded(step.dataset, recipe, card.size_multiple, device)
    cut, measured = _decision(step, network)
    pruned = cut.apply(network, channels=card.channels).to(device)
    reestimate(pruned, images)
    settings = recipe.prune.finetune
    parent_miou = validate(network.to(device), validation, device).miou
    before = validate(pruned, validation, device).miou
    say(f"mIoU on validation: parent {parent_miou:.4f}, cut and not yet fine-tuned {before:.4f}")
    fitted = Fit(
        pruned,
        step.card(pruning=(*card.pruning, cut)),
        images,
        validation,
        settings,
        recipe.train.augment,
        Runtime(device, choice.precision),
        step.folder.path,
        Teacher(checkpoint.frozen_copy(network), settings.teacher_weight, settings.temperature),
    ).run("recover")
    pruned.cpu().load_state_dict(fitted.weights)
    write_json(step.folder.path / "history.json", fitted.history)
    result = {
        **measured,
        "miou_parent": parent_miou,
        "miou_before_finetune": before,
        **fitted.figures(),
        "widths": {layer: list(pair) for layer, pair in cut.widths().items()},
    }
    return step.keep(pruned, result, pruning=(*card.pruning, cut))


def _decision(step: PruneStep, network: nn.Module) -> tuple[PruningPlan, dict[str, Any]]:
    """The plan and what it measured. It rests on timing, so it is taken once, saved, and then acted on."""
    folder = step.folder
    measured = folder.decided(DECISION)
    if measured is None:
        cut, measured = _decide(step, network)
        write_json(folder.path / PLAN, cut.model_dump(mode="json"))
        write_json(folder.path / DECISION, measured)
    cut = PruningPlan.model_validate_json((folder.path / PLAN).read_text())
    say(f"cut: {measured['channels_removed']:.0%} of the channels, {measured['speedup']:.2f}x faster than its parent")
    return cut, measured


def _decide(step: PruneStep, network: nn.Module) -> tuple[PruningPlan, dict[str, Any]]:
    channels, settings = step.parent.card.channels, step.recipe.prune
    scores = Scores.magnitude(network, channels=channels)
    probe = step.probe(network)
    if settings.ratio is not None:
        cut = scores.plan(settings.ratio, settings.channel_multiple)
        speedup = probe.measure(step.graph(cut.apply(network, channels=channels)))
    else:
        cut, speedup = _fast_enough(step, network, scores, probe)
    total = sum(before for before, _ in cut.widths().values())
    kept = sum(after for _, after in cut.widths().values())
    return cut, {"speedup": speedup, "latency_size": list(probe.size), "channels_removed": 1 - kept / total}


def _fast_enough(step: PruneStep, network: nn.Module, scores: Scores, probe: LatencyProbe) -> tuple[PruningPlan, float]:
    """Decide by the probe, verify on the exported graph, and ask the probe for more when that falls short."""
    channels, settings = step.parent.card.channels, step.recipe.prune
    assert settings.speedup is not None

    def guess(plan: PruningPlan, bar: Task) -> float:
        pruned = plan.apply(network, channels=channels)
        try:
            speedup = probe.speedup(pruned)
        except (BundleError, ShapeError):
            # The exporter wrote a width into a constant of the graph; it knows where, and takes its seconds.
            speedup = probe.measure(step.graph(pruned))
        bar.advance(1, speedup=speedup)
        return speedup

    asked = settings.speedup
    found: list[tuple[PruningPlan, float]] = []
    for _ in range(VERIFICATIONS):
        with task("search widths", HALVINGS + 1) as bar:
            cut = for_speedup(scores, settings.channel_multiple, asked, partial(guess, bar=bar))
        speedup = probe.measure(step.graph(cut.apply(network, channels=channels)))
        found.append((cut, speedup))
        if speedup >= settings.speedup or cut == scores.plan(1.0, settings.channel_multiple):
            break
        asked *= 1.02 * settings.speedup / speedup
    return max(found, key=lambda pair: pair[1])
