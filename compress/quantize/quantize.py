"""`compress quantize`: a checkpoint becomes an INT8 bundle that keeps its accuracy budget and gains time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from compress import checkpoint
from compress.budget import Accuracy, Budget, require_kept
from compress.bundling import (
    Proof,
    golden_images,
    model_name,
    parity_images,
    score_on,
    segmenter_of,
    write_bundle,
)
from compress.checkpoint import Checkpoint
from compress.data.check import require_sound
from compress.data.evaluation import EvaluationImages, drawn_by_name, usual_size
from compress.data.folder import Dataset, Sample
from compress.data.match import require_classes
from compress.progress import Task, say, task
from compress.quantize.ptq import Quantized, quantize_graph, with_quantized_logits
from compress.recipe import Recipe
from compress.steps import StepFolder, StepPlan, finished, running
from export import bundle
from export.bundle import Bundle
from export.errors import WorkFailedError
from export.files import write_json
from export.images import U8, Geometry
from export.machine import Machine
from export.manifest import Latency
from export.parity import batches, int8_parity, sizes_to_prove
from export.runtime import OnnxModel
from export.timing import interleaved
from export.to_onnx import export_onnx, with_outputs

CALIBRATION = "calibration.json"
LATENCY = "latency.json"
ROUNDS = 30


@dataclass(frozen=True)
class _Graphs:
    """The float parent and its INT8 child, ready to run."""

    parent: OnnxModel
    child: OnnxModel
    quantized: Quantized


def quantize(parent: Path, data: Path, out: Path, recipe: Recipe | None = None) -> Bundle:
    """Quantize the checkpoint `parent` with images of `data` and write an INT8 bundle to `out`.

    mIoU and latency are measured through ONNX Runtime, against the same network in float: on the validation split
    the drop must stay within `quantize.max_drop` and each class of `quantize.min_iou` above its floor, and the INT8
    graph must be the faster one.

    Raises CheckpointError, DatasetError, BusyError, UsageError; BudgetMissedError when they do not (the bundle is
    kept); WorkFailedError when INT8 is not faster on this machine and `quantize.force` is off;
    ParityError when the optimised graph does not give the answers of the graph as written.
    """
    recipe = recipe or Recipe()
    source = checkpoint.load(parent)
    dataset = require_sound(data, source.card.channels)
    require_classes(dataset, source.card.classes, parent)
    budget = Budget(recipe.quantize.max_drop, recipe.quantize.min_iou)
    budget.require_classes(source.card.classes)
    plan = StepPlan(
        "quantize",
        {"checkpoint": source.weights_sha256, "card": source.card_sha256, "data": dataset.fingerprint},
        {
            "quantize": recipe.quantize.model_dump(mode="json"),
            "export": recipe.export.model_dump(mode="json"),
            "name": model_name(recipe.export, out),
        },
    )
    record = finished(out, plan)
    if record is not None:
        say(f"{out} is up to date")
    else:
        with running(out, plan) as step:
            record = {"result": _quantize(step, plan, source, dataset, recipe)}
    require_kept(budget, Accuracy.from_result(record["result"]), out)
    return bundle.load(out)


def _quantize(step: StepFolder, plan: StepPlan, source: Checkpoint, dataset: Dataset, recipe: Recipe) -> dict[str, Any]:
    card = source.card
    samples = drawn_by_name(dataset.train, recipe.quantize.calibration_images)
    write_json(step.path / CALIBRATION, {"split": "train", "images": [sample.name for sample in samples]})
    graphs = _graphs(step, source, dataset, samples, recipe)
    images, whence = parity_images(dataset, card)
    latency = _latency(step, graphs, images[0], source.card.size or usual_size(dataset), source)
    if not recipe.quantize.force:
        _require_gain(step, latency)
    as_written, logit_step = with_quantized_logits(graphs.quantized.graph)
    parity = int8_parity(
        graphs.child,
        OnnxModel(as_written.SerializeToString(), optimised=False),
        batches(images, card.size_multiple, sizes_to_prove((latency.height, latency.width), card.size_multiple)),
        logit_step=logit_step,
        images=whence,
    )
    parity.require()

    before = score_on(dataset, "val", card, graphs.parent, "score float")
    after = score_on(dataset, "val", card, graphs.child, "score INT8")
    parity = parity.model_copy(update={"miou": {"float": before.miou, "int8": after.miou}})
    assert latency.milliseconds_parent is not None
    result = {
        "speedup": latency.milliseconds_parent / latency.milliseconds,
        **Accuracy.of(before, after).as_result(),
        "calibration": recipe.quantize.calibration,
        "calibration_images": len(samples),
        "seven_bit_weights": graphs.quantized.seven_bit_weights,
        "float_layers": [layer.model_dump() for layer in graphs.quantized.float_layers],
    }
    write_bundle(
        step,
        plan,
        source,
        Proof(parity, golden_images(dataset, card, recipe.export), after, "val", before.miou, latency),
        name=str(plan.settings["name"]),
        precision="int8",
        result=result,
        size=(latency.height, latency.width),
        target=recipe.quantize.target,
        float_layers=graphs.quantized.float_layers,
    )
    return result


def _graphs(
    step: StepFolder, source: Checkpoint, dataset: Dataset, samples: Sequence[Sample], recipe: Recipe
) -> _Graphs:
    path, card = step.path / bundle.MODEL, source.card
    graph = export_onnx(source.network(), path, channels=card.channels, size_multiple=card.size_multiple)
    float_graph = with_outputs(graph, "mask")
    parent = OnnxModel(float_graph.SerializeToString())
    say(f"calibrating on {len(samples)} training images ({recipe.quantize.calibration})")

    def fitted(bar: Task) -> Iterator[U8]:
        for _, image in EvaluationImages(dataset, "train", samples).images():
            yield segmenter_of(card, parent).geometry(image).fit(image)
            bar.advance()

    with task("calibrate", len(samples)) as bar:
        quantized = quantize_graph(
            with_outputs(graph, recipe.export.outputs),
            fitted(bar),
            method=recipe.quantize.calibration,
            target=recipe.quantize.target,
        )
    onnx.save(quantized.graph, str(path))
    return _Graphs(parent, OnnxModel(path), quantized)


def _latency(step: StepFolder, graphs: _Graphs, image: U8, size: tuple[int, int], source: Checkpoint) -> Latency:
    """Both sides in one run; taken once and kept, so that a resumed step ends with the same manifest."""
    saved = step.decided(LATENCY)
    if saved is not None:
        return Latency.model_validate(saved)
    fitted: U8 = Geometry.plan(*image.shape[:2], size=size, multiple=source.card.size_multiple).fit(image)[None]
    taken = interleaved(
        {"parent": lambda: graphs.parent.masks(fitted), "child": lambda: graphs.child.masks(fitted)}, rounds=ROUNDS
    )
    latency = Latency(
        milliseconds=taken["child"].median,
        milliseconds_parent=taken["parent"].median,
        height=fitted.shape[1],
        width=fitted.shape[2],
        threads=graphs.child.threads,
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


def _require_gain(step: StepFolder, latency: Latency) -> None:
    assert latency.milliseconds_parent is not None
    if latency.milliseconds >= latency.milliseconds_parent:
        # The next try measures again: a busy moment must not decide for ever.
        (step.path / LATENCY).unlink()
        raise WorkFailedError(
            f"{_figures(latency)} on this machine ({latency.machine.instruction_set}): quantization gains nothing "
            "here; serve the float bundle (compress export), or keep the INT8 one all the same with --force"
        )
