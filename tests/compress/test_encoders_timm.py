"""timm's encoders, in an environment of their own: timm brings torchvision, which would hide from torchmetrics here."""

import os
import site
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUITE = Path(__file__).with_name("timm_suite.py")


@pytest.mark.slow
def test_timm(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    home = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", home], check=True, env=environment)
    # All that is installed here is there too, so that only timm and torchvision are fetched, not a second torch.
    (packages,) = (home / "lib").glob("python*/site-packages")
    (packages / "here.pth").write_text("\n".join(site.getsitepackages()))
    pip = ["pip", "install", "-qq", "--only-binary=:all:", "--no-compile", "-c", str(ROOT / "constraints.txt")]
    pytest_there = ["pytest", "-q", "-W", "default", "-p", "no:cacheprovider", str(SUITE)]
    for command in ([*pip, "timm", "torchvision"], pytest_there):
        done = subprocess.run(
            [home / "bin/python", "-m", *command],
            cwd=ROOT,
            env={**environment, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
