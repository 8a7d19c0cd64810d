"""What is costly to make, and the same for all processes of a run of the tests, is made by the first that needs it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

FOLDER = "SEGPRESS_TESTS_SHARED"
"""Environment variable: where such things are, until the run ends."""


@contextmanager
def shared(name: str) -> Iterator[Path]:
    """The path `name` that all processes have in common, while no other one is in this block."""
    folder = Path(os.environ[FOLDER])
    with FileLock(folder / f"{name}.lock"):
        yield folder / name
