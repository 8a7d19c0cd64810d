"""What a killed training resumes from: one file, which can be written at any step."""

import io
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from compress.steps import TRAINING_STATE
from export.files import write_atomic

STATE = TRAINING_STATE
SECONDS_BETWEEN_SAVES = 20.0
SHARE_OF_THE_TIME = 0.02
"""Share of the time that saving may take; where writing is slow, saves are less frequent."""


@dataclass
class Progress:
    """How far a training is. Randomness depends on seed, epoch and step, so these define its state, too."""

    epoch: int = 0
    """Epochs done."""
    step: int = 0
    """Steps done of the current epoch."""
    loss_sum: float = 0.0
    """Sum over the steps of this epoch that were not skipped."""
    losses: int = 0
    norm_sum: float = 0.0
    """Sum of the gradients' norms before clipping, over the same steps."""
    miou: float = -1.0
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    """One entry per epoch: epoch, mean loss and gradient norm (None if every step was skipped), the number of skipped
    steps, and if it was validated `Metrics.as_tree`."""

    def add(self, loss: float | None, norm: float) -> None:
        """Count a step; None is one that was skipped."""
        self.step += 1
        if loss is not None:
            self.loss_sum += loss
            self.losses += 1
            self.norm_sum += norm

    def end_epoch(self, figures: dict[str, Any]) -> None:
        """Close the current epoch with `figures` beside its mean loss."""
        self.epoch += 1
        self.history.append(
            {
                "epoch": self.epoch,
                "loss": self._mean(self.loss_sum),
                "gradient_norm": self._mean(self.norm_sum),
                "skipped": self.step - self.losses,
                **figures,
            }
        )
        self.step, self.loss_sum, self.losses, self.norm_sum = 0, 0.0, 0, 0.0

    def _mean(self, total: float) -> float | None:
        return total / self.losses if self.losses else None


class StateFile:
    """A file of plain data and tensors in a folder: whole or absent, and read without unpickling anything else."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / STATE
        self._saved = time.monotonic()
        self._pause = SECONDS_BETWEEN_SAVES

    def is_due(self) -> bool:
        return time.monotonic() - self._saved > self._pause

    def save(self, state: dict[str, Any]) -> None:
        start = time.monotonic()
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(self._path, buffer.getvalue())
        self._saved = time.monotonic()
        self._pause = max(SECONDS_BETWEEN_SAVES, (self._saved - start) / SHARE_OF_THE_TIME)

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """What was saved last; None in a new folder."""
        if not self._path.exists():
            return None
        state: dict[str, Any] = torch.load(self._path, map_location=device, weights_only=True)
        return state
