"""How the learning rate, and with it the momentum, change over a training.

Both are functions of the step alone, so that a resumed training needs no other state.
"""

import math
from typing import NamedTuple

from compress.own import is_own
from compress.settings.fit import FitSettings
from compress.train import own

ONE_CYCLE_START, ONE_CYCLE_END = 1 / 25, 1 / 25e4
"""Shares of the peak, as in torch's OneCycleLR."""


class Pace(NamedTuple):
    """Learning rate and momentum of one step."""

    rate: float
    momentum: float | None = None
    """AdamW's first beta; None: unchanged."""


class Schedule:
    """A rise to the peak, and what follows it; once weights are averaged (`swa`), a constant rate."""

    def __init__(self, settings: FitSettings, steps_an_epoch: int) -> None:
        self._peak = settings.learning_rate
        self._settings = settings.schedule
        self._steps_an_epoch = steps_an_epoch
        self._total = settings.epochs * steps_an_epoch
        self._warmup = max(1, round(self._total * settings.warmup))
        # Torch's way of counting: the peak is the last step of the rise.
        self._rise = self._total * settings.warmup - 1
        kind = settings.schedule.kind
        self._own = own.schedule(kind) if is_own(kind) else None
        start = settings.swa.start
        self._averaged_from = math.inf if start is None else start * settings.epochs * steps_an_epoch
        self._averaged_rate = settings.swa.rate * self._peak

    def pace(self, step: int) -> Pace:
        """The pace of step 0, 1, ..."""
        if step >= self._averaged_from:
            return Pace(self._averaged_rate)
        if self._own is not None:
            return Pace(self._peak * self._own(step, self._total))
        if self._settings.kind == "onecycle":
            return self._one_cycle(step)
        if step < self._warmup:
            return Pace(self._peak * (step + 1) / self._warmup)
        return Pace(self._peak * self._fallen(step - self._warmup))

    def _fallen(self, step: int) -> float:
        """The share of the peak that is left `step` steps after the warm-up."""
        done = step / max(1, self._total - self._warmup)
        match self._settings.kind:
            case "poly":
                return math.pow(1 - done, self._settings.power)
            case "restarts":
                return _cosine(self._in_its_cycle(step))
            case _:
                return _cosine(done)

    def _in_its_cycle(self, step: int) -> float:
        """How far along its cycle `step` is, 0 to 1.

        Source: Loshchilov & Hutter 2017 (arXiv:1608.03983), whose T_0 and T_mult are the settings.
        """
        length = self._settings.restart_epochs * self._steps_an_epoch
        while step >= length:
            step -= length
            length *= self._settings.restart_factor
        return step / length

    def _one_cycle(self, step: int) -> Pace:
        """The rate goes up and down again by cosines, and the momentum the other way round.

        Source: Smith & Topin 2017 (arXiv:1708.07120), in the two phases of torch's OneCycleLR.
        """
        low, high = self._settings.momentum
        start, end = ONE_CYCLE_START * self._peak, ONE_CYCLE_END * self._peak
        if step < self._rise:
            up = 1 - _cosine(step / self._rise)
            return Pace(start + (self._peak - start) * up, high + (low - high) * up)
        fall = self._total - 1 - max(0.0, self._rise)
        down = 1 - _cosine((step - max(0.0, self._rise)) / fall) if fall > 0 else 0.0
        return Pace(self._peak + (end - self._peak) * down, low + (high - low) * down)


def _cosine(done: float) -> float:
    """From 1 to 0 while `done` goes from 0 to 1."""
    return 0.5 * (1 + math.cos(math.pi * done))
