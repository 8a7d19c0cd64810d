"""Models run on OpenVINO, in an environment of its own, because its build of onnxruntime replaces ours."""

from pathlib import Path

import pytest
from support.environments import run_beside

SUITE = Path(__file__).with_name("openvino_suite.py")


@pytest.mark.slow(first=True)
def test_openvino(tmp_path: Path) -> None:
    run_beside(tmp_path / "venv", ["onnxruntime-openvino==1.24.1"], SUITE)
