"""timm's encoders, in an environment of their own: timm brings torchvision, which torchmetrics must not find here."""

from pathlib import Path

import pytest
from support.environments import run_beside

SUITE = Path(__file__).with_name("timm_suite.py")


@pytest.mark.slow(first=True)
def test_timm(tmp_path: Path) -> None:
    run_beside(tmp_path / "venv", ["timm", "torchvision"], SUITE, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hub"))
