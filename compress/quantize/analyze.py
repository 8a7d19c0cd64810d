"""`compress quantize --analyze`: what INT8 does to each layer, and what leaving it in float would win and cost."""

from collections.abc import Callable
from pathlib import Path

from compress.progress import say
from compress.quantize.effects import LAYERS, Effects
from compress.quantize.judge import model_of
from compress.quantize.workbench import Workbench, inputs, made_on, opened, up_to_date
from compress.recipe import Recipe
from compress.sensitivity import QuantizationAnalysis
from compress.steps import StepPlan, require_apart, running


def analyze(
    parent: Path,
    data: Path,
    out: Path,
    recipe: Recipe | None = None,
    *,
    write: Callable[[QuantizationAnalysis, Path], None] = lambda *_: None,
) -> QuantizationAnalysis:
    """Quantize the checkpoint or ONNX model `parent`, then leave one layer at a time in float to see what INT8 costs.

    It is calibrated whatever `quantize.mode` says: what training would change is no property of a layer. Biases are not
    corrected, because that is measured on a whole graph. `write` puts what people read beside
    `layers.json` into the folder. After an interruption, the same call continues with the layers that are left. Raises
    CheckpointError, ModelError, DatasetError, BusyError, UsageError.
    """
    recipe = _calibrating(recipe or Recipe())
    require_apart(out, parent)
    source, dataset = opened(parent, data, recipe)
    asked = {"calibration", "calibration_images", "equalise", "target", "rewrites", "onnx", "max_drop", "min_iou"}
    target = recipe.quantize.target
    settings = {"quantize": recipe.quantize.model_dump(mode="json", include=asked), **made_on(target)}
    plan = StepPlan("quantization-analysis", inputs(source, dataset), settings)
    if up_to_date(out, plan, target):
        say(f"{out} is up to date")
    else:
        with running(out, plan) as step:
            bench = Workbench(step, source, dataset, recipe)
            if source.checkpoint is None:
                source.look_at_score(bench.judge.parent_score)
            quantizer, calibration = bench.chosen
            int8 = quantizer.quantized(calibration)
            score = bench.judge.score(model_of(int8.graph))
            effects = Effects(step, bench.judge, quantizer, calibration, str(parent))
            analysis = effects.measure(int8, score, bench.noise_images())
            write(analysis, step.path)
            step.record(
                plan,
                {
                    "miou_float": analysis.miou_float,
                    "miou_int8": analysis.miou_int8,
                    "calibration": calibration,
                    "layers": len(analysis.layers),
                },
            )
    return QuantizationAnalysis.model_validate_json((out / LAYERS).read_text(encoding="utf-8"))


def _calibrating(recipe: Recipe) -> Recipe:
    """`recipe` for calibration alone, as which it also suits targets and models that cannot be trained for."""
    return recipe.model_copy(update={"quantize": recipe.quantize.model_copy(update={"mode": "ptq"})})
