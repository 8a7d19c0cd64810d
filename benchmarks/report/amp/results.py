"""The figures of `compress bench amp`: what its report.json holds.

Times are milliseconds a training step, memory is in MiB, mIoU is between 0 and 1.
"""

import math
from collections.abc import Sequence
from statistics import median
from typing import Any, Literal

from benchmarks.report.results import DataUsed, Measurement, Part, Verdict
from benchmarks.report.spread import Spread, quantile

GridPrecision = Literal["float32", "tf32", "float16", "bfloat16"]
"""float32 is true float32: cuDNN may not round to TF32 in it, as torch lets it by default."""


class Cell(Part):
    """One way to run the same training step."""

    precision: GridPrecision
    channels_last: bool
    compiled: bool
    """By torch.compile."""

    @property
    def layout(self) -> str:
        return "channels_last" if self.channels_last else "contiguous"

    @property
    def mode(self) -> str:
        return "compiled" if self.compiled else "eager"

    @property
    def name(self) -> str:
        return f"{self.precision} {self.layout} {self.mode}"


class Workload(Part):
    """The step that all cells run: that of `compress train`, with a UNet, on noise."""

    base: int
    """Width of the UNet's first level."""
    height: int
    width: int
    batch: int
    channels: int
    classes: int
    steps: int
    """Timed ones of each cell."""
    device: str = "auto"
    """As torch names it."""
    cell_seconds: float
    """A cell that needs longer, the compiler included, is stopped."""


class CellResult(Part):
    """What one cell cost; a cell that could not run says why."""

    cell: Cell
    step_ms: float | None
    """Median of `samples_ms`; None where no step was timed."""
    samples_ms: tuple[float, ...]
    """Raw times in the order in which they were taken."""
    untimed_ms: tuple[float, ...]
    """Of the steps that warm up, in order; the first one includes the compiler."""
    at_least_ms: float | None
    """If no step was timed because one takes too long: the longest time that was seen, of a finished step or not."""
    peak_memory_mib: float | None
    """On a GPU what its allocator gave out; on a CPU the largest resident set less that after a tiny network's step."""
    params: int | None
    compute_dtype: str | None
    """Of the logits, as torch names it."""
    compute_layout: str | None
    """Of the logits: channels_last or contiguous."""
    logits_NKHW: tuple[int, ...] | None
    """Their shape."""
    rounding: float | None
    """Largest error of one convolution in this process against float64, over its largest value: about 1e-6 in
    float32, 5e-4 in TF32 and float16, 4e-3 in bfloat16."""
    skipped_steps: int
    """Timed steps without the optimizer, and so cheaper, because a gradient was beyond float16."""
    failure: str | None
    """Why there are fewer timed steps than were asked for."""

    @classmethod
    def of(cls, cell: Cell, samples_ms: Sequence[float], **fields: Any) -> "CellResult":
        return cls(cell=cell, step_ms=median(samples_ms) if samples_ms else None, samples_ms=samples_ms, **fields)


MAX_SEEDS = 10
"""Trainings of each precision; what more of them would tell is not worth their time."""


class SeedScore(Part):
    """Two trainings that differ in nothing but their precision."""

    seed: int
    float32: float
    """mIoU."""
    reduced: float


class Supply(Part):
    """How many images a second were made ready for a training's network, and how many it took."""

    precision: str
    seed: int
    feed_images_s: float
    """Data and augmentation alone."""
    network_images_s: float
    """Forward, backward and optimizer alone."""

    @property
    def ratio(self) -> float:
        return self.feed_images_s / self.network_images_s


class Accuracy(Part):
    """What training in `precision` costs in mIoU, against float32 from the same seeds.

    Every network is scored in float32: what differs is how it was trained.
    """

    data: DataUsed
    recipe: dict[str, Any]
    """Of all trainings, apart from precision and seed."""
    precision: str
    seeds: tuple[SeedScore, ...]
    float32: Spread
    reduced: Spread
    drop: Spread
    """float32 minus reduced, seed by seed; negative where the reduced precision scores higher."""
    drop_interval: tuple[float, float] | None
    """95 %, Student's t over the seeds' differences; None for one seed."""
    supplies: tuple[Supply, ...] = ()
    """Of every training that had steps to time."""

    @classmethod
    def of(cls, seeds: Sequence[SeedScore], **fields: Any) -> "Accuracy":
        drop = Spread.of([seed.float32 - seed.reduced for seed in seeds])
        interval = None
        if drop.deviation is not None:
            reach = quantile(len(seeds) - 1) * drop.deviation / math.sqrt(len(seeds))
            interval = (drop.mean - reach, drop.mean + reach)
        return cls(
            seeds=tuple(seeds),
            float32=Spread.of([seed.float32 for seed in seeds]),
            reduced=Spread.of([seed.reduced for seed in seeds]),
            drop=drop,
            drop_interval=interval,
            **fields,
        )

    @property
    def resolution(self) -> float | None:
        """A smaller difference cannot be told from none: half of the interval."""
        return None if self.drop_interval is None else (self.drop_interval[1] - self.drop_interval[0]) / 2


class AmpReport(Measurement):
    """What mixed precision gains and loses here, and everything that is needed to reproduce it."""

    device: str
    """The processor that trained, in words."""
    precision: GridPrecision
    """What `compress train` chooses on this device."""
    reason: str
    """Of that choice."""
    workload: Workload | None
    """None where the grid was not asked for."""
    cells: tuple[CellResult, ...] = ()
    accuracy: Accuracy | None = None
    verdicts: tuple[Verdict, ...] = ()

    def result(self, cell: Cell) -> CellResult | None:
        """The result of `cell`, if the grid has it."""
        return next((result for result in self.cells if result.cell == cell), None)

    def counterpart(self, result: CellResult) -> CellResult | None:
        """The same cell in float32, which shows what precision alone gains."""
        return self.result(result.cell.model_copy(update={"precision": "float32"}))
