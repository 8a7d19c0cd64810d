"""Turn a step's folder with a `model.onnx` into a bundle: the only place that writes bundles."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from compress.checkpoint import Subject
from compress.data.evaluation import EvaluationImages, drawn_by_name, nothing_counts
from compress.data.folder import Dataset
from compress.progress import say, task
from compress.settings.whole import ExportSettings
from compress.steps import StepFolder, StepPlan
from export import bundle
from export.bundle import Bundle
from export.errors import BundleError
from export.files import write_json
from export.images import U8
from export.machine import instruction_set, library_versions
from export.manifest import Accuracy, FloatLayer, Latency, Precision
from export.parity import BATCHES, Parity
from export.runtime import OnnxModel, Segmenter
from export.scoring import Score, score

PARITY = "parity.json"
_SYNTHETIC_SIDE = 32
"""Least height and width of a synthetic image, unless the network takes images of another size alone."""
OWN_SECTIONS = ("quantize", "export")
"""Sections of the recipe that the step itself used; those that trained and pruned the network are on its card."""


@dataclass(frozen=True)
class Proof:
    """What was measured about a graph before it may be called a bundle."""

    parity: Parity
    golden: Sequence[tuple[str, U8]]
    score: Score | None = None
    score_split: str = "val"
    miou_parent: float | None = None
    latency: Latency | None = None


def whole(out: Path) -> Bundle | None:
    """The bundle in `out`; None for one that is damaged, which is said: its step then makes it again."""
    try:
        return bundle.load(out)
    except BundleError as error:
        say(f"warning: {error}; it is made again")
        return None


def write_bundle(
    step: StepFolder,
    plan: StepPlan,
    card: Subject,
    proof: Proof,
    *,
    name: str,
    precision: Precision,
    result: Mapping[str, Any],
    params: int,
    macs: int,
    usual_size: tuple[int, int] | None = None,
    target: str = "auto",
    half_floats: bool = False,
    float_layers: Sequence[FloatLayer] = (),
) -> Bundle:
    """Write golden answers, parity, record and manifest beside `model.onnx` in the folder; `card` is the model's.

    `macs` are those of one image at the size at which latency is measured; `usual_size` is that of most images, where
    latency was not measured.
    """
    model = OnnxModel(step.path / bundle.MODEL)
    golden = bundle.write_golden(step.path, segmenter_of(card, model), proof.golden)
    write_json(step.path / PARITY, proof.parity.model_dump(mode="json"))
    step.record(plan, result)
    return bundle.seal(
        step.path,
        name=name,
        version=str(plan.settings["export"]["version"]),
        inputs=model.inputs,
        outputs=model.outputs,
        channels=card.channels,
        size=card.size,
        usual_size=usual_size,
        size_multiple=card.size_multiple,
        classes=card.classes,
        colours=card.colours,
        precision=precision,
        float_layers=tuple(float_layers),
        instruction_set=instruction_set(),
        target=target,
        half_floats=half_floats,
        opset=_opset(step.path / bundle.MODEL),
        params=params,
        macs=macs,
        parents={**card.parents, **plan.inputs},
        recipe={**card.recipe, **{part: plan.settings[part] for part in OWN_SECTIONS if part in plan.settings}},
        libraries=library_versions(),
        accuracy=_accuracy(proof),
        latency=proof.latency,
        golden=golden,
    )


def segmenter_of(card: Subject, model: OnnxModel) -> Segmenter:
    """A segmenter that gives masks at image size, from a graph with the card's geometry."""
    return Segmenter(model, size=card.size, multiple=card.size_multiple)


def score_on(dataset: Dataset, split: str, card: Subject, model: OnnxModel, title: str | None) -> Score:
    """Score a graph on a split, through ONNX Runtime, with a progress bar unless `title` is None.

    Raises DatasetError when every mask of the split is void everywhere.
    """
    images = EvaluationImages(dataset, split)  # type: ignore[arg-type]
    segment = segmenter_of(card, model).segment
    if title is None:
        result = score(segment, images, card.classes)
    else:
        with task(title, len(images)) as bar:
            result = score(segment, images, card.classes, on_image=bar.advance)
    if not result.counts.any():
        raise nothing_counts(dataset, split)
    return result


def golden_images(dataset: Dataset | None, card: Subject, settings: ExportSettings) -> list[tuple[str, U8]]:
    """The first images of the calibration list, or synthetic ones, which reveal nothing of the data."""
    if dataset is None or settings.golden == "synthetic":
        images: Iterator[tuple[str, U8]] = synthetic_images(card, settings.golden_images)
    else:
        images = EvaluationImages(dataset, "train", drawn_by_name(dataset.train, settings.golden_images)).images()
    return [(f"{i:02d}-{re.sub(r'[^A-Za-z0-9._-]', '_', name)}", image) for i, (name, image) in enumerate(images)]


def parity_images(dataset: Dataset | None, card: Subject) -> tuple[list[U8], str]:
    """Enough images for the largest batch, and where they come from."""
    count = max(BATCHES)
    if dataset is None:
        return [image for _, image in synthetic_images(card, count)], "synthetic"
    drawn = EvaluationImages(dataset, "val", drawn_by_name(dataset.val, count))
    return [image for _, image in drawn.images()], "validation split"


def synthetic_images(card: Subject, count: int) -> Iterator[tuple[str, U8]]:
    """Smooth blobs of light: no picture of anything, but structure at every scale that a network looks at."""
    rng = np.random.default_rng(0)
    side = card.size_multiple * max(8, math.ceil(_SYNTHETIC_SIDE / card.size_multiple))
    height, width = card.size or (side, side)
    rows, columns = np.mgrid[0:height, 0:width]
    widest = max(height, width) / 3
    for i in range(count):
        image = np.zeros((height, width, card.channels))
        for _ in range(24):
            y, x = rng.uniform(0, height), rng.uniform(0, width)
            radius = rng.uniform(min(4, widest / 2), widest)
            blob = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / radius**2)
            image += blob[..., None] * rng.uniform(-90, 90, card.channels)
        image += 128 + rng.normal(0, 6, image.shape)
        yield f"synthetic{i}", np.clip(image, 0, 255).astype(np.uint8)


def model_name(settings: ExportSettings, fallback: Path) -> str:
    """A name that fits a URL: the one asked for, or the folder's."""
    if settings.name is not None:
        return settings.name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", fallback.resolve().name).strip("-._") or "model"


def parameters(network: nn.Module) -> int:
    """The number of learned parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def macs(network: nn.Module, channels: int, size: tuple[int, int]) -> int:
    """Multiply-accumulates of one image of (height, width), counted by torch."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, channels, *size))
    return int(counter.get_total_flops()) // 2


def _accuracy(proof: Proof) -> Accuracy | None:
    if proof.score is None:
        return None
    return Accuracy(
        split=proof.score_split,
        images=len(proof.score.images),
        miou=proof.score.miou,
        miou_interval=proof.score.interval(),
        iou_per_class=proof.score.iou_per_class,
        miou_parent=proof.miou_parent,
    )


def _opset(path: Path) -> int:
    model = onnx.load(str(path), load_external_data=False)
    return int(next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")))
