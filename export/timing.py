"""Latency of several models, measured side by side.

Machines drift: the same model ran in 38 to 72 ms in different processes. So the models take turns within
one process, each round in another order, and what is reported is a ratio of medians of one run.
"""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Samples:
    """Raw times of one model, in milliseconds, in the order in which they were taken."""

    milliseconds: tuple[float, ...]

    def percentile(self, q: float) -> float:
        return float(np.percentile(self.milliseconds, q))

    @property
    def median(self) -> float:
        return self.percentile(50)

    @property
    def fastest(self) -> float:
        return min(self.milliseconds)


def interleaved(
    models: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 3,
    seed: int = 0,
    on_round: Callable[[], None] = lambda: None,
) -> dict[str, Samples]:
    """Time each of `models` once a round, in a shuffled order, after `warmup` untimed rounds."""
    order = list(models)
    shuffle = random.Random(seed).shuffle
    taken: dict[str, list[float]] = {name: [] for name in models}
    for index in range(warmup + rounds):
        shuffle(order)
        for name in order:
            start = time.perf_counter_ns()
            models[name]()
            elapsed = time.perf_counter_ns() - start
            if index >= warmup:
                taken[name].append(elapsed / 1e6)
        on_round()
    return {name: Samples(tuple(times)) for name, times in taken.items()}
