"""What the report on mixed precision makes of its figures."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.report.amp.markdown import failures, markdown
from benchmarks.report.amp.results import Accuracy, AmpReport, Cell, CellResult, SeedScore, Supply, Workload
from benchmarks.report.amp.table import grid, tables
from benchmarks.report.amp.verdicts import verdicts
from benchmarks.report.amp.write import write
from benchmarks.report.results import DataUsed, Verdict
from benchmarks.report.spread import T_975
from benchmarks.report.words import DASH, TIMES
from compress.recipe import Recipe
from export.machine import Machine

WORKLOAD = Workload(
    base=64, height=256, width=256, batch=8, channels=3, classes=12, steps=3, device="cuda", cell_seconds=600
)


def result(
    precision: Any, samples: tuple[float, ...], memory: float | None, *, last: bool = True, **fields: Any
) -> CellResult:
    given: dict[str, Any] = {
        "untimed_ms": (900.0, 30.0),
        "at_least_ms": None,
        "peak_memory_mib": memory,
        "params": 13_400_000,
        "compute_dtype": "float32",
        "compute_layout": "channels_last",
        "logits_NKHW": (8, 12, 256, 256),
        "rounding": 1e-6,
        "skipped_steps": 0,
        "failure": None,
    }
    return CellResult.of(Cell(precision=precision, channels_last=last, compiled=False), samples, **{**given, **fields})


def amp_report(*cells: CellResult, **fields: Any) -> AmpReport:
    given: dict[str, Any] = {
        "title": "What mixed precision is worth",
        "command": "compress bench amp",
        "date": "2026-11-24T00:00:00+00:00",
        "machine": Machine.here(),
        "device": "a GPU",
        "precision": "bfloat16",
        "reason": "it has it",
        "workload": WORKLOAD if cells else None,
        "cells": cells,
    }
    report = AmpReport(**{**given, **fields})
    return report.model_copy(update={"verdicts": verdicts(report)})


def accuracy(*pairs: tuple[float, float], supplies: tuple[Supply, ...] = ()) -> Accuracy:
    return Accuracy.of(
        [SeedScore(seed=seed, float32=plain, reduced=reduced) for seed, (plain, reduced) in enumerate(pairs)],
        data=DataUsed(name="discs", fingerprint="ab" * 32, split="test", images=3),
        recipe=Recipe().as_tree(),
        precision="bfloat16",
        supplies=supplies,
    )


def found(report: AmpReport, words: str) -> Verdict:
    (verdict,) = [verdict for verdict in report.verdicts if words in verdict.text]
    return verdict


CELLS = (
    result("float32", (120.0, 90.0, 100.0), 1000.0),
    result("float32", (150.0, 160.0, 140.0), 1100.0, last=False),
    result("tf32", (60.0, 60.0, 60.0), 1000.0),
    result("bfloat16", (38.0, 41.0, 40.0), 500.0),
)


def test_precision_is_judged_against_the_cell_that_differs_in_nothing_else() -> None:
    report = amp_report(*CELLS)
    faster, smaller = found(report, "faster"), found(report, "less memory")
    # Medians of 100 and 40 ms, not of 150 and 40: what channels_last gains is not the precision's.
    assert (faster.ok, faster.text) == (True, f"promise kept: 2.50{TIMES} faster")
    assert faster.detail.startswith(
        f"2.50{TIMES}, 40.0 ms a step against 100; bfloat16 channels_last eager against float32 "
    )
    assert f"3.75{TIMES} over float32 contiguous eager" in faster.detail
    assert f"1.50{TIMES} over tf32 channels_last eager" in faster.detail
    assert (smaller.ok, smaller.text) == (True, "promise kept: 47% less memory")
    assert smaller.detail.startswith("50% less, peak 500 MiB against 1,000")


def test_a_missed_promise_says_by_how_much() -> None:
    report = amp_report(CELLS[0], result("bfloat16", (50.0,), 600.0))
    assert (found(report, "faster").ok, found(report, "faster").text) == (False, f"promise missed: 2.50{TIMES} faster")
    assert found(report, "faster").detail.startswith(f"2.00{TIMES}")
    assert found(report, "less memory").detail.startswith("40% less")


def test_without_a_figure_nothing_is_claimed() -> None:
    stopped = result("bfloat16", (), None, at_least_ms=12_345.6, failure="stopped")
    report = amp_report(CELLS[0], stopped)
    assert [(v.ok, v.text.partition(":")[0]) for v in report.verdicts] == [(False, "promise not checked")] * 2
    assert [row[3:] for row in grid(report).rows] == [
        ("100", f"1.00{TIMES}", DASH, "1,000", "0%"),
        ("≥ 12,346", DASH, DASH, DASH, DASH),
    ]


def test_a_device_that_trains_in_float32_keeps_no_promise_of_mixed_precision() -> None:
    report = amp_report(*CELLS, precision="float32", reason="probe: bfloat16 is slower")
    assert [verdict.ok for verdict in report.verdicts] == [False, False]
    assert "chooses float32 here, probe: bfloat16 is slower" in report.verdicts[0].detail


def test_cells_that_failed_for_one_reason_share_a_line_and_stay_in_the_table() -> None:
    broken = [result(kind, (), None, failure="no compiler") for kind in ("float16", "bfloat16")]
    report = amp_report(CELLS[0], *broken)
    assert failures(report) == ["float16 channels_last eager, bfloat16 channels_last eager: no compiler"]
    assert [row[3] for row in grid(report).rows] == ["100", "failed", "failed"]
    assert "no compiler" in markdown(report, ())


def test_the_interval_is_that_of_paired_differences() -> None:
    # Differences of 0.01, 0.02 and 0.03: mean 0.02, deviation 0.01, t = 4.303 with two degrees of freedom.
    paired = accuracy((0.80, 0.79), (0.90, 0.88), (0.70, 0.67))
    assert paired.drop.mean == pytest.approx(0.02)
    assert paired.drop.deviation == pytest.approx(0.01)
    reach = 4.303 * 0.01 / math.sqrt(3)
    assert paired.drop_interval == pytest.approx((0.02 - reach, 0.02 + reach))
    assert paired.resolution == pytest.approx(reach)
    assert (paired.float32.mean, paired.float32.deviation) == pytest.approx((0.80, 0.10))
    assert accuracy((0.8, 0.7)).drop_interval is None


def test_the_quantiles_leave_a_fortieth_above_them() -> None:
    for freedom, quantile in enumerate(T_975, start=1):
        scale = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)
        steps, width = np.linspace(0, quantile, 200_001, retstep=True)
        density = scale * (1 + steps**2 / freedom) ** (-(freedom + 1) / 2)
        assert 0.5 + (density.sum() - (density[0] + density[-1]) / 2) * width == pytest.approx(0.975, abs=3e-5)


@pytest.mark.parametrize(
    ("pairs", "ok", "words"),
    [
        (((0.8, 0.799), (0.7, 0.699), (0.6, 0.599)), True, "the loss lies between 0.0010 and 0.0010 (95 %)"),
        (((0.8, 0.78), (0.7, 0.68), (0.6, 0.58)), False, "the loss lies between 0.0200 and 0.0200 (95 %)"),
        (((0.8, 0.8), (0.7, 0.71), (0.6, 0.59)), True, "cannot tell: they resolve a difference of 0.0248"),
        (((0.8, 0.797),), True, "loses 0.0030 mIoU"),
        (((0.8, 0.8),), True, "one seed says nothing about the spread"),
    ],
)
def test_lost_miou_is_judged_with_what_the_seeds_can_tell(
    pairs: tuple[tuple[float, float], ...], ok: bool, words: str
) -> None:
    report = amp_report(accuracy=accuracy(*pairs))
    (verdict,) = report.verdicts
    assert verdict.ok is ok
    assert words in verdict.detail
    (table,) = tables(report)
    assert len(table.rows) == len(pairs) + 1


@pytest.mark.parametrize(("slowest", "ok"), [(150.0, True), (149.0, False)])
def test_the_training_that_waits_most_for_its_images_is_judged(slowest: float, ok: bool) -> None:
    supplies = tuple(
        Supply(precision=precision, seed=0, feed_images_s=feed, network_images_s=100.0)
        for precision, feed in (("float32", 900.0), ("bfloat16", slowest))
    )
    report = amp_report(accuracy=accuracy((0.8, 0.8), supplies=supplies))
    verdict = found(report, "data and augmentation supply")
    assert verdict.ok is ok
    assert verdict.detail.startswith(f"at least {slowest / 100:.2f}{TIMES}, {slowest:.0f} against 100 images a second")
    (_, table) = tables(report)
    assert [row[-1] for row in table.rows] == [f"9.00{TIMES}", f"{slowest / 100:.2f}{TIMES}"]
    assert "## Whether the network waits for its images" in markdown(report, ())


def test_the_files_of_a_report_are_replaced_together(tmp_path: Path) -> None:
    report = amp_report(*CELLS, accuracy=accuracy((0.8, 0.79), (0.9, 0.88)))
    write(report, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.md", "step.png", "memory.png"}
    assert AmpReport.model_validate_json((tmp_path / "report.json").read_text()) == report
    text = (tmp_path / "report.md").read_text()
    assert "](step.png)" in text
    assert "compress bench amp" in text
    write(amp_report(accuracy=accuracy((0.8, 0.79))), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.md"}
