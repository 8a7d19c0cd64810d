"""The threads that run models are interrupted less often than the kernel would by itself."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

_KERNEL = tuple(map(int, re.findall(r"\d+", platform.release())[:2])) if sys.platform == "linux" else (0, 0)

pytestmark = pytest.mark.skipif(
    _KERNEL < (6, 12) or not Path("/proc/self/sched").exists(),
    reason="Linux before 6.12 has no turns of a length of one's own, or this one does not show them",
)

_PROGRAM = """
import asyncio, os, threading
from pathlib import Path
from serve.queue import WorkQueue

def seen(works):
    text = Path(f"/proc/self/task/{threading.get_native_id()}/sched").read_text()
    values = dict(line.split(":") for line in text.splitlines() if line.count(":") == 1)
    slice_ns, policy = (next(v for k, v in values.items() if k.strip() == name) for name in ("se.slice", "policy"))
    return [(int(slice_ns), int(policy), os.getpriority(os.PRIO_PROCESS, 0))] * len(works)

async def main():
    queue = WorkQueue(seen, workers=1, limit=1)
    queue.start()
    print(*await queue.run(None, deadline_seconds=60), *seen([None])[0])
    queue.close(timeout_seconds=5)

asyncio.run(main())
"""


def test_workers_take_long_turns_and_the_event_loop_does_not() -> None:
    command = ["nice", "-n", "3", sys.executable, "-c", _PROGRAM]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    worker_ns, policy, niceness, loop_ns, loop_policy, loop_niceness = map(int, ended.stdout.split())
    assert worker_ns == 20_000_000
    assert loop_ns < 5_000_000
    assert (policy, niceness) == (loop_policy, loop_niceness)
    assert niceness == os.getpriority(os.PRIO_PROCESS, 0) + 3
