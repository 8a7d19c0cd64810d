"""A virtual environment beside this one, for a package that would change what the other tests see."""

import os
import site
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_beside(home: Path, packages: Sequence[str], suite: Path, **variables: str) -> None:
    """Make an environment in `home` with `packages` and, after them, all that is installed here; run `suite` in it.

    Fails the test, with what was printed, when a package cannot be installed or a test of the suite fails.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    subprocess.run([sys.executable, "-m", "venv", home], check=True, env=environment)
    # All that is installed here is importable there, so that only these packages are fetched, not a second torch.
    (installed,) = (home / "lib").glob("python*/site-packages")
    (installed / "here.pth").write_text("\n".join(site.getsitepackages()))
    pip = ["pip", "install", "-qq", "--only-binary=:all:", "--no-compile", "-c", str(ROOT / "constraints.txt")]
    pytest_there = ["pytest", "-q", "-W", "default", "-p", "no:cacheprovider", str(suite)]
    for command in ([*pip, *packages], pytest_there):
        done = subprocess.run(
            [home / "bin/python", "-m", *command],
            cwd=ROOT,
            env={**environment, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
