"""One stretch of gradient descent that can be killed at any moment and resumed as if nothing had happened.

The randomness of every step depends on the seed, the epoch and the place in the epoch alone, so a resumed run takes
exactly the steps that were left; on the CPU the result is the same to the last bit.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress import checkpoint
from compress.checkpoint import ModelCard
from compress.data.loader import TrainingImages, ValidationImages
from compress.progress import Task, say, task
from compress.settings.augment import AugmentSettings
from compress.settings.fit import FitSettings
from compress.train.attention import require_shared
from compress.train.batchnorm import reestimate
from compress.train.clock import Clock, Throughput
from compress.train.ema import EqualAverage
from compress.train.feed import Feed
from compress.train.freeze import Freezing, require_encoder
from compress.train.losses import class_weights
from compress.train.objective import Objective, Teacher
from compress.train.runtime import Runtime
from compress.train.schedule import Schedule
from compress.train.sparsity import Penalty
from compress.train.state import Progress, StateFile
from compress.train.step import Stepper
from compress.train.validation import validate
from export.metrics import Metrics

LAST = "last"


@dataclass(frozen=True)
class Fitted:
    """The best averaged weights by mIoU on the validation split (torch float32)."""

    weights: dict[str, Tensor]
    miou: float
    best_epoch: int
    history: list[dict[str, Any]]
    averaged: bool
    """Whether the weights are the equal average, not an epoch's; its metrics are `swa` in the last history entry."""
    throughput: Throughput | None
    """Of the steps since the last resume; None if none was timed."""

    def figures(self) -> dict[str, Any]:
        """Its figures for a step's record, as plain values."""
        throughput = None if self.throughput is None else asdict(self.throughput)
        figures = {"miou": self.miou, "best_epoch": self.best_epoch, "averaged": self.averaged}
        return {**figures, "throughput": throughput}


class Fit:
    """Trains `network` on `images` for `settings.epochs` and scores it on `validation`.

    `folder` keeps the training state and checkpoints of the averaged weights, each with the card `card`: the last
    epoch's in `last/`, every `settings.save_every`-th in `epoch-0010/` and so on. `run` returns the best.
    """

    def __init__(
        self,
        network: nn.Module,
        card: ModelCard,
        images: TrainingImages,
        validation: ValidationImages,
        settings: FitSettings,
        augment: AugmentSettings,
        runtime: Runtime,
        folder: Path,
        teacher: Teacher | None = None,
        penalty: Penalty | None = None,
    ) -> None:
        self._card = card
        self._validation = validation
        self._settings = settings
        self._images = images
        self._runtime = runtime
        self._folder = folder
        for module in [network] if teacher is None else [network, teacher.network]:
            module.to(runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if teacher is not None and teacher.attention_weight:
            require_shared(network, teacher.network)
        weights_K = class_weights(settings.loss, images.class_pixels(len(validation.classes)), settings.SECTION)
        weights_K = None if weights_K is None else weights_K.to(runtime.device)
        objective = Objective(settings.loss, weights_K, teacher, penalty)
        self._network = network
        require_encoder(network, settings)
        self._freezing = Freezing(network, settings.freeze)
        self._swa = None if settings.swa.start is None else EqualAverage(network)
        self._stepper = Stepper(network, objective, settings, runtime)
        self._clock = Clock(runtime)
        self._feed = Feed(images, settings, augment, runtime, self._clock)
        self._steps = self._feed.steps_an_epoch
        self._schedule = Schedule(settings, self._steps)
        self._state = StateFile(folder)
        self._progress = Progress()
        self._best: dict[str, Tensor] = {}

    def run(self, title: str) -> Fitted:
        """Train to the end, from where an earlier run in `folder` stopped.

        Raises WorkFailedError when the loss stays infinite or NaN, and when a single image does not fit into memory.
        """
        self._resume()
        done, epochs = self._progress, self._settings.epochs
        with task(title, epochs * self._steps, done=done.epoch * self._steps + done.step) as bar:
            while done.epoch < epochs and not self._is_stalled():
                self._train_epoch(bar)
                self._end_epoch(bar)
                if done.epoch == epochs or self._is_stalled() or self._state.is_due():
                    self._save()
        if done.epoch < epochs:
            say(f"stopped after epoch {done.epoch} of {epochs}: none has been better since epoch {done.best_epoch}")
        averaged = self._swa is not None and self._swa.steps > 0 and self._judge(self._swa)
        self._keep(LAST, done.history[-1]["miou"])
        throughput = self._clock.throughput()
        if throughput is not None:
            say(str(throughput))
        return Fitted(self._best, done.miou, done.best_epoch, done.history, averaged, throughput)

    def _train_epoch(self, bar: Task) -> None:
        done = self._progress
        self._network.train()
        self._freezing.apply(done.epoch)
        for batch in self._feed.epoch(done.epoch, first=done.step):
            pace = self._schedule.pace(done.epoch * self._steps + done.step)
            with self._clock.part("network"):
                loss = self._stepper.take(batch, pace)
            self._clock.end_step(len(batch.names))
            done.add(loss, self._stepper.norm)
            bar.advance(1, **({} if loss is None else {"loss": loss}))
            if self._state.is_due():
                self._save()

    def _end_epoch(self, bar: Task) -> None:
        number = self._progress.epoch + 1
        start = self._settings.swa.start
        if self._swa is not None and start is not None and number > start * self._settings.epochs:
            self._swa.update()
        keeps = self._settings.save_every is not None and number % self._settings.save_every == 0
        if number % self._settings.validate_every and number != self._settings.epochs and not keeps:
            self._progress.end_epoch({})
            return
        metrics = validate(self._stepper.average.network, self._validation, self._runtime.device).metrics
        bar.advance(0, mIoU=metrics.miou)
        self._compare(number, metrics)
        if keeps:
            self._keep(f"epoch-{number:04d}", metrics.miou)
        self._progress.end_epoch(metrics.as_tree())

    def _compare(self, number: int, metrics: Metrics) -> None:
        """Remember the weights of the epoch `number` if they are the best so far among those that may be kept."""
        if self._may_be_kept(number) and metrics.miou > self._progress.miou:
            self._take(number, metrics, self._stepper.average.network)

    def _may_be_kept(self, number: int) -> bool:
        return number > self._settings.keep_from * self._settings.epochs or number == self._settings.epochs

    def _take(self, number: int, metrics: Metrics, network: nn.Module) -> None:
        self._progress.miou, self._progress.best_epoch = metrics.miou, number
        self._best = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}

    def _is_stalled(self) -> bool:
        """Whether as many validations as `patience` allows have passed without a better epoch."""
        patience, done = self._settings.patience, self._progress
        if patience is None:
            return False
        # Before averaging begins, the learning rate has not reached its final value, and there would be no average.
        shares = self._settings.keep_from, self._settings.swa.start or 0.0
        since = max(done.best_epoch, max(shares) * self._settings.epochs)
        return len([epoch for epoch in done.history if "miou" in epoch and epoch["epoch"] > since]) >= patience

    def _judge(self, swa: EqualAverage) -> bool:
        """Validate the equal average with its own statistics and keep it if it beats every epoch; whether it did.

        A run that is resumed after its last step does this again, with the same result.
        """
        done = self._progress
        size, seed = self._settings.batch_size, self._settings.seed
        reestimate(swa.network, self._images, batch_size=size, at_once=self._stepper.at_once, seed=seed)
        metrics = validate(swa.network, self._validation, self._runtime.device).metrics
        say(f"the average over {swa.steps} epochs: mIoU {metrics.miou:.4f}, the best epoch {done.miou:.4f}")
        done.history[-1]["swa"] = metrics.as_tree()
        wins = metrics.miou > done.miou
        if wins:
            self._take(done.epoch, metrics, swa.network)
        return wins

    def _keep(self, name: str, miou: float) -> None:
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        card = self._card.model_copy(update={"miou_val": miou})
        checkpoint.save(folder, self._stepper.average.network, card)

    def _save(self) -> None:
        self._state.save(
            {
                "progress": vars(self._progress).copy(),
                "stepper": self._stepper.state_dict(),
                "swa": None if self._swa is None else self._swa.state_dict(),
                "best": self._best,
            }
        )

    def _resume(self) -> None:
        state = self._state.load(self._runtime.device)
        if state is None:
            return
        self._stepper.load_state_dict(state["stepper"])
        if self._swa is not None:
            self._swa.load_state_dict(state["swa"])
        self._best = {name: tensor.cpu() for name, tensor in state["best"].items()}
        # The steps done of the current epoch are part of it, so training resumes within the epoch.
        vars(self._progress).update(state["progress"])
        done = self._progress
        say(f"continuing after epoch {done.epoch} of {self._settings.epochs}, step {done.step} of {self._steps}")
