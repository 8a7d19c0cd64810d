"""From measurements to figures, and the contract of report.json."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.reports import CLASSES, FOUR, latency_of, make_bundles, make_report, score_of

from benchmarks.report.build import build
from benchmarks.report.results import Latency, Report
from benchmarks.report.write import write
from export.machine import Machine
from export.manifest import Accuracy
from export.manifest import Latency as MeasuredLatency
from export.timing import Samples


def quoted(split: str, miou: float) -> Accuracy:
    return Accuracy(
        split=split, images=9, miou=miou, miou_interval=(miou - 0.01, miou + 0.01), iou_per_class={"class-0": miou}
    )


def test_report_json_holds_what_others_rely_on(tmp_path: Path) -> None:
    report = make_report(tmp_path)
    write(report, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [model["name"] for model in content["models"]] == ["dense-fp32", "pruned-fp32", "dense-int8", "pruned-int8"]
    for model in content["models"]:
        assert {"params", "macs", "size_bytes", "miou", "latency_ms"} <= model.keys()
        assert {"p50", "p95", "p99", "samples"} <= model["latency_ms"].keys()
    first, last = content["models"][0], content["models"][-1]
    assert content["speedup"] == pytest.approx(first["latency_ms"]["p50"] / last["latency_ms"]["p50"])
    assert content["miou_drop"] == pytest.approx(first["miou"] - last["miou"])
    assert content["reference"] == "dense-fp32"
    assert content["compressed"] == "pruned-int8"


def test_report_json_reads_back_as_the_same_report(tmp_path: Path) -> None:
    report = make_report(tmp_path, lookup_table_miou=0.61, notes=("a note",), latency={"failure": "gone"})
    write(report, tmp_path / "out")
    assert Report.model_validate_json((tmp_path / "out" / "report.json").read_text()) == report


@given(st.lists(st.floats(0.01, 1e4), min_size=1, max_size=60))
def test_percentiles_are_numpys(times: list[float]) -> None:
    latency = Latency.of(Samples(tuple(times)))
    assert [latency.p50, latency.p95, latency.p99] == pytest.approx(np.percentile(times, [50, 95, 99]).tolist())
    assert list(latency.samples) == times


def test_the_origin_of_each_model_is_told(tmp_path: Path) -> None:
    """By name where the comparison has it, else by its hash."""
    dense, other = "ab" * 32, "cd" * 32
    models = {
        "dense-fp32": {"parents": {"checkpoint": dense}},
        "pruned-fp32": {"parents": {"checkpoint": "12" * 32, "parent": dense}},
        "narrow-fp32": {"parents": {"checkpoint": "34" * 32, "teacher": other}},
        "dense-int8": {"parents": {"checkpoint": dense}},
    }
    report = make_report(tmp_path, models=models)
    told = {model.name: [line for line in model.recipe if "cut" in line or "taught" in line] for model in report.models}
    assert told == {
        "dense-fp32": [],
        "pruned-fp32": ["cut from dense-fp32"],
        "narrow-fp32": ["taught by the checkpoint cdcdcdcd"],
        "dense-int8": [],
    }
    write(report, tmp_path / "out")
    assert "cut from dense-fp32" in (tmp_path / "out" / "report.md").read_text()


def test_figures_come_from_bundles_scores_and_times(tmp_path: Path) -> None:
    report = make_report(tmp_path)
    bundles = make_bundles(tmp_path)
    pruned = report.models[-1]
    assert (pruned.params, pruned.macs, pruned.precision) == (840_000, 1_940_000_000, "int8")
    assert pruned.size_bytes == (tmp_path / "pruned-int8" / "model.onnx").stat().st_size
    assert pruned.bundle == bundles["pruned-int8"].path.name
    score = score_of((91, 94, 97))
    assert pruned.miou == score.miou
    assert pruned.miou_interval == score.interval()
    assert pruned.iou_per_class == score.iou_per_class
    assert pruned.miou_split == "test"
    assert pruned.latency_ms.samples[0] == 9.87
    assert pruned.latency_one_thread_ms.samples[0] == 2 * 9.87
    assert report.models[0].gain == 1.0
    assert report.miou_drop_interval == score_of((93, 95, 97)).drop_interval(score)
    assert report.machine == Machine.here()
    assert report.settings.model_dump() == {
        "threads": 2,
        "height": 64,
        "width": 96,
        "rounds": 4,
        "warmup": 3,
        "concurrency": 2,
        "real_images": True,
    }


def test_one_image_gives_no_interval(tmp_path: Path) -> None:
    report = make_report(tmp_path, hits=((93,), (92,), (92,), (91,)))
    assert report.miou_drop is not None
    assert report.miou_drop_interval is None
    assert {model.miou_interval for model in report.models} == {None}


def test_a_split_that_is_void_all_over_gives_no_miou(tmp_path: Path) -> None:
    report = make_report(tmp_path, hits=((0, 0),) * 4, classes=CLASSES)
    assert report.models[0].miou == 0.0
    empty = score_of((0, 0), pixels=0)
    assert math.isnan(empty.miou)
    bundles = make_bundles(tmp_path)
    report = build(
        bundles,
        {name: latency_of([5.0]) for name in bundles},
        dict.fromkeys(bundles, empty),
        title="t",
        command="c",
        data=report.data,
    )
    assert report.models[0].miou is None
    assert report.models[0].iou_per_class == dict.fromkeys(CLASSES)
    assert report.miou_drop is None
    write(report, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "report.json").read_text())["models"][0]["miou"] is None


def test_without_scores_the_manifests_are_quoted(tmp_path: Path) -> None:
    models: dict[str, dict[str, Any]] = {
        "dense-fp32": {"accuracy": quoted("test", 0.8)},
        "int8": {"accuracy": quoted("test", 0.79), "precision": "int8"},
    }
    report = make_report(tmp_path, models=models, milliseconds=(50, 10), hits=None)
    assert [model.miou for model in report.models] == [0.8, 0.79]
    assert report.models[0].miou_interval == (0.79, 0.81)
    assert report.miou_drop == pytest.approx(0.01)
    assert report.miou_drop_interval is None
    assert report.data is None
    assert any("quoted from the manifest" in note for note in report.notes)
    assert any("seeded noise" in note for note in report.notes)


def test_scores_of_different_splits_give_no_drop(tmp_path: Path) -> None:
    models: dict[str, dict[str, Any]] = {
        "dense-fp32": {"accuracy": quoted("test", 0.8)},
        "int8": {"accuracy": quoted("val", 0.9), "precision": "int8"},
    }
    report = make_report(tmp_path, models=models, milliseconds=(50, 10), hits=None)
    assert report.miou_drop is None
    assert any("different splits (test, val)" in note for note in report.notes)


def test_no_accuracy_anywhere_is_no_error(tmp_path: Path) -> None:
    report = make_report(tmp_path, hits=None)
    assert {model.miou for model in report.models} == {None}
    assert report.miou_drop is None
    assert report.speedup > 6


def test_one_bundle_is_its_own_reference(tmp_path: Path) -> None:
    report = make_report(tmp_path, models={"only": {}}, milliseconds=(9,), hits=((90, 95),))
    assert (report.reference, report.compressed, report.speedup, report.miou_drop) == ("only", "only", 1.0, 0.0)
    assert report.verdicts == ()
    assert report.ok


def test_failures_are_kept_and_spoil_the_report(tmp_path: Path) -> None:
    report = make_report(tmp_path, latency={"failure": "out of memory", "footprint": None})
    assert len(report.failures) == 4
    assert report.failures[0] == "dense-fp32: out of memory"
    assert report.models[0].peak_memory_mib is None
    assert report.models[0].load_ms is None
    assert not report.ok


def test_a_busy_machine_is_noted(tmp_path: Path) -> None:
    bundles = make_bundles(tmp_path)

    def notes(tail: float) -> str:
        latencies = {name: latency_of([10.0] * 8 + [tail] * 2) for name in bundles}
        return " ".join(build(bundles, latencies, {}, title="t", command="c", data=None).notes)

    assert "was not quiet" in notes(30.0)
    assert "3.00 times its median" in notes(30.0)
    assert "was not quiet" not in notes(11.0)


def test_a_split_too_small_to_tell_is_noted(tmp_path: Path) -> None:
    wide = make_report(tmp_path, hits=((93, 95, 60), (92, 95, 96), (92, 95, 97), (60, 94, 97)))
    assert any("The split is small" in note for note in wide.notes)
    alike = make_report(tmp_path, hits=((93,) * 30, (92,) * 30, (92,) * 30, (91,) * 30))
    assert not any("The split is small" in note for note in alike.notes)


def test_macs_of_another_size_are_noted(tmp_path: Path) -> None:
    def latency(height: int, width: int) -> dict[str, Any]:
        measured = MeasuredLatency(milliseconds=9.0, height=height, width=width, threads=2, machine=Machine.here())
        return {"latency": measured}

    models = {name: {**fields, **latency(50, 96)} for name, fields in FOUR.items()}
    # 50 rows are padded to the 64 that latency was measured at.
    assert not any("MMACs" in note for note in make_report(tmp_path / "same", models=models).notes)
    models = {name: {**fields, **latency(128, 96)} for name, fields in FOUR.items()}
    other = make_report(tmp_path / "other", models=models)
    assert any("at 128x96; latency was measured at 64x96" in note for note in other.notes)
