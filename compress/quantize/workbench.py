"""What quantizing a model and analysing it share: its float graph, calibrated once, and the judge of the results."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx

from compress import checkpoint
from compress.budget import Budget
from compress.data.check import require_sound
from compress.data.evaluation import EvaluationImages, drawn_by_name, usual_size
from compress.data.folder import Dataset, Sample
from compress.data.match import require_classes
from compress.progress import say, task
from compress.quantize.calibration import METHODS
from compress.quantize.door import normalised_tensor
from compress.quantize.foreign import read
from compress.quantize.judge import Judge, Kept, model_of
from compress.quantize.layers import first_layer
from compress.quantize.ptq import Quantizer
from compress.quantize.rewrites import Rewriter
from compress.quantize.source import Source, of_checkpoint, of_onnx
from compress.quantize.targets import scheme_of
from compress.recipe import Recipe
from compress.settings.quantize import Calibration, OnnxSettings, QuantizeSettings, Target
from compress.steps import StepFolder, StepPlan, finished
from export.errors import UsageError
from export.files import write_json
from export.images import U8, Geometry
from export.machine import instruction_set
from export.to_onnx import with_outputs

CALIBRATION = "calibration.json"
CHOICE = "calibrations.json"
EQUALISATION = "equalisation.json"
CORRECTION_IMAGES = 16
"""Each layer is measured on all of them before the next one: more would take minutes for large images."""
NOISE_IMAGES = 4
"""Images on which the noise of layers is measured."""
ROUNDS = 30
"""Interleaved runs of each graph by which two are compared in time."""

TIMED = "timed_for_target"
"""In settings and result of a step: whether times were taken on what will serve."""


def opened(parent: Path, data: Path, recipe: Recipe) -> tuple[Source, Dataset]:
    """Open what is to be quantized, a checkpoint folder or a float ONNX file, and the dataset, which has its classes.

    Raises CheckpointError, ModelError, DatasetError; UsageError when something is declared for a checkpoint, and when a
    model from elsewhere, or one with signed activations, is to be trained, or a floor is that of no class.
    """
    declared = recipe.quantize.onnx
    if recipe.quantize.mode == "qat":
        require_unsigned(recipe.quantize)
    if parent.suffix == ".onnx":
        if recipe.quantize.mode == "qat":
            raise UsageError(f"{parent} has no network that could be trained; --mode qat is for checkpoints")
        if declared.classes and recipe.export.outputs != "mask":
            raise UsageError("with --class-map a bundle gives masks alone; leave out export.outputs")
        foreign = read(parent, declared)
        dataset = require_sound(data, foreign.channels)
        source = of_onnx(foreign, declared, dataset)
    else:
        if declared != OnnxSettings():
            raise UsageError(f"{parent} is a checkpoint, which needs no --layout, --mean and the like; leave them out")
        loaded = checkpoint.load(parent)
        dataset = require_sound(data, loaded.card.channels)
        require_classes(dataset, loaded.card.classes, parent)
        source = of_checkpoint(loaded)
    Budget.of(recipe.quantize).require_classes(source.card.classes)
    return source, dataset


def require_unsigned(settings: QuantizeSettings) -> None:
    """Raises UsageError when the target of training is a runtime that takes signed activations."""
    if scheme_of(settings.target).signed:
        raise UsageError(
            f"--mode qat trains unsigned activations, --for {settings.target} takes signed ones; use --mode ptq"
        )


def inputs(source: Source, dataset: Dataset) -> dict[str, str]:
    """Hashes of what a step is made from."""
    return {**source.inputs, "data": dataset.fingerprint}


def made_on(target: Target) -> dict[str, str | bool]:
    """What about this machine decides what is made for `target`, for the settings of a step.

    For auto, its instruction set; for another processor than this one, that nothing is decided by timing.
    """
    if target == "auto":
        return {"instruction_set": instruction_set()}
    scheme = scheme_of(target)
    return {TIMED: False} if scheme.by_cpu_provider and not scheme.is_here else {}


def up_to_date(out: Path, plan: StepPlan, target: Target) -> dict[str, Any] | None:
    """The record of `out` when it was made by `plan`, else None.

    What was timed on the processor that `target` names is up to date on any other, too; what was not timed there is up
    to date everywhere but there.
    """
    timed = {name: value for name, value in plan.settings.items() if name != TIMED}
    record = finished(out, plan) or finished(out, replace(plan, settings=timed))
    # Steps of older versions have TIMED in their result alone.
    untimed = record is not None and record["result"].get(TIMED) is False
    return None if untimed and scheme_of(target).is_here else record


@dataclass(frozen=True)
class Workbench:
    """One model in the folder of one step."""

    step: StepFolder
    source: Source
    dataset: Dataset
    recipe: Recipe

    @cached_property
    def quantizer(self) -> Quantizer:
        """Makes INT8 graphs, equalised first if the recipe asks for it; calibrates on first use, and records on which
        images."""
        wanted = self.recipe.quantize.equalise is True
        made = self._calibrating(equalise=wanted)
        if wanted and not made.is_equalised:
            say("nothing is equalised: no convolution is read by convolutions alone")
        return made

    @cached_property
    def chosen(self) -> tuple[Quantizer, Calibration]:
        """The quantizer and the calibration to use, decided once; the graph is equalised where that is to be tried and
        keeps more."""
        calibration = self.calibration()
        return self._equalised(calibration) or self.quantizer, calibration

    def _equalised(self, calibration: Calibration) -> Quantizer | None:
        """The quantizer of the equalised graph, if it is better than `quantizer`."""
        if self.recipe.quantize.equalise != "auto":
            return None
        tried = self.tried(EQUALISATION)
        if tried and not helps(tried):
            return None
        other = self._calibrating(equalise=True)
        if not other.is_equalised:
            return None
        if not tried:
            without, equal = (self._kept(one, calibration) for one in (self.quantizer, other))
            tried = {"without": without, "with": equal}
            self.remember(EQUALISATION, tried)
        say(compared("channels equalised", tried, kept=helps(tried)))
        return other if helps(tried) else None

    def _kept(self, quantizer: Quantizer, calibration: Calibration) -> Kept:
        return self.judge.kept(self.judge.score(model_of(quantizer.quantized(calibration).graph)))

    def tried(self, name: str, subject: str | None = None) -> dict[str, Kept]:
        """The ways of a choice that were measured and saved, by an earlier run of this step too; none where there are
        none. `subject` is for a choice that is made more than once."""
        saved = self.step.decided(name) or {}
        if subject is not None:
            saved = saved.get(subject, {})
        return {way: Kept(**figures) for way, figures in saved.items()}

    def remember(self, name: str, tried: Mapping[str, Kept], subject: str | None = None) -> None:
        """Save what was measured for a choice, which `tried` finds again."""
        figures = {way: asdict(kept) for way, kept in tried.items()}
        others = self.step.decided(name) or {}
        write_json(self.step.path / name, figures if subject is None else {**others, subject: figures})

    @cached_property
    def judge(self) -> Judge:
        """Scores on the validation split, beside the float parent."""
        parent = model_of(with_outputs(self._exported, "mask"))
        size = self.source.card.size or usual_size(self.dataset)
        return Judge(self.dataset, self.source.card, parent, size, Budget.of(self.recipe.quantize))

    def calibration(self) -> Calibration:
        """The method that the recipe names, or the one that keeps most; decided once, ties go to the simpler."""
        wanted = self.recipe.quantize.calibration
        if wanted != "auto":
            return wanted
        tried = self.tried(CHOICE)
        if not tried:
            with task("try calibrations", len(METHODS)) as bar:
                for method in METHODS:
                    tried[method] = self._kept(self.quantizer, method)
                    bar.advance(1, mIoU=tried[method].miou)
            self.remember(CHOICE, tried)
        best = max(METHODS, key=lambda method: tried[method].rank)
        say(f"calibration by {best}: mIoU " + ", ".join(f"{method} {tried[method].miou:.4f}" for method in METHODS))
        return best

    def figures(self) -> dict[str, Any]:
        """What was tried, for the record: mIoU by method where `calibration` chose, mIoU with and without equalisation
        where that was chosen, and the times of the first layer where they were measured."""
        return {
            "calibrations": mious(self.tried(CHOICE)),
            "equalisation": mious(self.tried(EQUALISATION)),
            "stem": self._rewriter.stem_figures() if self._is_rewriting else None,
        }

    def correction_images(self) -> list[U8]:
        """The images of the calibration list on which means are compared, as the model is given them."""
        return list(self._fitted(self._samples()[:CORRECTION_IMAGES]))

    def noise_images(self) -> list[U8]:
        """The images of the calibration list on which noise is measured, as the model is given them."""
        return list(self._fitted(self._samples()[:NOISE_IMAGES]))

    def shipped(self, graph: onnx.ModelProto) -> onnx.ModelProto:
        """The INT8 graph `graph` as it ships: the same integers, by the operators that are fastest here."""
        return self._rewriter.of_integers(graph) if self._is_rewriting else graph

    @cached_property
    def is_here(self) -> bool:
        """Whether graphs run here as they will when served."""
        return scheme_of(self.recipe.quantize.target).is_here

    @property
    def _is_rewriting(self) -> bool:
        """Whether forms are chosen by timing here, which says nothing about another runtime."""
        return self.recipe.quantize.rewrites and self.is_here

    def _calibrating(self, *, equalise: bool) -> Quantizer:
        """Calibrate in one pass over the calibration images."""
        samples = self._samples()
        write_json(self.step.path / CALIBRATION, {"split": "train", "images": [sample.name for sample in samples]})
        with task("calibrate", len(samples)) as bar:

            def images() -> Iterator[U8]:
                for image in self._fitted(samples):
                    yield image
                    bar.advance()

            return self._quantizer(self._graph, images(), equalise=equalise, in_float=self._stem)

    @cached_property
    def _stem(self) -> Mapping[str, str]:
        """The first layer, if it is faster in float, with the reason."""
        if not self._is_rewriting:
            return {}
        stem = first_layer(self._graph, normalised_tensor(self._graph.graph))
        reason = None if stem is None else self._rewriter.stem_in_float(self._graph, stem)
        return {} if stem is None or reason is None else {stem.name: reason}

    @cached_property
    def _graph(self) -> onnx.ModelProto:
        """The float graph to quantize: as exported, or in equal forms that are faster in INT8 here."""
        graph = with_outputs(self._exported, self.recipe.export.outputs)
        return self._rewriter.of_float(graph) if self._is_rewriting else graph

    @cached_property
    def _rewriter(self) -> Rewriter:
        return Rewriter(self.step, self.judge, self._quick, self.source.card.size_multiple)

    def _quick(self, graph: onnx.ModelProto, in_float: Mapping[str, str]) -> onnx.ModelProto:
        """`graph` in INT8, with ranges from a single image."""
        images = iter(self._fitted(self._samples()[:1]))
        return self._quantizer(graph, images, in_float=in_float).quantized("minmax").graph

    def _quantizer(
        self, graph: onnx.ModelProto, images: Iterator[U8], *, in_float: Mapping[str, str], equalise: bool = False
    ) -> Quantizer:
        target = self.recipe.quantize.target
        return Quantizer(graph, images, target=target, equalise=equalise, in_float=in_float)

    @cached_property
    def _exported(self) -> onnx.ModelProto:
        return self.source.graph(self.step)

    def _samples(self) -> tuple[Sample, ...]:
        return drawn_by_name(self.dataset.train, self.recipe.quantize.calibration_images)

    def _fitted(self, samples: tuple[Sample, ...]) -> Iterator[U8]:
        card = self.source.card
        for _, image in EvaluationImages(self.dataset, "train", samples).images():
            yield Geometry.plan(*image.shape[:2], size=card.size, multiple=card.size_multiple).fit(image)


def helps(tried: Mapping[str, Kept]) -> bool:
    """Whether a graph is better "with" than "without"."""
    return tried["with"].rank > tried["without"].rank


def mious(tried: Mapping[str, Kept]) -> dict[str, float] | None:
    """The mIoU of each way that was tried, for the step's record; None where nothing was."""
    return {way: kept.miou for way, kept in tried.items()} or None


def compared(what: str, tried: Mapping[str, Kept], *, kept: bool) -> str:
    """One line about `tried`: a graph with and without `what`."""
    verdict = "kept" if kept else "not kept"
    return f"{what}: mIoU {tried['with'].miou:.4f} instead of {tried['without'].miou:.4f}, {verdict}"
