"""Which INT8 graph ships: calibrated, with corrected biases, trained, or with some layers in float."""

from dataclasses import dataclass, replace
from typing import Any

import onnx

from compress.progress import say
from compress.quantize.correct import corrected
from compress.quantize.effects import Effects
from compress.quantize.fallback import Fallback
from compress.quantize.judge import Judge, Kept, model_of
from compress.quantize.ptq import Quantized
from compress.quantize.qat import learn
from compress.quantize.targets import scheme_of
from compress.quantize.workbench import ROUNDS, Workbench, compared, helps, mious
from export.files import write_json
from export.scoring import Score

CORRECTION = "bias_correction.json"
TRAINED_LATENCY = "qat_latency.json"


@dataclass(frozen=True)
class Candidate:
    """A candidate INT8 graph, and what it scored."""

    quantized: Quantized
    score: Score
    kept: Kept
    figures: dict[str, Any]
    """For the step's record: how it was made."""

    @classmethod
    def of(cls, judge: Judge, quantized: Quantized, figures: dict[str, Any]) -> "Candidate":
        """`quantized`, scored."""
        score = judge.score(model_of(quantized.graph))
        return cls(quantized, score, judge.kept(score), figures)


def choose(bench: Workbench) -> Candidate:
    """The graph that holds the budget, or comes nearest to it, by what the recipe allows."""
    calibrated = _calibrated(bench)
    made = _corrected(bench, calibrated)
    if bench.recipe.quantize.mode == "qat":
        made = _trained(bench, calibrated, made)
    return _within(bench, made, calibrated)


def _calibrated(bench: Workbench) -> Candidate:
    quantizer, calibration = bench.chosen
    figures = {"mode": "ptq", "calibration": calibration, "equalised": quantizer.is_equalised, **bench.figures()}
    return Candidate.of(bench.judge, quantizer.quantized(calibration), figures)


def _corrected(bench: Workbench, made: Candidate) -> Candidate:
    """`made` with corrected biases, where the recipe wants them; decided once for each set of layers in float."""
    wanted = bench.recipe.quantize.bias_correction
    without = {**made.figures, "bias_corrected": False, "bias_correction": None}
    if wanted is False:
        return replace(made, figures=without)
    layers = ", ".join(layer.layer for layer in made.quantized.float_layers)
    tried = bench.tried(CORRECTION, layers)
    if wanted == "auto" and tried and not helps(tried):
        return replace(made, figures={**without, "bias_correction": mious(tried)})
    quantized = corrected(
        made.quantized,
        bench.correction_images(),
        integer_biases=scheme_of(bench.recipe.quantize.target).integer_biases,
    )
    if quantized is made.quantized:
        say("no bias is corrected: no convolution is in integers")
        return replace(made, figures=without)
    other = Candidate.of(bench.judge, quantized, without)
    if not tried:
        tried = {"without": made.kept, "with": other.kept}
        bench.remember(CORRECTION, tried, layers)
    kept = wanted is True or helps(tried)
    say(compared("biases corrected", tried, kept=kept))
    chosen = other if kept else made
    return replace(chosen, figures={**without, "bias_corrected": kept, "bias_correction": mious(tried)})


def _trained(bench: Workbench, calibrated: Candidate, otherwise: Candidate) -> Candidate:
    """What training made of `calibrated`, if it keeps no less than `otherwise`, which would ship without it."""
    quantized = calibrated.quantized
    assert bench.source.checkpoint is not None
    learned = learn(bench.step, bench.source.checkpoint, bench.dataset, bench.recipe, quantized.graph, quantized.parent)
    trained = Candidate.of(bench.judge, replace(quantized, graph=learned.graph), {})
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


def _within(bench: Workbench, made: Candidate, calibrated: Candidate) -> Candidate:
    """`made` if it holds the budget, else `calibrated` with some layers in float, if that comes nearer to it."""
    judge = bench.judge
    if not made.kept.missing:
        return made
    quantizer, calibration = bench.chosen
    effects = Effects(bench.step, judge, quantizer, calibration, str(bench.source.path))
    analysis = effects.measure(calibrated.quantized, calibrated.score, bench.noise_images())
    must_gain = bench.is_here and not bench.recipe.quantize.force
    mixed = Fallback(bench.step, judge, quantizer, analysis, shipped=bench.shipped, must_gain=must_gain).choose()
    other = Candidate.of(judge, mixed, {**made.figures, "mode": "ptq"})
    return max((made, _corrected(bench, other)), key=lambda one: one.kept.rank)
