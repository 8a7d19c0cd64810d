"""How the time of training steps is shared between data, augmentation and the network."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from compress.train.runtime import Runtime

Part = Literal["data", "augmentation", "network"]


@dataclass(frozen=True)
class Throughput:
    """Shares of a step, and the images per second of what feeds the network and of the network alone."""

    data_share: float
    """Waiting for the next batch: crops, padding, transfer, and reading what is not kept in memory."""
    augmentation_share: float
    feed_images_per_second: float
    """Data and augmentation."""
    network_images_per_second: float
    """Forward, backward, optimizer."""

    def __str__(self) -> str:
        return (
            f"data {self.data_share:.0%}, augmentation {self.augmentation_share:.0%} of a step; both together "
            f"{self.feed_images_per_second:.0f} images/s, the network {self.network_images_per_second:.0f} images/s"
        )


class Clock:
    """Times the parts of steps. The first step is left out: it includes loading libraries and choosing kernels."""

    def __init__(self, runtime: Runtime) -> None:
        # On a GPU only some steps are timed: waiting for it keeps the program from queueing work ahead.
        self._every = 1 if runtime.device.type == "cpu" else 16
        self._runtime = runtime
        self._seconds: dict[Part, float] = {"data": 0.0, "augmentation": 0.0, "network": 0.0}
        self._images = 0
        self._steps = 0

    @contextmanager
    def part(self, part: Part) -> Iterator[None]:
        """Time one part of the current step; an exception leaves the clock as it was."""
        if not self._is_timed():
            yield
            return
        self._runtime.synchronize()
        start = time.perf_counter()
        yield
        self._runtime.synchronize()
        self._seconds[part] += time.perf_counter() - start

    def end_step(self, images: int) -> None:
        """End the current step, which had `images` images."""
        if self._is_timed():
            self._images += images
        self._steps += 1

    def throughput(self) -> Throughput | None:
        """None when no step was timed."""
        if self._images == 0:
            return None
        data, augmentation, network = self._seconds["data"], self._seconds["augmentation"], self._seconds["network"]
        total = data + augmentation + network
        return Throughput(
            data_share=data / total,
            augmentation_share=augmentation / total,
            feed_images_per_second=self._images / (data + augmentation),
            network_images_per_second=self._images / network,
        )

    def _is_timed(self) -> bool:
        return self._steps % self._every == self._every - 1 and self._steps > 0
