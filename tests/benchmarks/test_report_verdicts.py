"""The verdicts of the report, also where they are negative."""

from pathlib import Path
from typing import Any

import pytest
from support.reports import FOUR, make_report

from benchmarks.report.results import Goals, Report, Verdict
from benchmarks.report.words import TIMES, headline, judgement
from export.manifest import Accuracy

# mIoU of `support.reports.score_of` with h of 100 hits in every class is h / (200 - h).
CONVERGED = ((95, 95), (94, 95), (95, 94), (94, 94))
BEATEN = ((90, 90), (90, 90), (91, 91), (90, 91))


def about(report: Report, words: str) -> Verdict:
    (found,) = [verdict for verdict in report.verdicts if words in verdict.text]
    return found


def test_a_baseline_that_its_compression_beats_is_not_converged(tmp_path: Path) -> None:
    report = make_report(tmp_path, hits=BEATEN)
    verdict = about(report, "converged")
    assert verdict.text == "baseline not converged"
    assert not verdict.ok
    assert "dense-int8 scores 0.8349, dense-fp32 0.8182" in verdict.detail
    assert not report.ok
    assert judgement(report) == "1 of 3 checks failed: baseline not converged."


def test_a_point_above_is_still_noise(tmp_path: Path) -> None:
    report = make_report(tmp_path, hits=((90, 90), (90, 90), (90, 91), (90, 90)))
    assert report.models[2].miou == pytest.approx(0.8265, abs=1e-4)
    assert about(report, "above the baseline").ok


def test_a_converged_baseline_is_said_to_be_one(tmp_path: Path) -> None:
    report = make_report(tmp_path, hits=CONVERGED)
    assert about(report, "no compressed model scores more than 0.01 above the baseline").ok
    assert report.ok
    assert judgement(report) == "All 3 checks passed."


def test_a_larger_model_that_scores_more_says_nothing_about_the_baseline(tmp_path: Path) -> None:
    models = {"small": {"macs": 10}, "large": {"macs": 1000}}
    report = make_report(tmp_path, models=models, milliseconds=(5, 50), hits=((80, 80), (95, 95)))
    assert report.verdicts == ()


def made_of(weights: str, parent: str | None = None, **fields: Any) -> dict[str, Any]:
    """Fields of the manifest of a bundle of the checkpoint `weights`, cut from `parent`."""
    cut = {"parent": parent * 64} if parent else {}
    return {"parents": {"checkpoint": weights * 64, **cut}, **fields}


@pytest.mark.parametrize(
    ("last", "judged"),
    [
        pytest.param(made_of("a", precision="int8", macs=1000), True, id="the same weights in INT8"),
        pytest.param(made_of("b", "a", macs=10), True, id="cut from it"),
        pytest.param(made_of("c", "b", macs=10), True, id="cut from what was cut from it"),
        pytest.param(made_of("c", "e", macs=10), True, id="cut from what is not in the comparison"),
        pytest.param(made_of("d", macs=10), False, id="trained by itself"),
        pytest.param(made_of("c", "d", macs=10), False, id="cut from what was trained by itself"),
    ],
)
def test_only_what_was_made_of_the_baseline_says_whether_it_converged(
    tmp_path: Path, last: dict[str, Any], judged: bool
) -> None:
    models = {
        "dense": made_of("a", macs=1000),
        "cut": made_of("b", "a", macs=500),
        "narrow": made_of("d", macs=20),
        "last": last,
    }
    report = make_report(tmp_path, models=models, milliseconds=(9, 5, 3, 2), hits=((80,), (80,), (80,), (95,)))
    assert report.ok is not judged
    assert ("last scores" in about(report, "converged" if judged else "above the baseline").detail) is judged


def test_int8_is_compared_with_the_float_form_of_its_own_network(tmp_path: Path) -> None:
    models = {
        "one": made_of("a", macs=1000),
        "two": made_of("b", macs=1000),
        "two-int8": made_of("b", macs=1000, precision="int8"),
    }
    report = make_report(tmp_path, models=models, milliseconds=(9, 5, 3), hits=None)
    assert "of two" in about(report, "INT8 faster").detail


def test_a_bundle_for_another_runtime_is_not_judged_by_this_one(tmp_path: Path) -> None:
    models = {"float": made_of("a"), "int8": made_of("a", precision="int8", target="openvino")}
    report = make_report(tmp_path, models=models, milliseconds=(9, 20), hits=((80,), (80,)))
    assert not any("INT8" in verdict.text for verdict in report.verdicts)
    assert any("int8 was made for openvino" in note for note in report.notes)


def test_int8_slower_than_float_is_a_failure(tmp_path: Path) -> None:
    report = make_report(tmp_path, milliseconds=(60, 20, 61, 9))
    slow, fast = about(report, "dense-int8"), about(report, "pruned-int8")
    assert (slow.ok, slow.text) == (False, "dense-int8: INT8 not faster than float")
    assert "61.9 ms against 60.9 ms of dense-fp32" in slow.detail
    assert fast.ok
    assert not report.ok


def test_int8_that_wins_by_less_than_drift_is_told_so(tmp_path: Path) -> None:
    close, clear = (about(make_report(tmp_path, milliseconds=(60, 20, ms, 9)), "dense-int8") for ms in (59, 57))
    assert close.ok
    assert "less than 3%" in close.detail
    assert clear.ok
    assert "less than" not in clear.detail


def test_int8_without_its_float_parent_is_not_judged(tmp_path: Path) -> None:
    models = {"dense-fp32": FOUR["dense-fp32"], "pruned-int8": FOUR["pruned-int8"]}
    report = make_report(tmp_path, models=models, milliseconds=(9, 20), hits=((95, 95), (94, 94)))
    assert not any("INT8" in verdict.text for verdict in report.verdicts)


@pytest.mark.parametrize(
    ("goals", "words", "ok"),
    [
        (Goals(speedup=6.0), "speed-up goal met", True),
        (Goals(speedup=6.5), "speed-up goal missed", False),
        (Goals(max_drop=0.02), "accuracy goal met", True),
        (Goals(max_drop=0.005), "accuracy goal missed", False),
    ],
)
def test_goals_are_met_or_missed(tmp_path: Path, goals: Goals, words: str, ok: bool) -> None:
    # 61.3 / 9.87 is 6.21; 95 hits are 0.9048 mIoU, 94 are 0.8868.
    report = make_report(tmp_path, hits=CONVERGED, goals=goals)
    assert about(report, words).ok is ok
    assert report.ok is ok
    assert report.goals == goals


def test_a_drop_that_cannot_be_known_is_no_goal_met(tmp_path: Path) -> None:
    report = make_report(tmp_path, hits=None, goals=Goals(max_drop=0.02))
    assert about(report, "accuracy goal not checked").ok is False


@pytest.mark.parametrize(
    ("lookup", "margin", "ok"), [(0.70, None, True), (0.95, None, False), (0.78, 0.12, True), (0.80, 0.12, False)]
)
def test_the_look_up_table_is_the_floor(tmp_path: Path, lookup: float, margin: float | None, ok: bool) -> None:
    goals = Goals(above_lookup_table=margin)
    report = make_report(tmp_path, hits=CONVERGED, lookup_table_miou=lookup, goals=goals)
    assert about(report, "look-up table").ok is ok


def test_the_headline_names_the_figures(tmp_path: Path) -> None:
    report = make_report(tmp_path, hits=CONVERGED)
    size = report.models[0].size_bytes / report.models[-1].size_bytes
    assert headline(report) == (
        f"pruned-int8 is 6.21{TIMES} faster than dense-fp32 (10.0 against 62.2 ms), {size:.2f}{TIMES} smaller, "
        "and loses 0.0180 mIoU (0.9048 to 0.8868)."
    )


def test_headline_does_not_call_slower_faster_nor_a_gain_a_loss(tmp_path: Path) -> None:
    report = make_report(tmp_path, milliseconds=(10, 10, 10, 20), hits=((90, 90), (90, 90), (90, 90), (92, 92)))
    assert f"is 2.00{TIMES} slower than dense-fp32" in headline(report)
    assert "gains 0.0337 mIoU (0.8182 to 0.8519)" in headline(report)
    same = make_report(tmp_path, hits=((90, 90),) * 4)
    assert "loses no mIoU" in headline(same)


def test_headline_without_accuracy_says_so(tmp_path: Path) -> None:
    assert headline(make_report(tmp_path, hits=None)).endswith("the drop in accuracy is not known.")


def test_one_model_is_not_compared_with_itself(tmp_path: Path) -> None:
    report = make_report(tmp_path, models={"only": {}}, milliseconds=(20,), hits=((90, 90),))
    assert headline(report) == "only takes 20.3 ms an image and scores 0.8182 mIoU."
    assert judgement(report) == "Nothing to compare it with."


def test_scores_of_different_splits_meet_no_goal_and_break_no_baseline(tmp_path: Path) -> None:
    def quoted(split: str, miou: float) -> Accuracy:
        return Accuracy(split=split, images=9, miou=miou, miou_interval=(miou, miou), iou_per_class={})

    models: dict[str, dict[str, Any]] = {
        "dense-fp32": {"accuracy": quoted("test", 0.8)},
        "int8": {"accuracy": quoted("val", 0.9), "precision": "int8"},
    }
    report = make_report(tmp_path, models=models, milliseconds=(50, 10), hits=None, goals=Goals(max_drop=0.02))
    assert about(report, "accuracy goal not checked").ok is False
    assert not any("baseline" in verdict.text for verdict in report.verdicts)
