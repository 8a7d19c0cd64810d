"""Recovery: a cut network learns again what it lost, from the training images and from its parent."""

from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from compress.budget import Accuracy
from compress.checkpoint import ModelCard
from compress.data.loader import ValidationImages
from compress.models import size_multiple
from compress.progress import say
from compress.prune.evidence import Evidence
from compress.prune.step import PruneStep
from compress.train.batchnorm import reestimate
from compress.train.images import training_images, validation_images
from compress.train.loop import Fit
from compress.train.objective import Teacher
from compress.train.precision import kept_choice, pick_device
from compress.train.runtime import Runtime
from compress.train.validation import validate
from export.files import write_json
from export.scoring import Score

HISTORY = "history.json"


class Recovery:
    """Fine-tunes and scores what `step` cuts from `parent`, with one set of images, one device and one precision."""

    def __init__(self, step: PruneStep, parent: nn.Module) -> None:
        self._parent = parent
        self.device = pick_device(step.recipe.train.device)
        self._step = step
        self._precision = kept_choice(step.folder.path, step.recipe.train.precision, self.device).precision
        self._images = training_images(step.dataset, step.recipe, step.parent.card.size_multiple, self.device)
        self._validation = validation_images(step.dataset, step.recipe, step.parent.card.size_multiple)
        self._childs_validation: ValidationImages | None = None

    def evidence(self) -> Evidence:
        """The training images, with the loss that the recovery minimises."""
        classes, settings = len(self._step.dataset.classes), self._step.recipe.prune.finetune
        return Evidence(self._images, classes, settings, self.device)

    @cached_property
    def parent_score(self) -> Score:
        """The parent's score on the validation split; the parent is on the CPU before and after."""
        score = self._score(self._parent.to(self.device))
        self._parent.cpu()
        return score

    def score_of(self, child: nn.Module) -> Score:
        """Score `child` on the validation split, with BatchNorm statistics recomputed and nothing fine-tuned."""
        reestimate(child.to(self.device), self._images)
        return self._score(child)

    def run(self, child: nn.Module, card: ModelCard, folder: Path) -> dict[str, Any]:
        """Fine-tune `child`, whose checkpoints have `card`, with the parent as its teacher; `folder` keeps what a
        killed run continues from. Returns scores before and after; leaves the best weights in `child`, on the CPU."""
        step, settings = self._step, self._step.recipe.prune.finetune
        before = self.score_of(child).miou
        say(f"mIoU on validation: parent {self.parent_score.miou:.4f}, cut and not yet fine-tuned {before:.4f}")
        fitted = Fit(
            child,
            card,
            self._images,
            self._images_for(child),
            settings,
            step.recipe.train.augment,
            Runtime(self.device, self._precision),
            folder,
            Teacher.of(self._parent, settings),
        ).run("recover")
        child.load_state_dict(fitted.weights)
        accuracy = Accuracy.of(self.parent_score, self._score(child))
        child.cpu()
        write_json(folder / HISTORY, fitted.history)
        return {**fitted.figures(), **accuracy.as_result(), "miou_before_finetune": before}

    def _score(self, network: nn.Module) -> Score:
        return validate(network, self._images_for(network), self.device)

    def _images_for(self, network: nn.Module) -> ValidationImages:
        """The validation split, padded as for `network` when it serves: with fewer levels, to a smaller multiple."""
        multiple = size_multiple(network)
        if multiple == self._validation.multiple:
            return self._validation
        if self._childs_validation is None or multiple != self._childs_validation.multiple:
            self._childs_validation = None  # first, so that two at most are in memory
            self._childs_validation = validation_images(self._step.dataset, self._step.recipe, multiple)
        return self._childs_validation
