"""The options that providers other than the CPU's get for a bundle: whether it is INT8, and its float precision."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
from support.bundles import tiny_bundle

from export import machine
from export.runtime import CPU, OPENVINO, TENSORRT
from export.sessions import Provider
from serve.app import create_app
from serve.settings import ServeSettings

CUDA = "CUDAExecutionProvider"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, dict[str, str]]]:
    """Provider options of each session, in a runtime that claims to have every provider; the CPU runs the model."""
    sessions: list[dict[str, dict[str, str]]] = []

    class Asked(ort.InferenceSession):  # type: ignore[misc]
        def __init__(self, *arguments: Any, providers: list[tuple[str, dict[str, str]]], **named: Any) -> None:
            sessions.append(dict(providers))
            super().__init__(*arguments, providers=[CPU], **named)

    monkeypatch.setattr(ort, "InferenceSession", Asked)
    monkeypatch.setattr(ort, "get_available_providers", lambda: [TENSORRT, CUDA, OPENVINO, CPU])
    return sessions


@pytest.mark.parametrize(
    ("precision", "half_floats", "int8", "float16"),
    [("int8", True, "True", "True"), ("int8", False, "True", "False"), ("fp32", False, "False", "False")],
)
def test_tensorrt_is_told_of_integers_and_of_floats_in_16_bits(
    tmp_path: Path,
    told: list[dict[str, dict[str, str]]],
    precision: str,
    half_floats: bool,
    int8: str,
    float16: str,
) -> None:
    bundle = tiny_bundle(tmp_path / "b", precision=precision, half_floats=half_floats)
    told.clear()
    replace(bundle, providers=(TENSORRT, CUDA, CPU)).model(threads=1)
    assert told == [{TENSORRT: {"trt_int8_enable": int8, "trt_fp16_enable": float16}, CUDA: {}, CPU: {}}]


@pytest.mark.parametrize(
    ("flags", "half_floats", "expected"),
    [
        ("avx2 avx512bw avx512_vnni avx512_bf16", True, "bf16"),
        ("avx2 avx512bw amx_int8 amx_bf16", True, "bf16"),
        ("avx2 avx512bw avx512_vnni avx512_bf16", False, "f32"),
        ("avx2 avx512bw avx512_vnni", True, "f32"),
        ("avx2", True, "f32"),
    ],
)
def test_openvino_is_asked_for_bfloat16_only_where_the_processor_multiplies_it(
    tmp_path: Path,
    told: list[dict[str, dict[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
    flags: str,
    half_floats: bool,
    expected: str,
) -> None:
    """With AVX-512 but without these instructions OpenVINO would use bfloat16, too, and slowly."""
    bundle = tiny_bundle(tmp_path / "b", precision="int8", half_floats=half_floats)
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: {flags}\n")
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    told.clear()
    replace(bundle, providers=(OPENVINO, CPU)).model(threads=1)
    [options] = told
    assert json.loads(options[OPENVINO]["load_config"])["CPU"]["INFERENCE_PRECISION_HINT"] == expected
    assert options[CPU] == {}


def test_a_server_opens_a_bundle_in_the_same_way(tmp_path: Path, told: list[dict[str, dict[str, str]]]) -> None:
    bundle = tiny_bundle(tmp_path / "b", precision="int8", half_floats=True)
    told.clear()
    create_app([bundle.path], ServeSettings(providers=(Provider.TENSORRT, Provider.CUDA)))
    assert told[0][TENSORRT] == {"trt_int8_enable": "True", "trt_fp16_enable": "True"}
    assert list(told[0]) == [TENSORRT, CUDA, CPU]
