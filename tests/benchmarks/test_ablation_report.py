"""What the report on an ablation makes of its figures."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.recipes import TINY_RECIPE

from benchmarks.report.ablation.results import AblationReport, Run, Variant
from benchmarks.report.ablation.table import of_group
from benchmarks.report.ablation.write import headlines, write
from benchmarks.report.results import DataUsed
from benchmarks.report.words import DASH, MINUS
from export.machine import Machine


def runs(*tests: float) -> tuple[Run, ...]:
    """One run for each test score, with its own seed; validation scores two points more."""
    return tuple(
        Run(seed=seed, val=test + 0.02, test=test, train=0.9, best_epoch=3, seconds=40.0 + seed)
        for seed, test in enumerate(tests)
    )


def variant(name: str, *tests: float, group: str = "losses", **fields: Any) -> Variant:
    given = {"settings": ("train.epochs=1",), "same_as_base": False, "failure": None}
    return Variant(group=group, name=name, runs=runs(*tests), **{**given, **fields})


def report(base: tuple[float, ...], *variants: Variant) -> AblationReport:
    return AblationReport.of(
        runs(*base),
        variants,
        title="What each part of the training is worth",
        command="compress bench ablation",
        date="2026-11-28T00:00:00+00:00",
        machine=Machine.here(),
        data=DataUsed(name="discs", fingerprint="f", split="test", images=4),
        images={"train": 8, "val": 3, "test": 4},
        recipe=TINY_RECIPE.as_tree(),
        notes=("encoders.big was left out: no such package",),
    )


FOUR = report(
    (0.80, 0.82, 0.81),
    variant("better", 0.90, 0.91, 0.92),
    variant("same", 0.80, 0.83, 0.81),
    variant("worse", 0.60, group="encoders"),
    variant("itself", same_as_base=True, group="encoders"),
    variant("broken", failure="seed 0: the loss was not finite", group="encoders"),
)


def test_the_spread_is_taken_over_all_trainings() -> None:
    assert FOUR.deviation is not None
    scatter = [[0.80, 0.82, 0.81], [0.90, 0.91, 0.92], [0.80, 0.83, 0.81]]
    assert FOUR.deviation.degrees == 6
    assert FOUR.deviation.test == pytest.approx(math.sqrt(np.mean([np.var(one, ddof=1) for one in scatter])))
    assert FOUR.deviation.val == pytest.approx(FOUR.deviation.test)
    difference = FOUR.differences_test["losses.better"]
    assert difference.mean == pytest.approx(0.10)
    # 2.447: the 0.975 quantile of Student's t with 6 degrees of freedom.
    reach = 2.447 * FOUR.deviation.test * math.sqrt(1 / 3 + 1 / 3)
    assert difference.interval == pytest.approx((0.10 - reach, 0.10 + reach))
    one = FOUR.differences_test["encoders.worse"]
    assert one.interval is not None
    assert one.interval[1] - one.mean == pytest.approx(2.447 * FOUR.deviation.test * math.sqrt(1 + 1 / 3))


def test_what_lies_within_the_spread_is_called_so() -> None:
    judged = {name: difference.judgement for name, difference in FOUR.differences_test.items()}
    assert judged == {"losses.better": "better", "losses.same": "within the spread", "encoders.worse": "worse"}
    better, worse = headlines(FOUR)
    assert better.endswith("beyond the spread: losses.better (0.1000).")
    assert worse.endswith("beyond the spread: encoders.worse (0.2100).")
    single = report((0.8,), variant("one", 0.9))
    assert single.deviation is None
    assert single.differences_test["losses.one"].judgement == "not known"
    assert list(headlines(single)) == [
        "One seed says nothing about the spread, so no difference can be told from chance; give --seeds."
    ]


def test_a_group_is_a_table_under_the_base() -> None:
    rows = {row[0]: row for row in of_group(FOUR, "encoders").rows}
    assert list(rows) == ["base", "worse", "itself", "broken"]
    assert rows["base"][1:5] == ("3", "0.9000", "0.8300 ± 0.0100", "0.8100 ± 0.0100")
    assert rows["worse"][1:5] == ("1", "0.9000", "0.6200", "0.6000")
    assert rows["worse"][6].startswith(f"{MINUS}0.2100 ± 0.")
    assert rows["worse"][7:] == ("worse", "40.0")
    assert rows["itself"][7] == "is the base"
    assert rows["broken"] == ("broken", "0", *(DASH,) * 5, "failed", DASH)


def test_the_files_say_all_of_it(tmp_path: Path) -> None:
    write(FOUR, tmp_path)
    assert AblationReport.model_validate_json((tmp_path / "report.json").read_text()) == FOUR
    text = (tmp_path / "report.md").read_text()
    for words in (
        "## What failed",
        "encoders.broken: seed 0: the loss was not finite",
        "encoders.big was left out",
        "6 degrees of freedom",
        "`train.epochs=8`",
        "8 train, 3 val, 4 test images",
    ):
        assert words in text
    assert (tmp_path / "differences.png").exists()
    write(report((0.8,)), tmp_path)
    assert not (tmp_path / "differences.png").exists()
