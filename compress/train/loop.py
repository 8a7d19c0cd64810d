"""One stretch of gradient descent that can be killed and goes on as if it had not been.

Every epoch draws its randomness from (seed, epoch) alone, so a run that resumes at the start of an epoch
repeats that epoch exactly; on the CPU the result is the same to the last bit.

N batch, C channels, K classes, H height, W width.
"""

import io
import math
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compress.checkpoint import normalised
from compress.data.augment import Augment
from compress.data.loader import Batch, TrainingImages, ValidationImages
from compress.progress import Task, say, task
from compress.recipe import FitSettings
from compress.train.ema import MovingAverage
from compress.train.losses import cross_entropy, distillation, soft_dice
from compress.train.precision import Precision, autocast
from export.errors import WorkFailedError
from export.files import write_atomic
from export.scoring import ConfusionMatrix

STATE = "training_state.pt"
SECONDS_BETWEEN_SAVES = 20.0
NON_FINITE_IN_A_ROW = 5


@dataclass(frozen=True)
class Teacher:
    """A frozen network whose logits the student follows."""

    network: nn.Module
    weight: float
    temperature: float


@dataclass(frozen=True)
class Runtime:
    """Where and in what format the steps run."""

    device: torch.device
    precision: Precision


@dataclass
class Progress:
    """How far the fit is: what is saved beside the tensors."""

    epoch: int = 0
    """Epochs done."""
    miou: float = -1.0
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Fitted:
    """The best averaged weights by mIoU on the validation split (torch float32)."""

    weights: dict[str, Tensor]
    miou: float
    best_epoch: int
    history: list[dict[str, float]]


class Fit:
    """`network` on `images` for `settings.epochs`, watched by `validation`, state kept in `folder`."""

    def __init__(
        self,
        network: nn.Module,
        images: TrainingImages,
        validation: ValidationImages,
        settings: FitSettings,
        augment: Augment,
        runtime: Runtime,
        folder: Path,
        teacher: Teacher | None = None,
    ) -> None:
        self._images = images
        self._validation = validation
        self._settings = settings
        self._augment = augment
        self._runtime = runtime
        self._state_path = folder / STATE
        self._teacher = teacher
        self._network = network.to(runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if teacher is not None:
            teacher.network.to(runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._average = MovingAverage(self._network, settings.ema_decay)
        self._optimizer = torch.optim.AdamW(_parameter_groups(self._network, settings.weight_decay), lr=0.0)
        self._scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.precision == "float16")
        self._steps_an_epoch = images.batches(settings.batch_size)
        self._progress = Progress()
        self._best: dict[str, Tensor] = {}
        self._non_finite: deque[tuple[str, ...]] = deque(maxlen=NON_FINITE_IN_A_ROW)

    def run(self, title: str) -> Fitted:
        """Train to the end, from wherever `folder` says that an earlier run came.

        Raises WorkFailedError when the loss stays infinite or undefined.
        """
        self._resume()
        epochs, saved = self._settings.epochs, time.monotonic()
        behind = self._progress.epoch * self._steps_an_epoch
        with task(title, epochs * self._steps_an_epoch, done=behind) as bar:
            while self._progress.epoch < epochs:
                loss = self._train_epoch(self._progress.epoch, bar)
                self._progress.epoch += 1
                figures = {"epoch": float(self._progress.epoch), "loss": loss}
                if self._progress.epoch % self._settings.validate_every == 0 or self._progress.epoch == epochs:
                    figures["miou"] = self._validate()
                    bar.advance(0, mIoU=figures["miou"])
                self._progress.history.append(figures)
                if self._progress.epoch == epochs or time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                    self._save()
                    saved = time.monotonic()
        done = self._progress
        return Fitted(self._best, done.miou, done.best_epoch, done.history)

    def _train_epoch(self, epoch: int, bar: Task) -> float:
        rng = np.random.default_rng([self._settings.seed, epoch])
        torch.manual_seed(int(rng.integers(2**62)))
        self._network.train()
        losses = []
        for index, batch in enumerate(self._images.epoch(self._settings.batch_size, rng)):
            self._set_learning_rate(epoch * self._steps_an_epoch + index)
            loss = self._step(batch)
            if loss is None:
                bar.advance(1)
            else:
                losses.append(loss)
                bar.advance(1, loss=loss)
        return sum(losses) / max(1, len(losses))

    def _step(self, batch: Batch) -> float | None:
        """The loss of one step; None when it was skipped."""
        device = self._runtime.device
        images = normalised(batch.images_NCHW.to(device, non_blocking=True))
        images, masks = self._augment(images, batch.masks_NHW.to(device, non_blocking=True))
        images = images.contiguous(memory_format=torch.channels_last)
        statistics = [buffer.clone() for buffer in self._network.buffers()]
        with autocast(self._runtime.precision, device):
            logits = self._network(images)
        loss = self._loss(logits, images, masks)
        if not math.isfinite(loss.item()):
            for buffer, before in zip(self._network.buffers(), statistics, strict=True):
                buffer.copy_(before)  # one forward pass over what is no number spoils BatchNorm's averages for good
            self._skip(batch)
            return None
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(self._network.parameters(), self._settings.clip_norm)
        if not self._scaler.is_enabled() and not math.isfinite(norm):
            self._skip(batch)
            return None
        self._non_finite.clear()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._average.update()
        return loss.item()

    def _loss(self, logits: Tensor, images: Tensor, masks: Tensor) -> Tensor:
        hard = cross_entropy(logits, masks) + self._settings.dice_weight * soft_dice(logits, masks)
        if self._teacher is None:
            return hard
        with torch.no_grad(), autocast(self._runtime.precision, self._runtime.device):
            target = self._teacher.network(images)
        soft = distillation(logits, target, masks, self._teacher.temperature)
        return (1 - self._teacher.weight) * hard + self._teacher.weight * soft

    def _skip(self, batch: Batch) -> None:
        """A batch whose loss is not finite changes nothing; several in a row end the run."""
        self._non_finite.append(batch.names)
        say(f"the loss or the gradient of {', '.join(batch.names)} is not finite; the step is skipped")
        if len(self._non_finite) == NON_FINITE_IN_A_ROW:
            raise WorkFailedError(
                f"the loss was not finite in {NON_FINITE_IN_A_ROW} steps in a row, last for "
                f"{', '.join(batch.names)}; lower train.learning_rate, or set train.precision=float32"
            )

    def _set_learning_rate(self, step: int) -> None:
        """Linear warm-up, then a cosine to zero. Source: Loshchilov & Hutter 2017 (arXiv:1608.03983)."""
        total = self._settings.epochs * self._steps_an_epoch
        warmup = max(1, round(total * self._settings.warmup))
        if step < warmup:
            factor = (step + 1) / warmup
        else:
            factor = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
        for group in self._optimizer.param_groups:
            group["lr"] = self._settings.learning_rate * factor

    def _validate(self) -> float:
        network = self._average.network
        miou = validate(network, self._validation, self._runtime.device)
        if miou > self._progress.miou:
            self._progress.miou = miou
            self._progress.best_epoch = self._progress.epoch
            self._best = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
        return miou

    def _save(self) -> None:
        state: dict[str, Any] = {
            "progress": vars(self._progress).copy(),
            "network": self._network.state_dict(),
            "average": self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "best": self._best,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(self._state_path, buffer.getvalue())

    def _resume(self) -> None:
        if not self._state_path.exists():
            return
        state = torch.load(self._state_path, map_location=self._runtime.device, weights_only=True)
        self._network.load_state_dict(state["network"])
        self._average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self._best = {name: tensor.cpu() for name, tensor in state["best"].items()}
        self._progress = Progress(**state["progress"])
        say(f"continuing after epoch {self._progress.epoch} of {self._settings.epochs}")


def validate(network: nn.Module, validation: ValidationImages, device: torch.device) -> float:
    """mIoU of the validation split in torch float32: one confusion matrix, at the size of the masks."""
    network.eval()

    @torch.inference_mode()
    def masks_of(images_NCHW: Tensor) -> NDArray[np.uint8]:
        images = normalised(images_NCHW.to(device)).contiguous(memory_format=torch.channels_last)
        masks: NDArray[np.uint8] = network(images).argmax(1).to(torch.uint8).cpu().numpy()
        return masks

    matrix = ConfusionMatrix(len(validation.classes))
    for _, truth, prediction in validation.predictions(masks_of):
        matrix.update(truth, prediction)
    return matrix.miou


def _parameter_groups(network: nn.Module, weight_decay: float) -> Iterable[dict[str, Any]]:
    """Weight decay for kernels; none for biases and BatchNorm."""
    kernels = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    return [{"params": kernels, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
