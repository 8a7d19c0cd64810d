"""What one model costs a process: time to load, and peak memory.

The peak of a process includes what earlier models used and freed, so each model gets a fresh process:
`python -m benchmarks.memory`. It holds Python, NumPy, ONNX Runtime and the one model, which is about
what a server holds besides its web framework.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import benchmarks
from export.bundle import Bundle, load_manifest
from export.errors import WorkFailedError
from export.images import PAD_VALUE
from export.machine import peak_memory_mib

RUNS = 3
"""ONNX Runtime's arena reaches its full size after the first run or two."""


@dataclass(frozen=True)
class Footprint:
    """What one model costs in a process of its own."""

    load_ms: float
    """To create the session: read, optimise, prepare weights."""
    peak_memory_mib: float
    """Largest resident set of the process, interpreter and libraries included."""


def footprint(bundle: Bundle, *, height: int, width: int, threads: int) -> Footprint:
    """Load the model of `bundle` in a fresh process, on its providers, and run a batch of one of this size.

    Raises WorkFailedError when that process fails.
    """
    arguments = [str(bundle.path), ",".join(bundle.providers), *map(str, (height, width, threads))]
    # -P: a folder of the user that happens to share its name with one of our packages must not be imported.
    command = [sys.executable, "-P", "-m", "benchmarks.memory", *arguments]
    root = str(Path(benchmarks.__file__).parent.parent)
    known = os.environ.get("PYTHONPATH")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, known] if known else [root])}
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if child.returncode:
        last = (child.stderr.strip().splitlines() or [f"exit status {child.returncode}"])[-1]
        raise WorkFailedError(f"{bundle.model_path}: the process that measures its memory failed: {last}")
    return Footprint(**json.loads(child.stdout))


def _of_this_process(path: Path, providers: tuple[str, ...], height: int, width: int, threads: int) -> Footprint:
    bundle = Bundle(path, load_manifest(path), providers)
    start = time.perf_counter_ns()
    loaded = bundle.model(threads=threads)
    load_ms = (time.perf_counter_ns() - start) / 1e6
    image = np.full((1, height, width, bundle.manifest.channels), PAD_VALUE, dtype=np.uint8)
    for _ in range(RUNS):
        loaded.masks(image)
    return Footprint(load_ms, peak_memory_mib())


if __name__ == "__main__":
    found = _of_this_process(Path(sys.argv[1]), tuple(sys.argv[2].split(",")), *map(int, sys.argv[3:]))
    sys.stdout.write(json.dumps(asdict(found)))
