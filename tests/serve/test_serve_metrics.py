"""Metrics as others read them: promtool's lint, buckets around an objective, Triton's names."""

import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.bundles import tiny_bundle
from support.servers import metric, metric_lines, serving

from export.bundle import Bundle
from export.images import encode_image
from serve.settings import ServeSettings

SEGMENT = "/v1/models/tiny/segment"
PNG = {"Content-Type": "image/png"}
IMAGE = encode_image(np.zeros((16, 16, 3), np.uint8))

TINY = '{model="tiny",version="1"}'


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
@pytest.mark.parametrize("settings", [{}, {"triton_metrics": True, "objective_seconds": 0.07}], ids=["default", "all"])
def test_promtool_finds_nothing_to_mend(bundle: Bundle, settings: dict[str, object]) -> None:
    with serving([bundle.path], ServeSettings.model_validate({"concurrency": 1, **settings})) as url:
        httpx.post(url + SEGMENT, content=IMAGE, headers=PNG)
        httpx.post(url + SEGMENT, content=b"text", headers=PNG)
        text = httpx.get(url + "/metrics").text
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    # Triton's names are given, rules or not.
    complaints = (done.stdout + done.stderr).splitlines()
    assert [line for line in complaints if not re.fullmatch(r"nv_\w+_us .*abbreviated units", line)] == []
    assert done.returncode == (3 if "triton_metrics" in settings else 0)


def bounds(text: str, name: str) -> list[float]:
    family = next(family for family in text_string_to_metric_families(text) if family.name == name)
    return sorted({float(sample.labels["le"]) for sample in family.samples if "le" in sample.labels})


def test_buckets_end_at_the_objective_and_are_close_around_it(bundle: Bundle) -> None:
    with serving([bundle.path], ServeSettings(concurrency=1, objective_seconds=0.035)) as url:
        text = httpx.get(url + "/metrics").text
        assert metric(url, "segpress_objective_seconds") == 0.035
    for name in ("segpress_request_duration_seconds", "segpress_stage_duration_seconds"):
        found = bounds(text, name)
        assert 0.035 in found
        near = [bound for bound in found if 0.8 * 0.035 <= bound <= 1.2 * 0.035]
        assert max(b - a for a, b in pairwise(near)) <= 0.1 * 0.035 + 1e-9
        assert min(found) <= 0.001
        assert max(bound for bound in found if bound < float("inf")) >= 30


def test_without_an_objective_none_is_shown(client: httpx.Client) -> None:
    assert "segpress_objective_seconds" not in client.get("/metrics").text
    assert "nv_inference" not in client.get("/metrics").text


def test_tritons_names_show_the_same_figures(bundle: Bundle, tmp_path: Path) -> None:
    idle = tiny_bundle(tmp_path / "idle", name="idle", version="7")
    settings = ServeSettings(concurrency=1, triton_metrics=True)
    with serving([bundle.path, idle.path], settings) as url:
        for _ in range(3):
            assert httpx.post(url + SEGMENT, content=IMAGE, headers=PNG).status_code == 200
        httpx.post(url + SEGMENT, content=b"text", headers=PNG)
        httpx.post(url + "/v1/models/unknown/segment", content=IMAGE, headers=PNG)
        shown = metric_lines(url)
    assert shown[f"nv_inference_request_success{TINY}"] == 3
    assert shown[f"nv_inference_request_failure{TINY}"] == 1
    assert shown[f"nv_inference_count{TINY}"] == 3
    assert shown[f"nv_inference_exec_count{TINY}"] == 3
    ours = 'segpress_request_duration_seconds_sum{model="tiny"}'
    assert shown[f"nv_inference_request_duration_us{TINY}"] == pytest.approx(1e6 * shown[ours])
    for triton, stages in {
        "queue": ["queue"],
        "compute_input": ["decode", "preprocess"],
        "compute_infer": ["inference"],
        "compute_output": ["postprocess", "encode"],
    }.items():
        sums = [shown[f'segpress_stage_duration_seconds_sum{{model="tiny",stage="{stage}"}}'] for stage in stages]
        assert shown[f"nv_inference_{triton}_duration_us{TINY}"] == pytest.approx(1e6 * sum(sums))
        assert sum(sums) > 0
    assert {value for name, value in shown.items() if name.startswith("nv_") and 'model="idle"' in name} == {0}
    assert 'nv_inference_count{model="idle",version="7"}' in shown
    assert not [name for name in shown if name.startswith("nv_") and 'model=""' in name]
