"""The one rule that judges a step's accuracy, and its warning when a split is too small to tell."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from compress.budget import Accuracy, Budget, require_kept
from export.errors import BudgetMissedError, UsageError
from export.scoring import Score

CLASSES = ("road", "sky", "pole")


def found(drop: float, interval: tuple[float, float], pole: float | None = 0.5) -> Accuracy:
    return Accuracy(
        miou_parent=0.8,
        miou=0.8 - drop,
        drop=drop,
        drop_interval=interval,
        iou_per_class={"road": 0.9, "sky": 0.9, "pole": pole},
        iou_interval_per_class={
            "road": (0.89, 0.91),
            "sky": (0.89, 0.91),
            "pole": None if pole is None else (pole - 0.1, pole + 0.1),
        },
        split="val",
        images=12,
    )


@pytest.mark.parametrize(
    ("drop", "interval", "warns", "fails"),
    [
        (0.002, (0.001, 0.003), False, False),
        (0.002, (-0.01, 0.02), True, False),
        (0.05, (0.04, 0.06), False, True),
        (0.05, (-0.01, 0.1), True, True),
        (0.01, (0.0, 0.009), False, False),
        (-0.02, (-0.03, -0.01), False, False),
    ],
)
def test_a_split_that_is_too_small_to_tell_is_warned_about(
    drop: float, interval: tuple[float, float], warns: bool, fails: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    if fails:
        with pytest.raises(BudgetMissedError, match=rf"{drop:.4f} mIoU is lost, at most 0\.01 may be"):
            require_kept(Budget(max_drop=0.01), found(drop, interval), Path("out"))
    else:
        require_kept(Budget(max_drop=0.01), found(drop, interval), Path("out"))
    said = capfd.readouterr().err
    assert ("warning: 12 images are too few to tell" in said) == warns
    assert f"95 % interval {interval[0]:.4f} to {interval[1]:.4f}" in said


@pytest.mark.parametrize(
    ("pole", "floor", "missed", "unresolved"),
    [
        (0.5, 0.3, None, False),
        (0.5, 0.45, None, True),
        (0.5, 0.55, "the IoU of pole is 0.5000, below its floor of 0.55", True),
        (0.5, 0.7, "the IoU of pole is 0.5000, below its floor of 0.7", False),
        (None, 0.1, "no image of the split shows it", False),
    ],
)
def test_a_class_has_a_floor(pole: float | None, floor: float, missed: str | None, unresolved: bool) -> None:
    budget, accuracy = Budget(min_iou={"pole": floor, "sky": 0.1}), found(0.3, (0.29, 0.31), pole)
    sentences = budget.missed(accuracy)
    assert len(sentences) == (missed is not None)
    assert all(missed in sentence for sentence in sentences if missed)
    assert len(budget.unresolved(accuracy)) == unresolved


def test_a_floor_of_no_class_is_a_mistake() -> None:
    Budget(min_iou={"pole": 0.5}).require_classes(CLASSES)
    with pytest.raises(UsageError, match="min_iou names car; the classes are road, sky, pole"):
        Budget(min_iou={"car": 0.5, "sky": 0.5}).require_classes(CLASSES)


def test_figures_come_from_scores_and_survive_a_record() -> None:
    rng = np.random.default_rng(0)
    parent, child = (
        Score(CLASSES, ("a", "b", "c"), np.eye(3, dtype=np.int64) * 50 + rng.integers(0, noise, (3, 3, 3)))
        for noise in (5, 40)
    )
    accuracy = Accuracy.of(parent, child)
    assert accuracy.drop == parent.miou - child.miou > 0
    assert accuracy.drop_interval == parent.drop_interval(child)
    assert (accuracy.split, accuracy.images) == ("val", 3)
    for name, interval in accuracy.iou_interval_per_class.items():
        iou = accuracy.iou_per_class[name]
        assert interval is not None
        assert iou is not None
        assert interval[0] <= iou <= interval[1]
    recorded = json.loads(json.dumps({**accuracy.as_result(), "speedup": 4.0}))
    assert Accuracy.from_result(recorded) == accuracy


def test_one_image_tells_nothing_of_the_spread(capfd: pytest.CaptureFixture[str]) -> None:
    alone = dataclasses.replace(found(0.002, (0.002, 0.002)), images=1)
    require_kept(Budget(max_drop=0.01), alone, Path("out"))
    assert "warning: 1 image is too few to tell whether the budget holds" in capfd.readouterr().err


def test_all_that_is_missed_is_told_at_once() -> None:
    with pytest.raises(BudgetMissedError, match=r"3x is out of reach; 0\.0500 mIoU is lost, at most 0\.01 may be"):
        require_kept(Budget(max_drop=0.01), found(0.05, (0.04, 0.06)), Path("out"), gain_missed="3x is out of reach")
