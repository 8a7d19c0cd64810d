"""The figures of `compress bench ablation`: what its report.json holds.

mIoU is between 0 and 1.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Literal

from benchmarks.report.results import DataUsed, Measurement, Part
from benchmarks.report.spread import Spread, quantile

Judgement = Literal["better", "worse", "within the spread", "not known"]


class Run(Part):
    """One training."""

    seed: int
    val: float
    """mIoU of the best epoch, which this split chose."""
    test: float
    """mIoU of the same weights on the test split, which chose nothing."""
    train: float | None
    """mIoU on a few batches of training images without augmentation; far above `val`, the network has memorised them.
    None where nothing counted in them."""
    best_epoch: int
    seconds: float
    """Of the training; after an interruption, of what was left."""


class Variant(Part):
    """A change, and the trainings with it."""

    group: str
    name: str
    settings: tuple[str, ...]
    """What is changed, as `--set` takes it."""
    same_as_base: bool
    """The base has these settings already; its trainings stand for this row."""
    runs: tuple[Run, ...]
    failure: str | None
    """Why there are fewer trainings than were asked for."""


class Difference(Part):
    """Mean of a variant's trainings minus that of the base's."""

    mean: float
    interval: tuple[float, float] | None
    """95 %; None where no spread is known."""

    @property
    def judgement(self) -> Judgement:
        if self.interval is None:
            return "not known"
        low, high = self.interval
        return "better" if low > 0 else "worse" if high < 0 else "within the spread"


class Deviation(Part):
    """How far apart trainings lie that differ in their seed alone, taken over all variants together.

    Two or three seeds of one variant say next to nothing about its own spread.
    """

    val: float
    test: float
    degrees: int
    """Of freedom: trainings minus variants, among those with several trainings."""

    @classmethod
    def of(cls, groups: Sequence[Sequence[Run]]) -> "Deviation | None":
        """None where no variant has two trainings."""
        several = [runs for runs in groups if len(runs) > 1]
        degrees = sum(len(runs) - 1 for runs in several)
        if not degrees:
            return None

        def pooled(figures: Sequence[Sequence[float]]) -> float:
            squares = sum((value - fmean(values)) ** 2 for values in figures for value in values)
            return math.sqrt(squares / degrees)

        return cls(
            val=pooled([[run.val for run in runs] for runs in several]),
            test=pooled([[run.test for run in runs] for runs in several]),
            degrees=degrees,
        )


class AblationReport(Measurement):
    """A recipe, and what each change of it is worth."""

    data: DataUsed
    images: dict[str, int]
    """Of each split."""
    recipe: dict[str, Any]
    """The base; only the seed differs."""
    base: tuple[Run, ...]
    variants: tuple[Variant, ...]
    deviation: Deviation | None
    differences_val: dict[str, Difference]
    """By `group.name`; of the variants with a training."""
    differences_test: dict[str, Difference]

    @classmethod
    def of(cls, base: Sequence[Run], variants: Sequence[Variant], **fields: Any) -> "AblationReport":
        """Compare each of `variants` with `base`."""
        others = [variant for variant in variants if variant.runs and not variant.same_as_base]
        deviation = Deviation.of([base, *(variant.runs for variant in others)])

        def difference(variant: Variant, split: Literal["val", "test"]) -> Difference:
            mean = fmean(getattr(run, split) for run in variant.runs) - fmean(getattr(run, split) for run in base)
            if deviation is None:
                return Difference(mean=mean, interval=None)
            error = getattr(deviation, split) * math.sqrt(1 / len(variant.runs) + 1 / len(base))
            reach = quantile(deviation.degrees) * error
            return Difference(mean=mean, interval=(mean - reach, mean + reach))

        return cls(
            base=tuple(base),
            variants=tuple(variants),
            deviation=deviation,
            differences_val={key(variant): difference(variant, "val") for variant in others},
            differences_test={key(variant): difference(variant, "test") for variant in others},
            **fields,
        )

    def by_group(self) -> Mapping[str, Sequence[Variant]]:
        """The variants by group, in the order of the file."""
        groups: dict[str, list[Variant]] = {}
        for variant in self.variants:
            groups.setdefault(variant.group, []).append(variant)
        return groups

    def failures(self) -> list[str]:
        return [f"{key(variant)}: {variant.failure}" for variant in self.variants if variant.failure is not None]


def key(variant: Variant) -> str:
    return f"{variant.group}.{variant.name}"


def of_runs(runs: Sequence[Run], split: Literal["val", "test"]) -> Spread:
    """mIoU over the seeds."""
    return Spread.of([getattr(run, split) for run in runs])
