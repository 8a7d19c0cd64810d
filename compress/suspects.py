"""`compress data suspects`: images whose masks a model doubts most, where annotators may have erred.

H height, W width; masks are uint8, void is 255.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.anymodel import load_model
from compress.data.evaluation import EvaluationImages
from compress.data.folder import Split, open_dataset
from compress.data.match import require_classes
from compress.progress import task
from export.errors import ShapeError, UsageError
from export.images import U8
from export.refine import Figures
from export.scoring import VOID


@dataclass(frozen=True)
class Suspect:
    """One image, and what the model says against its mask."""

    name: str
    doubt: float
    """Mean over the pixels of how much more probable the model finds its own answer than the mask's class, 0 to 1."""
    drawn: str
    """The mask's class where most of that doubt is."""
    answered: str
    """What the model says there instead."""
    share: float
    """Share of the pixels that are `drawn` in the mask and `answered` by the model."""

    def as_tree(self) -> dict[str, Any]:
        return asdict(self)


def suspects(path: Path, data: Path, *, split: Split = "train", count: int = 20) -> list[Suspect]:
    """The `count` images of a split that the model at `path` doubts most, the worst first; none that it agrees with.

    A checkpoint or a bundle with logits says how sure it is; a bundle with masks alone is sure of every answer. A model
    that was trained on these images has learned some of their mistakes: one trained on others is a better judge.

    Raises UsageError, DatasetError, ShapeError and what `load_model` raises.
    """
    model = load_model(path)
    dataset = open_dataset(data, channels=model.channels)
    require_classes(dataset, model.classes, path)
    images = EvaluationImages(dataset, split)
    if not len(images):
        raise UsageError(f"{data} has no images in its {split} split")
    found = []
    with task(f"doubt {split}", len(images)) as bar:
        for name, image_HWC, truth_HW in images:
            if model.probabilities is not None:
                figures_KHW = model.probabilities(image_HWC)
            else:
                figures_KHW = _certain(model.segment(image_HWC), len(model.classes))
            suspect = doubted(name, truth_HW, figures_KHW, model.classes)
            found += [] if suspect is None else [suspect]
            bar.advance()
    return sorted(found, key=lambda suspect: (-suspect.doubt, suspect.name))[:count]


def doubted(name: str, truth_HW: U8, probabilities_KHW: Figures, classes: tuple[str, ...]) -> Suspect | None:
    """The suspect in one image; None where the model agrees with every pixel, or all of them are void.

    Raises ShapeError when mask and image differ in size.
    """
    if truth_HW.shape != probabilities_KHW.shape[1:]:
        raise ShapeError(f"{name}: the mask has shape {truth_HW.shape}, the image {probabilities_KHW.shape[1:]}")
    counted = truth_HW != VOID
    truth_P, p_KP = truth_HW[counted].astype(np.intp), probabilities_KHW[:, counted]
    answer_P = p_KP.argmax(axis=0)
    doubt_P = p_KP.max(axis=0) - np.take_along_axis(p_KP, truth_P[None], axis=0)[0]
    if not doubt_P.any():
        return None
    kinds = len(classes)
    pair_P = truth_P * kinds + answer_P
    worst = int(np.bincount(pair_P, weights=doubt_P, minlength=kinds**2).argmax())
    return Suspect(
        name,
        float(doubt_P.mean()),
        classes[worst // kinds],
        classes[worst % kinds],
        float((pair_P == worst).mean()),
    )


def _certain(mask_HW: U8, classes: int) -> Figures:
    """A mask as probabilities of one and zero."""
    return np.asarray(np.arange(classes)[:, None, None] == mask_HW, dtype=np.float32)
