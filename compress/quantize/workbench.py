"""What quantizing a checkpoint and analysing it share: its float graph, calibrated once, and who judges what comes."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx

from compress import checkpoint
from compress.data.check import require_sound
from compress.data.evaluation import EvaluationImages, drawn_by_name, usual_size
from compress.data.folder import Dataset, Sample
from compress.data.match import require_classes
from compress.progress import say, task
from compress.quantize.calibration import METHODS
from compress.quantize.foreign import read
from compress.quantize.judge import Judge, model_of
from compress.quantize.ptq import Quantizer
from compress.quantize.rewrites import Rewriter
from compress.quantize.source import Source, of_checkpoint, of_onnx
from compress.recipe import Calibration, OnnxSettings, Recipe
from compress.steps import StepFolder
from export.errors import UsageError
from export.files import write_json
from export.images import U8, Geometry
from export.to_onnx import with_outputs

CALIBRATION = "calibration.json"
CHOICE = "calibration_choice.json"
NOISE_IMAGES = 4
"""On which the noise of layers is measured."""


def opened(parent: Path, data: Path, recipe: Recipe) -> tuple[Source, Dataset]:
    """What is to be quantized, a checkpoint folder or the file of a float ONNX model, and the dataset, whose classes
    are its.

    Raises CheckpointError, ModelError, DatasetError; UsageError when something is declared of a checkpoint, and when a
    model from elsewhere is to be trained.
    """
    declared = recipe.quantize.onnx
    if parent.suffix == ".onnx":
        if recipe.quantize.mode == "qat":
            raise UsageError(f"{parent} has no network that could be trained; --mode qat is for checkpoints")
        if declared.classes and recipe.export.outputs != "mask":
            raise UsageError("with --class-map a bundle gives masks alone; leave out export.outputs")
        foreign = read(parent, declared)
        dataset = require_sound(data, foreign.channels)
        return of_onnx(foreign, declared, dataset), dataset
    if declared != OnnxSettings():
        raise UsageError(f"{parent} is a checkpoint and says of itself what --layout, --mean and others would")
    source = checkpoint.load(parent)
    dataset = require_sound(data, source.card.channels)
    require_classes(dataset, source.card.classes, parent)
    return of_checkpoint(source), dataset


def inputs(source: Source, dataset: Dataset) -> dict[str, str]:
    """What a step is made from, by hash."""
    return {**source.inputs, "data": dataset.fingerprint}


@dataclass(frozen=True)
class Workbench:
    """One model in the folder of one step."""

    step: StepFolder
    source: Source
    dataset: Dataset
    recipe: Recipe

    @cached_property
    def quantizer(self) -> Quantizer:
        """Makes INT8 graphs; calibrates when it is first asked for, and writes which images that took."""
        samples = self._samples()
        write_json(self.step.path / CALIBRATION, {"split": "train", "images": [sample.name for sample in samples]})
        graph = self._graph()
        with task("calibrate", len(samples)) as bar:

            def images() -> Iterator[U8]:
                for image in self._fitted(samples):
                    yield image
                    bar.advance()

            return Quantizer(graph, images(), target=self.recipe.quantize.target)

    @cached_property
    def judge(self) -> Judge:
        """Of the validation split."""
        parent = model_of(with_outputs(self._exported, "mask"))
        size = self.source.card.size or usual_size(self.dataset)
        return Judge(self.dataset, self.source.card, parent, size)

    def calibration(self) -> Calibration:
        """What the recipe names, or the method that keeps most mIoU; decided once, ties go to the simpler one."""
        wanted = self.recipe.quantize.calibration
        if wanted != "auto":
            return wanted
        saved = self.step.decided(CHOICE)
        if saved is None:
            with task("try calibrations", len(METHODS)) as bar:
                saved = {}
                for method in METHODS:
                    saved[method] = self.judge.score(model_of(self.quantizer.quantized(method).graph)).miou
                    bar.advance(1, mIoU=saved[method])
            write_json(self.step.path / CHOICE, saved)
        best = max(METHODS, key=lambda method: saved[method])
        say(f"calibration by {best}: mIoU " + ", ".join(f"{method} {saved[method]:.4f}" for method in METHODS))
        return best

    def tried(self) -> dict[Calibration, float] | None:
        """mIoU by method, where `calibration` had a choice."""
        return self.step.decided(CHOICE)

    def noise_images(self) -> list[U8]:
        """Some of the calibration list, as the model is given them."""
        return list(self._fitted(self._samples()[:NOISE_IMAGES]))

    def shipped(self, graph: onnx.ModelProto) -> onnx.ModelProto:
        """What leaves of the INT8 graph `graph`: the same integers, by the operators that are fastest here."""
        return self._rewriter.of_integers(graph) if self.recipe.quantize.rewrites else graph

    def _graph(self) -> onnx.ModelProto:
        """What is to be quantized: as it was exported, or in equal forms that are faster in INT8 here."""
        graph = with_outputs(self._exported, self.recipe.export.outputs)
        return self._rewriter.of_float(graph) if self.recipe.quantize.rewrites else graph

    @cached_property
    def _rewriter(self) -> Rewriter:
        return Rewriter(self.step, self.judge, self._quick, self.source.card.size_multiple)

    def _quick(self, graph: onnx.ModelProto) -> onnx.ModelProto:
        """In INT8 with any ranges."""
        images = iter(self._fitted(self._samples()[:1]))
        return Quantizer(graph, images, target=self.recipe.quantize.target).quantized("minmax").graph

    @cached_property
    def _exported(self) -> onnx.ModelProto:
        return self.source.graph(self.step)

    def _samples(self) -> tuple[Sample, ...]:
        return drawn_by_name(self.dataset.train, self.recipe.quantize.calibration_images)

    def _fitted(self, samples: tuple[Sample, ...]) -> Iterator[U8]:
        card = self.source.card
        for _, image in EvaluationImages(self.dataset, "train", samples).images():
            yield Geometry.plan(*image.shape[:2], size=card.size, multiple=card.size_multiple).fit(image)
