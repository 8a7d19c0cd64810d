"""`compress quantize`: a checkpoint becomes an INT8 bundle that keeps its accuracy budget and gains time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from compress.budget import Accuracy, Budget, require_kept
from compress.bundling import Proof, golden_images, model_name, whole, write_bundle
from compress.data.folder import Dataset
from compress.progress import say
from compress.quantize.choice import choose
from compress.quantize.judge import model_of
from compress.quantize.proof import as_shipped, proven, require_gain, timed
from compress.quantize.qat import require_trainable
from compress.quantize.source import Source
from compress.quantize.targets import scheme_of
from compress.quantize.workbench import (
    TIMED,
    Workbench,
    inputs,
    made_on,
    opened,
    up_to_date,
)
from compress.recipe import Recipe
from compress.steps import StepFolder, StepPlan, require_apart, running
from compress.train import own
from compress.train.images import window_settings
from export import bundle
from export.bundle import Bundle
from export.machine import instruction_set
from export.runtime import OnnxModel


def quantize(parent: Path, data: Path, out: Path, recipe: Recipe | None = None) -> Bundle:
    """Quantize the checkpoint `parent` with images of `data` and write an INT8 bundle to `out`.

    `parent` may also be the file of a float ONNX model from elsewhere; `quantize.onnx` says what its graph does not.

    mIoU and latency are measured through ONNX Runtime, against the same network in float. On the validation split
    the drop must stay within `quantize.max_drop` and each class of `quantize.min_iou` above its floor; for that layers
    stay in float, those first that win most for their time. The INT8 graph must be the faster one. With
    `quantize.mode` = qat the graph is trained; the calibrated one ships instead if it keeps more.

    Raises CheckpointError, ModelError, DatasetError, BusyError, UsageError; BudgetMissedError when the budget cannot be
    held (the bundle is kept); WorkFailedError when INT8 is not faster on this machine and `quantize.force` is off;
    ParityError when the optimised graph does not give the answers of the graph as written.
    """
    recipe = recipe or Recipe()
    require_apart(out, parent)
    source, dataset = opened(parent, data, recipe)
    budget = Budget.of(recipe.quantize)
    settings = {
        # A step that was refused for want of gain continues with force; `_stands` tells when a bundle is made anew.
        "quantize": recipe.quantize.model_dump(mode="json") | {"force": False},
        "export": recipe.export.model_dump(mode="json"),
        "name": model_name(recipe.export, out),
        **made_on(recipe.quantize.target),
    }
    if recipe.quantize.mode == "qat":
        settings["data"] = window_settings(recipe)
        settings["train"] = recipe.train.model_dump(mode="json", include={"augment", "device", "precision"})
    learned = recipe.quantize.mode == "qat"
    parts = own.sources(recipe.quantize.finetune, recipe.train.augment) if learned else {}
    plan = StepPlan("quantize", {**inputs(source, dataset), **parts}, settings)
    record = up_to_date(out, plan, recipe.quantize.target)
    if record is not None and whole(out) is None:
        record = None
    if record is not None and not _stands(record["result"], budget, force=recipe.quantize.force):
        record = None
    if record is not None:
        say(f"{out} is up to date")
    else:
        with running(out, plan) as step:
            record = {"result": _quantize(step, plan, source, dataset, recipe)}
    require_kept(budget, Accuracy.from_result(record["result"]), out)
    return bundle.load(out)


def _stands(result: Mapping[str, Any], budget: Budget, *, force: bool) -> bool:
    """Whether a bundle that may have been made with the other choice of `force` is what this choice would make.

    Without it, the bundle has to gain. With it, layers that cost all that INT8 gains may stay in float, too, for a
    budget that was missed without them.
    """
    if force:
        return bool(result.get("forced")) or not budget.missed(Accuracy.from_result(result))
    return not (result.get(TIMED) and result["speedup"] <= 1)


def _quantize(step: StepFolder, plan: StepPlan, source: Source, dataset: Dataset, recipe: Recipe) -> dict[str, Any]:
    bench = Workbench(step, source, dataset, recipe)
    judge, settings = bench.judge, recipe.quantize
    must_gain = bench.is_here and not settings.force
    _look_ahead(bench, must_gain=must_gain)
    made = choose(bench)
    graph = bench.shipped(made.quantized.graph)
    onnx.save(graph, str(step.path / bundle.MODEL))
    child = OnnxModel(step.path / bundle.MODEL)
    score = as_shipped(judge.score(child), made.score)
    latency = require_gain(step, judge, child) if must_gain else timed(step, judge, child)
    parity = proven(bench, graph, child, score, latency)
    assert latency.milliseconds_parent is not None
    result = {
        "speedup": latency.milliseconds_parent / latency.milliseconds,
        **Accuracy.of(judge.parent_score, score).as_result(),
        **made.figures,
        "calibration_images": min(settings.calibration_images, len(dataset.train)),
        "target": settings.target,
        TIMED: bench.is_here,
        "forced": settings.force,
        "seven_bit_weights": made.quantized.seven_bit_weights,
        "float_layers": [layer.model_dump() for layer in made.quantized.float_layers],
    }
    golden = golden_images(dataset, source.card, recipe.export)
    write_bundle(
        step,
        plan,
        source.card,
        Proof(parity, golden, score, "val", judge.parent_score.miou, latency),
        name=str(plan.settings["name"]),
        precision="int8",
        result=result,
        params=source.params(),
        macs=source.macs((latency.height, latency.width)),
        target=settings.target,
        half_floats=settings.half_floats and not scheme_of(settings.target).by_cpu_provider,
        float_layers=made.quantized.float_layers,
    )
    return result


def _look_ahead(bench: Workbench, *, must_gain: bool) -> None:
    """Say, or raise, what can be known before anything that takes long."""
    judge, source, settings = bench.judge, bench.source, bench.recipe.quantize
    if judge.budget.min_iou:
        judge.budget.look_at_floors(judge.parent_score.iou_per_class)
    if source.checkpoint is None:
        source.look_at_score(judge.parent_score)
    if not bench.is_here:
        say(
            f"made for {settings.target}, and this machine ({instruction_set()}) is not what will serve: no form of a "
            "layer is chosen by timing, and INT8 need not be faster here"
        )
    # Neither operators nor time depend on ranges, so any calibration shows what they forbid.
    quick = bench.quantizer.quantized("minmax") if must_gain or settings.mode == "qat" else None
    if quick and settings.mode == "qat":
        require_trainable(quick.graph, quick.parent)
    if quick and must_gain:
        require_gain(bench.step.scratch("quick"), judge, model_of(bench.shipped(quick.graph)))
