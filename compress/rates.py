"""What a learning-rate range test found, as data, and the rate that it suggests. No torch.

Source of the test: Smith 2017 (arXiv:1506.01186).
"""

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

MEMORY = 0.9
"""Decay of the smoothed loss: a single batch says little."""
EXPLODED = 4.0
"""Times the lowest smoothed loss so far; steps beyond it only take time and distort the plot."""
LEAST_FALL = 0.01
"""Share of the initial loss by which it must fall for a tenfold rate; less is noise."""
WARM = 10
"""Steps at the start that are left out, because their smoothed loss is hardly an average yet."""


class RateTest(BaseModel):
    """Losses of one training whose learning rate rises exponentially."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    data: str
    """Path of the dataset."""
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    """Loss of each step's batch, before the step."""

    @property
    def smoothed(self) -> tuple[float, ...]:
        return tuple(smoothed(self.losses))

    @property
    def lowest(self) -> float:
        """The rate at which the smoothed loss is least: beyond it training becomes unstable."""
        return self.rates[self._lowest]

    @property
    def suggested(self) -> float | None:
        """The rate, to two digits, below `lowest` at which the smoothed loss falls fastest over log rate; None if it
        falls nowhere."""
        curve, logs = self.smoothed, [math.log10(rate) for rate in self.rates]
        # Where training is unstable the loss jumps, and falls fastest after a jump.
        slopes = {
            index: (curve[index + 1] - curve[index - 1]) / (logs[index + 1] - logs[index - 1])
            for index in range(WARM, self._lowest)
        }
        if not slopes:
            return None
        steepest = min(slopes, key=slopes.__getitem__)
        falls = slopes[steepest] < -LEAST_FALL * curve[WARM]
        return float(f"{self.rates[steepest]:.2g}") if falls else None

    @property
    def _lowest(self) -> int:
        curve = self.smoothed
        return min(range(len(curve)), key=curve.__getitem__)


def smoothed(losses: Sequence[float]) -> list[float]:
    """Moving averages that do not begin at zero: Kingma and Ba's bias correction (2015, arXiv:1412.6980)."""
    mean, curve = 0.0, []
    for step, loss in enumerate(losses, start=1):
        mean = MEMORY * mean + (1 - MEMORY) * loss
        curve.append(mean / (1 - MEMORY**step))
    return curve


def has_exploded(losses: Sequence[float]) -> bool:
    """Whether there is nothing more to be learned from higher rates."""
    curve = smoothed(losses)
    return len(curve) > WARM and curve[-1] > EXPLODED * min(curve[WARM:])
