"""What holds for every test."""

import atexit
import os
import shutil
import tempfile

import pytest
from hypothesis import HealthCheck, settings
from support import shared

from export.machine import usable_cores

# There is a process of tests for each core: more threads of torch would only take it from the others.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Processes of `-n auto`: half as many again as cores, because tests of servers wait more than they work."""
    return usable_cores() * 3 // 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes starts first: begun at the end, it would keep one process busy and the others idle."""
    items.sort(key=lambda item: not any(mark.kwargs.get("first") for mark in item.iter_markers("slow")))


# How long an example takes is the machine's doing; a test that hangs meets pytest's timeout.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def _folder_for(variable: str) -> None:
    os.environ[variable] = tempfile.mkdtemp(prefix="segpress-tests-")
    atexit.register(shutil.rmtree, os.environ[variable], ignore_errors=True)


# Nothing that a test measures is left for the user, and nothing that the user measured decides a test.
_folder_for("XDG_CACHE_HOME")
if shared.FOLDER not in os.environ:  # otherwise this process is one of several, and the first one made it
    _folder_for(shared.FOLDER)
