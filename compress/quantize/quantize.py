"""`compress quantize`: a checkpoint becomes an INT8 bundle that keeps its accuracy budget and gains time."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from compress.budget import Accuracy, Budget, require_kept
from compress.bundling import PARITY, Proof, golden_images, model_name, parity_images, write_bundle
from compress.data.folder import Dataset
from compress.progress import say
from compress.quantize.correct import corrected
from compress.quantize.effects import Effects
from compress.quantize.fallback import Fallback
from compress.quantize.judge import Judge, Kept, model_of
from compress.quantize.kernels import look_at_kernels
from compress.quantize.ptq import Quantized, with_quantized_logits
from compress.quantize.qat import learn, require_trainable
from compress.quantize.source import Source
from compress.quantize.targets import scheme_of
from compress.quantize.workbench import (
    TIMED,
    Workbench,
    compared,
    helps,
    inputs,
    made_on,
    mious,
    opened,
    up_to_date,
)
from compress.recipe import Recipe
from compress.steps import StepFolder, StepPlan, require_apart, running
from compress.train import own
from compress.train.images import window_settings
from export import bundle
from export.bundle import Bundle
from export.errors import ParityError, WorkFailedError
from export.files import write_json
from export.machine import Machine, instruction_set
from export.manifest import Latency
from export.parity import Parity, batches, int8_parity, sizes_to_prove
from export.runtime import OnnxModel
from export.scoring import Score

CORRECTION = "bias_correction.json"
LATENCY = "latency.json"
TRAINED_LATENCY = "qat_latency.json"
ROUNDS = 30


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


@dataclass(frozen=True)
class _Candidate:
    """A candidate INT8 graph, and what it scored."""

    quantized: Quantized
    score: Score
    kept: Kept
    figures: dict[str, Any]
    """For the step's record: how it was made."""

    @classmethod
    def of(cls, judge: Judge, quantized: Quantized, figures: dict[str, Any]) -> "_Candidate":
        """`quantized`, scored."""
        score = judge.score(model_of(quantized.graph))
        return cls(quantized, score, judge.kept(score), figures)


def _quantize(step: StepFolder, plan: StepPlan, source: Source, dataset: Dataset, recipe: Recipe) -> dict[str, Any]:
    bench = Workbench(step, source, dataset, recipe)
    judge, settings = bench.judge, recipe.quantize
    must_gain = bench.is_here and not settings.force
    if judge.budget.min_iou:
        judge.budget.look_at_floors(judge.parent_score.iou_per_class)
    if source.checkpoint is None:
        source.look_at_score(judge.parent_score)
    if not bench.is_here:
        say(
            f"made for {settings.target}, and this machine ({instruction_set()}) is not what will serve: no form of a "
            "layer is chosen by timing, and INT8 need not be faster here"
        )
    # Neither operators nor time depend on ranges: what they forbid is known before anything that takes long.
    quick = bench.quantizer.quantized("minmax") if must_gain or settings.mode == "qat" else None
    if quick and settings.mode == "qat":
        require_trainable(quick.graph, quick.parent)
    if quick and must_gain:
        _require_gain(step.scratch("quick"), judge, model_of(bench.shipped(quick.graph)))
    calibrated = _calibrated(bench)
    made = _corrected(bench, calibrated)
    if settings.mode == "qat":
        made = _trained(bench, calibrated, made)
    made = _within(bench, made, calibrated)
    graph = bench.shipped(made.quantized.graph)
    onnx.save(graph, str(step.path / bundle.MODEL))
    child = OnnxModel(step.path / bundle.MODEL)
    score = _as_shipped(judge.score(child), made.score)
    latency = _require_gain(step, judge, child) if must_gain else _latency(step, judge, child)
    images, whence = parity_images(dataset, source.card)
    as_written, logit_step = with_quantized_logits(graph)
    multiple = source.card.size_multiple
    sizes = sizes_to_prove((latency.height, latency.width), multiple) if child.only_size is None else (child.only_size,)
    parity = int8_parity(
        child,
        OnnxModel(as_written.SerializeToString(), optimised=False),
        batches(images, multiple, sizes),
        logit_step=logit_step,
        images=whence,
    )
    if parity.masks_differ:
        parity = parity.model_copy(update={"kernels": look_at_kernels(graph, next(batches(images, multiple, sizes)))})
        looked = parity.kernels or "it quantizes nowhere, so no kernel can be compared by itself"
        say(f"the optimised graph gives other masks than the graph as written; {looked}")
    before = judge.parent_score
    figures = f"mIoU {before.miou:.4f} in float, {score.miou:.4f} in INT8. {_figures(latency)}"
    if scheme_of(settings.target).saturates_here:
        figures += (
            f".\nThis machine ({instruction_set()}) saturates products of 8 bits, which {settings.target} does not: "
            "quantize there, or on a machine with VNNI"
        )
    _require(parity, step, figures)
    parity = parity.model_copy(update={"miou": {"float": before.miou, "int8": score.miou}})
    assert latency.milliseconds_parent is not None
    result = {
        "speedup": latency.milliseconds_parent / latency.milliseconds,
        **Accuracy.of(before, score).as_result(),
        **made.figures,
        "calibration_images": min(settings.calibration_images, len(dataset.train)),
        "target": settings.target,
        TIMED: bench.is_here,
        "forced": settings.force,
        "seven_bit_weights": made.quantized.seven_bit_weights,
        "float_layers": [layer.model_dump() for layer in made.quantized.float_layers],
    }
    write_bundle(
        step,
        plan,
        source.card,
        Proof(parity, golden_images(dataset, source.card, recipe.export), score, "val", before.miou, latency),
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


def _calibrated(bench: Workbench) -> _Candidate:
    quantizer, calibration = bench.chosen
    figures = {"mode": "ptq", "calibration": calibration, "equalised": quantizer.is_equalised, **bench.figures()}
    return _Candidate.of(bench.judge, quantizer.quantized(calibration), figures)


def _corrected(bench: Workbench, made: _Candidate) -> _Candidate:
    """`made` with corrected biases, where the recipe wants them; decided once for each set of layers in float."""
    wanted = bench.recipe.quantize.bias_correction
    without = {**made.figures, "bias_corrected": False, "bias_correction": None}
    if wanted is False:
        return replace(made, figures=without)
    layers = ", ".join(layer.layer for layer in made.quantized.float_layers)
    tried = bench.tried(CORRECTION, layers)
    if wanted == "auto" and tried and not helps(tried):
        return replace(made, figures={**without, "bias_correction": mious(tried)})
    quantized = corrected(made.quantized, bench.correction_images())
    if quantized is made.quantized:
        say("no bias is corrected: no convolution is in integers")
        return replace(made, figures=without)
    other = _Candidate.of(bench.judge, quantized, without)
    if not tried:
        tried = {"without": made.kept, "with": other.kept}
        bench.remember(CORRECTION, tried, layers)
    kept = wanted is True or helps(tried)
    say(compared("biases corrected", tried, kept=kept))
    chosen = other if kept else made
    return replace(chosen, figures={**without, "bias_corrected": kept, "bias_correction": mious(tried)})


def _trained(bench: Workbench, calibrated: _Candidate, otherwise: _Candidate) -> _Candidate:
    """What training made of `calibrated`, if it keeps no less than `otherwise`, which would ship without it."""
    quantized = calibrated.quantized
    assert bench.source.checkpoint is not None
    learned = learn(bench.step, bench.source.checkpoint, bench.dataset, bench.recipe, quantized.graph, quantized.parent)
    trained = _Candidate.of(bench.judge, replace(quantized, graph=learned.graph), {})
    say(f"mIoU {otherwise.kept.miou:.4f} calibrated, {trained.kept.miou:.4f} trained")
    more: dict[str, Any] = {"miou_ptq": otherwise.kept.miou, "miou_qat": trained.kept.miou, "qat": learned.figures}
    if trained.kept.rank < otherwise.kept.rank:
        say("training did not help: the graph stays as it was calibrated")
        return replace(otherwise, figures={**otherwise.figures, **more})
    more["qat"] = {**learned.figures, **_trained_latency(bench, calibrated.quantized.graph, learned.graph)}
    return replace(trained, figures={**otherwise.figures, **more, "mode": "qat", "bias_corrected": False})


def _trained_latency(bench: Workbench, calibrated: onnx.ModelProto, trained: onnx.ModelProto) -> dict[str, float]:
    """Milliseconds of both graphs in the form that ships, in one run: training changes weights and scales alone."""
    saved = bench.step.decided(TRAINED_LATENCY)
    if saved is None:
        graphs = {"calibrated": calibrated, "trained": trained}
        models = {name: model_of(bench.shipped(graph)) for name, graph in graphs.items()}
        taken = bench.judge.times(ROUNDS, **models)
        saved = {"milliseconds_ptq": taken["calibrated"].median, "milliseconds": taken["trained"].median}
        write_json(bench.step.path / TRAINED_LATENCY, saved)
    ratio = saved["milliseconds"] / saved["milliseconds_ptq"]
    say(f"the trained graph takes {saved['milliseconds']:.2f} ms, {ratio:.2f} times as long as the calibrated one")
    return saved


def _within(bench: Workbench, made: _Candidate, calibrated: _Candidate) -> _Candidate:
    """`made` if it holds the budget, else `calibrated` with some layers in float, if that comes nearer to it."""
    judge = bench.judge
    if not made.kept.missing:
        return made
    quantizer, calibration = bench.chosen
    effects = Effects(bench.step, judge, quantizer, calibration, str(bench.source.path))
    analysis = effects.measure(calibrated.quantized, calibrated.score, bench.noise_images())
    must_gain = bench.is_here and not bench.recipe.quantize.force
    mixed = Fallback(bench.step, judge, quantizer, analysis, shipped=bench.shipped, must_gain=must_gain).choose()
    other = _Candidate.of(judge, mixed, {**made.figures, "mode": "ptq"})
    return max((made, _corrected(bench, other)), key=lambda one: one.kept.rank)


def _as_shipped(shipped: Score, chosen: Score) -> Score:
    """The score of the graph in the forms that ship, which compute the integers of the graph that was chosen; where
    this runtime's kernels round them otherwise, a line says so."""
    if not np.array_equal(shipped.counts, chosen.counts):
        say(
            f"warning: in the forms that are fastest here the graph gives other answers than as it was quantized: mIoU "
            f"{shipped.miou:.4f} instead of {chosen.miou:.4f}; quantize.rewrites=false leaves its operators as they are"
        )
    return shipped


def _require(parity: Parity, step: StepFolder, figures: str) -> None:
    """Raises ParityError with `figures`: a graph that optimisation changes is no bundle, however good it seems."""
    try:
        parity.require()
    except ParityError as error:
        write_json(step.path / PARITY, parity.model_dump(mode="json"))
        raise ParityError(
            f"{error}\n{figures}. No bundle is made of a graph whose answers the runtime changes; for inspection it is "
            f"kept in {step.path / bundle.MODEL}, with all cases in {PARITY}"
        ) from error


def _latency(step: StepFolder, judge: Judge, child: OnnxModel) -> Latency:
    """Time both sides in one run; done once and kept, so that a resumed step ends with the same manifest."""
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
    """`_latency`; raises WorkFailedError where INT8 is not faster."""
    latency = _latency(step, judge, child)
    assert latency.milliseconds_parent is not None
    if latency.milliseconds >= latency.milliseconds_parent:
        # The next try measures again: a busy moment must not decide for good.
        (step.path / LATENCY).unlink()
        raise WorkFailedError(
            f"{_figures(latency)} on this machine ({latency.machine.instruction_set}): quantization gains nothing "
            "here; serve the float bundle (compress export), or keep the INT8 one all the same with --force"
        )
    return latency
