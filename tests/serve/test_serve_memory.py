"""The process keeps the memory that one image frees for the next."""

import json
import subprocess
import sys

import pytest

_PROGRAM = """
import json, resource, sys, threading
import numpy as np
from serve.memory import keep_freed

if sys.argv[1] == "kept":
    keep_freed()
faults = []

def work():
    for _ in range(60):
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        images = [np.ones((360, 480, 3), np.uint8) for _ in range(4)]
        del images
        faults.append(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)

for _ in range(2):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
print(json.dumps(faults[30:60] + faults[90:]))
"""


def _faults(how: str) -> list[int]:
    ended = subprocess.run([sys.executable, "-c", _PROGRAM, how], capture_output=True, text=True, check=True)
    faults: list[int] = json.loads(ended.stdout)
    return faults


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_a_thread_has_room_for_the_next_image() -> None:
    assert max(_faults("left")) > 100  # if not, the C library keeps memory by itself, and serve/memory.py can go
    assert max(_faults("kept")) < 10
