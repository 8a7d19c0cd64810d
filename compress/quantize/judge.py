"""What an INT8 graph keeps and gains, measured through ONNX Runtime beside its float parent."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx

from compress.budget import Budget
from compress.bundling import score_on
from compress.checkpoint import Subject
from compress.data.folder import Dataset
from compress.progress import task
from export.images import U8, Geometry
from export.profiling import NUMBERED, Kernel, profiled
from export.runtime import IMAGE, OnnxModel
from export.scoring import Score
from export.timing import Samples, interleaved

_TURNS, _RUNS = 2, 5
"""How often each graph is profiled, and the runs each time."""


@dataclass(frozen=True)
class Kept:
    """What a graph keeps of its parent's accuracy: the figures by which one graph is chosen over another."""

    miou: float
    missing: float
    """What it lacks to keep the budget; 0 where it does."""

    @property
    def rank(self) -> tuple[float, float]:
        """The larger, the better: nearest to the budget first, then most mIoU."""
        return -self.missing, self.miou


@dataclass
class Judge:
    """Scores and times graphs of one network on one dataset."""

    dataset: Dataset
    card: Subject
    parent: OnnxModel
    """In float."""
    size: tuple[int, int]
    """Height and width at which latency is measured, before padding."""
    budget: Budget = field(default_factory=Budget)
    _parent_score: Score | None = field(default=None, init=False)

    @property
    def parent_score(self) -> Score:
        """The float parent's score on the validation split."""
        if self._parent_score is None:
            self._parent_score = score_on(self.dataset, "val", self.card, self.parent, "score float")
        return self._parent_score

    def score(self, model: OnnxModel) -> Score:
        """Score `model` on the validation split, at the optimisation level that serves."""
        return score_on(self.dataset, "val", self.card, model, None)

    def kept(self, score: Score) -> Kept:
        """What a graph that scored `score` keeps of the parent's accuracy."""
        lost = self.parent_score.miou - score.miou
        return Kept(score.miou, self.budget.missing(lost, score.iou_per_class))

    def times(self, rounds: int, **models: OnnxModel) -> dict[str, Samples]:
        """Latency of `models` on one image of noise, taking turns in one run."""
        image = self._image()
        runs: dict[str, Callable[[], object]] = {name: _run(model, image) for name, model in models.items()}
        return interleaved(runs, rounds=rounds)

    def kernel_times(self, graphs: Mapping[str, onnx.ModelProto]) -> dict[str, dict[str, float]]:
        """Milliseconds of the nodes of `graphs`, by their names there, in the fastest of several runs.

        What disturbs a kernel only makes it slower. The graphs take turns, so that a drift of the machine affects all.
        """
        feeds, threads = {IMAGE: self._image()}, self.parent.threads
        least: dict[str, dict[str, float]] = {name: {} for name in graphs}
        with task("time operators", _TURNS * len(graphs)) as bar:
            for name in [*graphs] * _TURNS:
                for run in profiled(graphs[name].SerializeToString(), feeds, threads=threads, runs=_RUNS):
                    for node, time in _by_node(run).items():
                        least[name][node] = min(time, least[name].get(node, time))
                bar.advance()
        return least

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of the image that is timed."""
        return Geometry.plan(*self.size, size=self.card.size, multiple=self.card.size_multiple).padded

    def _image(self) -> U8:
        shape = (1, *self.padded, self.card.channels)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def model_of(graph: onnx.ModelProto) -> OnnxModel:
    """`graph`, ready to run."""
    return OnnxModel(graph.SerializeToString())


def _by_node(kernels: Iterable[Kernel]) -> dict[str, float]:
    """Milliseconds by the name of the node as written; a node can become more than one kernel."""
    taken: dict[str, float] = {}
    for kernel in kernels:
        node = NUMBERED.sub("", kernel.name)
        taken[node] = taken.get(node, 0) + kernel.microseconds / 1000
    return taken


def _run(model: OnnxModel, image_NHWC: U8) -> Callable[[], object]:
    return lambda: model.masks(image_NHWC)
