"""`compress export`: a checkpoint becomes a float bundle, proven against torch."""

from pathlib import Path

import onnx

from compress import checkpoint
from compress.bundling import (
    Proof,
    golden_images,
    macs,
    model_name,
    parameters,
    parity_images,
    score_on,
    segmenter_of,
    whole,
    write_bundle,
)
from compress.checkpoint import Checkpoint
from compress.data.check import require_sound
from compress.data.evaluation import EvaluationImages, usual_size
from compress.data.folder import Dataset
from compress.data.match import require_classes
from compress.progress import say, task
from compress.recipe import Recipe
from compress.steps import StepFolder, StepPlan, finished, running
from export import bundle
from export.bundle import Bundle
from export.images import padded_size
from export.parity import Parity, batches, float_parity, sizes_to_prove
from export.runtime import OnnxModel
from export.scoring import Score, score
from export.to_onnx import export_onnx, with_outputs


def export(parent: Path, out: Path, recipe: Recipe | None = None, *, data: Path | None = None) -> Bundle:
    """Write the checkpoint `parent` as a float bundle to `out`, with parity against torch proven.

    With `data`, parity, golden examples and accuracy come from real images, and the manifest has their usual size.
    Without it, images are synthetic, and the manifest has neither accuracy nor size.

    Raises CheckpointError, DatasetError, BusyError, UsageError; ParityError when torch and ONNX Runtime disagree.
    """
    recipe = recipe or Recipe()
    source = checkpoint.load(parent)
    dataset = require_sound(data, source.card.channels) if data is not None else None
    if dataset is not None:
        require_classes(dataset, source.card.classes, parent)
    plan = StepPlan(
        "export",
        {**source.inputs("checkpoint"), **({"data": dataset.fingerprint} if dataset else {})},
        {"export": recipe.export.model_dump(mode="json"), "name": model_name(recipe.export, out)},
    )
    if finished(out, plan) and (made := whole(out)) is not None:
        say(f"{out} is up to date")
        return made
    with running(out, plan) as step:
        _export(step, plan, source, dataset, recipe)
    return bundle.load(out)


def _export(step: StepFolder, plan: StepPlan, source: Checkpoint, dataset: Dataset | None, recipe: Recipe) -> None:
    card, network = source.card, source.network()
    path = step.path / bundle.MODEL
    graph = export_onnx(network, path, channels=card.channels, size_multiple=card.size_multiple)
    onnx.save(with_outputs(graph, recipe.export.outputs), str(path))
    shipped, with_logits = OnnxModel(path), OnnxModel(graph.SerializeToString())
    usual = usual_size(dataset) if dataset is not None and card.size is None else None
    images, whence = parity_images(dataset, card)
    size = segmenter_of(card, shipped).geometry(images[0]).padded
    inputs = batches(images, card.size_multiple, sizes_to_prove(size, card.size_multiple))
    parity = float_parity(network, shipped, with_logits, inputs, images=whence)
    scored: Score | None = None
    if dataset is not None:
        scored = score_on(dataset, "val", card, shipped, "score ONNX")
        parity = _with_miou(parity, source, dataset, scored)
    parity.require()
    write_bundle(
        step,
        plan,
        card,
        Proof(parity, golden_images(dataset, card, recipe.export), scored),
        name=str(plan.settings["name"]),
        precision="fp32",
        result={"miou": scored.miou if scored else None, "split": "val"},
        params=parameters(network),
        macs=macs(network, card.channels, padded_size(*(usual or size), card.size_multiple)),
        usual_size=usual,
    )


def _with_miou(parity: Parity, source: Checkpoint, dataset: Dataset, onnx_score: Score) -> Parity:
    """`parity` with the mIoU of both forms on the validation split."""
    images = EvaluationImages(dataset, "val")
    with task("score torch", len(images)) as bar:
        torch_score = score(source.segmenter(), images, source.card.classes, on_image=bar.advance)
    return parity.model_copy(update={"miou": {"torch": torch_score.miou, "onnxruntime": onnx_score.miou}})
