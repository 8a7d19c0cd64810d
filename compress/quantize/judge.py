"""What an INT8 graph keeps and gains, measured through ONNX Runtime beside its float parent."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx

from compress.bundling import score_on
from compress.checkpoint import Subject
from compress.data.folder import Dataset
from export.images import U8, Geometry
from export.runtime import OnnxModel
from export.scoring import Score
from export.timing import Samples, interleaved


@dataclass
class Judge:
    """Scores and times graphs of one network on one dataset."""

    dataset: Dataset
    card: Subject
    parent: OnnxModel
    """In float."""
    size: tuple[int, int]
    """Height and width at which latency is measured, before padding."""
    _parent_score: Score | None = field(default=None, init=False)

    @property
    def parent_score(self) -> Score:
        """On the validation split."""
        if self._parent_score is None:
            self._parent_score = score_on(self.dataset, "val", self.card, self.parent, "score float")
        return self._parent_score

    def score(self, model: OnnxModel) -> Score:
        """On the validation split, at the optimisation level that serves."""
        return score_on(self.dataset, "val", self.card, model, None)

    def times(self, rounds: int, **models: OnnxModel) -> dict[str, Samples]:
        """Latency of one image of noise, taking turns in one run."""
        image = self._image()
        runs: dict[str, Callable[[], object]] = {name: _run(model, image) for name, model in models.items()}
        return interleaved(runs, rounds=rounds)

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of what is timed."""
        return Geometry.plan(*self.size, size=self.card.size, multiple=self.card.size_multiple).padded

    def _image(self) -> U8:
        shape = (1, *self.padded, self.card.channels)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def model_of(graph: onnx.ModelProto) -> OnnxModel:
    """Ready to run."""
    return OnnxModel(graph.SerializeToString())


def _run(model: OnnxModel, image_NHWC: U8) -> Callable[[], object]:
    return lambda: model.masks(image_NHWC)
