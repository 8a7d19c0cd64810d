"""Settings for every test."""

import atexit
import os
import shutil
import tempfile

import pytest
from hypothesis import HealthCheck, settings
from support import shared

from export.machine import usable_cores

# The test processes fill all cores: more threads of torch would only compete with the other processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Processes of `-n auto`: half as many again as cores, because tests of servers wait more than they work."""
    return usable_cores() * 3 // 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the tests that take minutes first: started last, they would keep one process busy and the others idle."""
    items.sort(key=lambda item: not any(mark.kwargs.get("first") for mark in item.iter_markers("slow")))


# How long a Hypothesis example takes depends on the machine; a test that hangs is ended by pytest's timeout.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def _folder_for(variable: str) -> None:
    os.environ[variable] = tempfile.mkdtemp(prefix="segpress-tests-")
    atexit.register(shutil.rmtree, os.environ[variable], ignore_errors=True)


# Tests have a cache of their own: they leave no measurements for the user, and those of the user decide no test.
_folder_for("XDG_CACHE_HOME")
if shared.FOLDER not in os.environ:  # otherwise this process is one of several, and the first one made it
    _folder_for(shared.FOLDER)
