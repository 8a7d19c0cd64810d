"""Results that are costly to make and the same for all processes of a test run: the first that needs one makes it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

FOLDER = "SEGPRESS_TESTS_SHARED"
"""Environment variable: the folder of such results, which lasts until the run ends."""


@contextmanager
def shared(name: str) -> Iterator[Path]:
    """The path of `name`, the same for all processes; only one process at a time is in the block."""
    folder = Path(os.environ[FOLDER])
    with FileLock(folder / f"{name}.lock"):
        yield folder / name
