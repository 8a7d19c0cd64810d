"""What accuracy may be lost, and whether a measurement keeps to that: the one rule that judges every step."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from compress.progress import say
from compress.settings.prune import PruneSettings
from compress.settings.quantize import QuantizeSettings
from export.errors import BudgetMissedError, UsageError
from export.scoring import Score


@dataclass(frozen=True)
class Accuracy:
    """The accuracy of a child beside its parent's, on the images of one split."""

    miou_parent: float
    miou: float
    drop: float
    """mIoU of the parent less that of the child."""
    drop_interval: tuple[float, float]
    """95 %, paired bootstrap over images."""
    iou_per_class: Mapping[str, float | None]
    """Of the child; None for a class that occurs neither in truth nor in prediction."""
    iou_interval_per_class: Mapping[str, tuple[float, float] | None]
    """95 %, bootstrap over images."""
    split: str
    images: int

    @classmethod
    def of(cls, parent: Score, child: Score, split: str = "val") -> "Accuracy":
        """Raises ShapeError when the two were not scored on the same images."""
        return cls(
            miou_parent=parent.miou,
            miou=child.miou,
            drop=parent.miou - child.miou,
            drop_interval=parent.drop_interval(child),
            iou_per_class=child.iou_per_class,
            iou_interval_per_class=child.interval_per_class(),
            split=split,
            images=child.images_counted,
        )

    @classmethod
    def from_result(cls, result: Mapping[str, Any]) -> "Accuracy":
        """Read from a step's record, which holds `as_result` among other things.

        Raises UsageError for one that somebody has changed.
        """
        missing = [name for name in cls.__dataclass_fields__ if name not in result]
        if missing:
            raise UsageError(f"the record of the step lacks {', '.join(missing)}; remove its folder, and run it again")
        mine = {name: result[name] for name in cls.__dataclass_fields__}
        intervals = mine["iou_interval_per_class"].items()
        return cls(
            **{
                **mine,
                "drop_interval": tuple(mine["drop_interval"]),
                "iou_interval_per_class": {name: None if pair is None else tuple(pair) for name, pair in intervals},
            }
        )

    def as_result(self) -> dict[str, Any]:
        """Plain values, for a step's record."""
        return asdict(self)

    def __str__(self) -> str:
        low, high = self.drop_interval
        return (
            f"mIoU {self.miou_parent:.4f} -> {self.miou:.4f} on {self.images} validation images, a drop of "
            f"{self.drop:.4f} (95 % interval {low:.4f} to {high:.4f})"
        )


@dataclass(frozen=True)
class Budget:
    """The limits for one step, against the checkpoint that it starts from. None: no limit."""

    max_drop: float | None = None
    """mIoU that may be lost, absolute: 0.01 is one point."""
    min_iou: Mapping[str, float] = field(default_factory=dict)
    """The floor of a class, by its name."""

    @classmethod
    def of(cls, settings: PruneSettings | QuantizeSettings) -> "Budget":
        """The limits that a section of a recipe sets."""
        return cls(settings.max_drop, settings.min_iou)

    def require_classes(self, classes: tuple[str, ...]) -> None:
        """Raises UsageError for the floor of a class that does not exist."""
        strange = [name for name in self.min_iou if name not in classes]
        if strange:
            raise UsageError(f"min_iou names {', '.join(strange)}; the classes are {', '.join(classes)}")

    def look_at_floors(self, iou_per_class: Mapping[str, float | None]) -> None:
        """Warn of floors that the parent itself misses, before hours are spent on what cannot be kept.

        `iou_per_class` is the parent's on the validation split. Raises UsageError for the floor of a class that the
        split does not show.
        """
        for name, floor in self.min_iou.items():
            iou = iou_per_class[name]
            if iou is None:
                raise UsageError(
                    f"min_iou: no validation image shows {name}, so its floor of {floor:g} cannot be judged; leave it "
                    "out, or add an image that does"
                )
            if iou < floor:
                say(f"warning: the parent's IoU of {name} is {iou:.4f}, already below its floor of {floor:g}")

    def missed(self, found: Accuracy) -> list[str]:
        """The limits that are missed, a sentence each."""
        return list(self._missed(found))

    def unresolved(self, found: Accuracy) -> list[str]:
        """The limits that so few images cannot decide: they lie within the figure's interval. A sentence each."""
        return list(self._unresolved(found))

    def missing(self, drop: float, iou_per_class: Mapping[str, float | None]) -> float:
        """By how much the limits are missed: mIoU lost beyond `max_drop`, plus the IoU that classes lack to their
        floors."""
        beyond = 0.0 if self.max_drop is None else max(0.0, drop - self.max_drop)
        return beyond + sum(max(0.0, floor - (iou_per_class[name] or 0.0)) for name, floor in self.min_iou.items())

    def _missed(self, found: Accuracy) -> Iterator[str]:
        if self.max_drop is not None and found.drop > self.max_drop:
            yield f"{found.drop:.4f} mIoU is lost, at most {self.max_drop:g} may be"
        for name, floor in self.min_iou.items():
            iou = found.iou_per_class[name]
            if iou is None:
                yield f"the IoU of {name} is unknown, its floor is {floor:g}: no image of the split shows it"
            elif iou < floor:
                yield f"the IoU of {name} is {iou:.4f}, below its floor of {floor:g}"

    def _unresolved(self, found: Accuracy) -> Iterator[str]:
        if found.images == 1 and (self.max_drop is not None or self.min_iou):
            yield "a single image gives no interval"
            return
        low, high = found.drop_interval
        if self.max_drop is not None and low <= self.max_drop <= high:
            yield f"the drop lies anywhere from {low:.4f} to {high:.4f} (95 %), at most {self.max_drop:g} may be lost"
        for name, floor in self.min_iou.items():
            interval = found.iou_interval_per_class[name]
            if interval is not None and interval[0] <= floor <= interval[1]:
                yield (
                    f"the IoU of {name} lies anywhere from {interval[0]:.4f} to {interval[1]:.4f} (95 %), its floor is "
                    f"{floor:g}"
                )


def require_kept(budget: Budget, found: Accuracy, out: Path, *, gain_missed: str | None = None) -> None:
    """Log what was found, and warn where it is not enough to decide; `gain_missed` names a gain that was missed.

    Raises BudgetMissedError when `budget` is missed, or the gain is; what is in `out` is kept.
    """
    say(str(found))
    few = f"{found.images} image{'s are' if found.images != 1 else ' is'} too few"
    for sentence in budget.unresolved(found):
        say(f"warning: {few} to tell whether the budget holds: {sentence}")
    missed = [*([] if gain_missed is None else [gain_missed]), *budget.missed(found)]
    if missed:
        raise BudgetMissedError(f"the budget is missed: {'; '.join(missed)}. {found}. The best found is kept in {out}")
