"""`compress quantize`: a checkpoint becomes an INT8 bundle that keeps its accuracy budget and gains time."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from compress.budget import Accuracy, Budget, require_kept
from compress.bundling import Proof, golden_images, model_name, parity_images, write_bundle
from compress.data.folder import Dataset
from compress.progress import say
from compress.quantize.effects import Effects
from compress.quantize.fallback import Fallback
from compress.quantize.judge import Judge, model_of
from compress.quantize.ptq import Quantized, with_quantized_logits
from compress.quantize.qat import learn
from compress.quantize.source import Source
from compress.quantize.workbench import Workbench, inputs, opened
from compress.recipe import Recipe
from compress.steps import StepFolder, StepPlan, finished, running
from compress.train import own
from export import bundle
from export.bundle import Bundle
from export.errors import WorkFailedError
from export.files import write_json
from export.machine import Machine
from export.manifest import Latency
from export.parity import batches, int8_parity, sizes_to_prove
from export.runtime import OnnxModel
from export.scoring import Score

LATENCY = "latency.json"
ROUNDS = 30


def quantize(parent: Path, data: Path, out: Path, recipe: Recipe | None = None) -> Bundle:
    """Quantize the checkpoint `parent` with images of `data` and write an INT8 bundle to `out`.

    `parent` may be the file of a float ONNX model from elsewhere, too; `quantize.onnx` says what that does not.

    mIoU and latency are measured through ONNX Runtime, against the same network in float: on the validation split
    the drop must stay within `quantize.max_drop` and each class of `quantize.min_iou` above its floor, for which as few
    layers as it takes stay in float; and the INT8 graph must be the faster one. With `quantize.mode` = qat the graph is
    trained, and leaves as it was calibrated if that scores higher.

    Raises CheckpointError, ModelError, DatasetError, BusyError, UsageError; BudgetMissedError when the budget cannot be
    held (the bundle is kept); WorkFailedError when INT8 is not faster on this machine and `quantize.force` is off;
    ParityError when the optimised graph does not give the answers of the graph as written.
    """
    recipe = recipe or Recipe()
    source, dataset = opened(parent, data, recipe)
    budget = Budget(recipe.quantize.max_drop, recipe.quantize.min_iou)
    budget.require_classes(source.card.classes)
    settings = {
        "quantize": recipe.quantize.model_dump(mode="json"),
        "export": recipe.export.model_dump(mode="json"),
        "name": model_name(recipe.export, out),
    }
    if recipe.quantize.mode == "qat":
        settings["data"] = recipe.data.model_dump(mode="json", include={"crop"})
        settings["train"] = recipe.train.model_dump(mode="json", include={"augment", "device", "precision"})
    learned = recipe.quantize.mode == "qat"
    parts = own.sources(recipe.quantize.finetune, recipe.train.augment) if learned else {}
    plan = StepPlan("quantize", {**inputs(source, dataset), **parts}, settings)
    record = finished(out, plan)
    if record is not None:
        say(f"{out} is up to date")
    else:
        with running(out, plan) as step:
            record = {"result": _quantize(step, plan, source, dataset, recipe, budget)}
    require_kept(budget, Accuracy.from_result(record["result"]), out)
    return bundle.load(out)


@dataclass(frozen=True)
class _Made:
    """An INT8 graph that may leave, and what it scored."""

    quantized: Quantized
    score: Score
    figures: dict[str, Any]
    """For the step's record: how it was made."""


def _quantize(
    step: StepFolder, plan: StepPlan, source: Source, dataset: Dataset, recipe: Recipe, budget: Budget
) -> dict[str, Any]:
    bench = Workbench(step, source, dataset, recipe)
    judge, settings = bench.judge, recipe.quantize
    if not settings.force:
        # Time does not depend on ranges, so this is known before anything that takes long.
        quick = model_of(bench.shipped(bench.quantizer.quantized("minmax").graph))
        _require_gain(step.scratch("quick"), judge, quick)
    made = _calibrated(bench)
    if settings.mode == "qat":
        made = _trained(bench, made)
    made = _within(budget, bench, made)
    graph = bench.shipped(made.quantized.graph)
    onnx.save(graph, str(step.path / bundle.MODEL))
    child = OnnxModel(step.path / bundle.MODEL)
    latency = _latency(step, judge, child) if settings.force else _require_gain(step, judge, child)
    images, whence = parity_images(dataset, source.card)
    as_written, logit_step = with_quantized_logits(graph)
    multiple = source.card.size_multiple
    parity = int8_parity(
        child,
        OnnxModel(as_written.SerializeToString(), optimised=False),
        batches(images, multiple, sizes_to_prove((latency.height, latency.width), multiple)),
        logit_step=logit_step,
        images=whence,
    )
    parity.require()
    before = judge.parent_score
    parity = parity.model_copy(update={"miou": {"float": before.miou, "int8": made.score.miou}})
    assert latency.milliseconds_parent is not None
    result = {
        "speedup": latency.milliseconds_parent / latency.milliseconds,
        **Accuracy.of(before, made.score).as_result(),
        **made.figures,
        "calibration_images": min(settings.calibration_images, len(dataset.train)),
        "seven_bit_weights": made.quantized.seven_bit_weights,
        "float_layers": [layer.model_dump() for layer in made.quantized.float_layers],
    }
    write_bundle(
        step,
        plan,
        source.card,
        Proof(parity, golden_images(dataset, source.card, recipe.export), made.score, "val", before.miou, latency),
        name=str(plan.settings["name"]),
        precision="int8",
        result=result,
        params=source.params(),
        macs=source.macs((latency.height, latency.width)),
        target=settings.target,
        float_layers=made.quantized.float_layers,
    )
    return result


def _calibrated(bench: Workbench) -> _Made:
    calibration = bench.calibration()
    quantized = bench.quantizer.quantized(calibration)
    score = bench.judge.score(model_of(quantized.graph))
    return _Made(quantized, score, {"mode": "ptq", "calibration": calibration, "calibrations": bench.tried()})


def _trained(bench: Workbench, calibrated: _Made) -> _Made:
    """What training made of it, if that is no worse."""
    quantized = calibrated.quantized
    assert bench.source.checkpoint is not None
    learned = learn(bench.step, bench.source.checkpoint, bench.dataset, bench.recipe, quantized.graph, quantized.parent)
    score = bench.judge.score(model_of(learned.graph))
    say(f"mIoU {calibrated.score.miou:.4f} calibrated, {score.miou:.4f} trained")
    figures = {**calibrated.figures, "miou_ptq": calibrated.score.miou, "miou_qat": score.miou, "qat": learned.figures}
    if score.miou < calibrated.score.miou:
        say("training did not help: the graph leaves as it was calibrated")
        return _Made(quantized, calibrated.score, figures)
    trained = Quantized(learned.graph, quantized.parent, quantized.float_layers, quantized.seven_bit_weights)
    return _Made(trained, score, {**figures, "mode": "qat"})


def _within(budget: Budget, bench: Workbench, made: _Made) -> _Made:
    """`made`, if it holds `budget`; else what does with some layers in float, if that is nearer to it."""
    judge = bench.judge
    if not budget.missed(Accuracy.of(judge.parent_score, made.score)):
        return made
    calibration = made.figures["calibration"]
    int8 = bench.quantizer.quantized(calibration)
    score = made.score if made.figures["mode"] == "ptq" else judge.score(model_of(int8.graph))
    effects = Effects(bench.step, judge, bench.quantizer, calibration, str(bench.source.path))
    analysis = effects.measure(int8, score, bench.noise_images())
    must_gain = not bench.recipe.quantize.force
    mixed = Fallback(bench.step, judge, bench.quantizer, budget, analysis, must_gain=must_gain).choose()
    other = _Made(mixed, judge.score(model_of(mixed.graph)), {**made.figures, "mode": "ptq"})
    return min((made, other), key=lambda one: _missing(budget, judge, one))


def _missing(budget: Budget, judge: Judge, made: _Made) -> tuple[float, float]:
    found = Accuracy.of(judge.parent_score, made.score)
    return budget.missing(found.drop, found.iou_per_class), -found.miou


def _latency(step: StepFolder, judge: Judge, child: OnnxModel) -> Latency:
    """Both sides in one run; taken once and kept, so that a resumed step ends with the same manifest."""
    saved = step.decided(LATENCY)
    if saved is not None:
        return Latency.model_validate(saved)
    taken = judge.times(ROUNDS, parent=judge.parent, child=child)
    height, width = judge.padded
    latency = Latency(
        milliseconds=taken["child"].median,
        milliseconds_parent=taken["parent"].median,
        height=height,
        width=width,
        threads=child.threads,
        machine=Machine.here(),
    )
    write_json(step.path / LATENCY, latency.model_dump(mode="json"))
    say(_figures(latency))
    return latency


def _figures(latency: Latency) -> str:
    return (
        f"INT8 takes {latency.milliseconds:.2f} ms, its float parent {latency.milliseconds_parent:.2f} ms "
        f"({latency.height}x{latency.width}, {latency.threads} threads)"
    )


def _require_gain(step: StepFolder, judge: Judge, child: OnnxModel) -> Latency:
    """`_latency`, which must be a gain."""
    latency = _latency(step, judge, child)
    assert latency.milliseconds_parent is not None
    if latency.milliseconds >= latency.milliseconds_parent:
        # The next try measures again: a busy moment must not decide for ever.
        (step.path / LATENCY).unlink()
        raise WorkFailedError(
            f"{_figures(latency)} on this machine ({latency.machine.instruction_set}): quantization gains nothing "
            "here; serve the float bundle (compress export), or keep the INT8 one all the same with --force"
        )
    return latency
