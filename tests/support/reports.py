"""Reports whose figures a test chooses, on real bundles.

report = make_report(tmp_path, milliseconds=(60, 24, 22, 10), hits=((93, 95), (92, 95), (92, 95), (91, 94)))
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from support.bundles import tiny_bundle

from benchmarks.measure import LatencyResult
from benchmarks.memory import Footprint
from benchmarks.report.build import build
from benchmarks.report.results import DataUsed, Report
from export.bundle import Bundle, load
from export.scoring import Score
from export.timing import Samples

CLASSES = ("class-0", "class-1", "class-2")

FOUR: dict[str, dict[str, Any]] = {
    "dense-fp32": {"params": 3_350_000, "macs": 7_800_000_000},
    "pruned-fp32": {"params": 840_000, "macs": 1_940_000_000},
    "dense-int8": {"params": 3_350_000, "macs": 7_800_000_000, "precision": "int8"},
    "pruned-int8": {"params": 840_000, "macs": 1_940_000_000, "precision": "int8"},
}
"""What the manifests of a run's four models say."""


def make_bundles(path: Path, models: Mapping[str, Mapping[str, Any]] = FOUR) -> dict[str, Bundle]:
    """A bundle under `path` for each name, made once; the values replace fields of its manifest."""
    return {
        name: load(path / name) if (path / name).exists() else tiny_bundle(path / name, name=name, **fields)
        for name, fields in models.items()
    }


def score_of(hits: Sequence[int], *, classes: tuple[str, ...] = CLASSES, pixels: int = 100) -> Score:
    """One image an entry: of the `pixels` of every class so many are right, the others are taken for the next class."""
    diagonal = np.eye(len(classes), dtype=np.int64)
    counts = [diagonal * hit + np.roll(diagonal, 1, axis=1) * (pixels - hit) for hit in hits]
    return Score(classes, tuple(f"image-{i}" for i in range(len(hits))), np.stack(counts))


def latency_of(milliseconds: Sequence[float], **fields: Any) -> LatencyResult:
    """With two threads at 64x96; twice as long with one."""
    given: dict[str, Any] = {
        "height": 64,
        "width": 96,
        "threads": 2,
        "samples": Samples(tuple(milliseconds)),
        "one_thread": Samples(tuple(2 * ms for ms in milliseconds)),
        "throughput": 1234 / milliseconds[0],
        "concurrency": 2,
        "footprint": Footprint(load_ms=31.7 + milliseconds[0], peak_memory_mib=88.4 + milliseconds[0]),
        "failure": None,
    }
    return LatencyResult(**{**given, **fields})


def make_report(
    path: Path,
    *,
    models: Mapping[str, Mapping[str, Any]] = FOUR,
    milliseconds: Sequence[float] = (61.3, 23.7, 21.9, 9.87),
    hits: Sequence[Sequence[int]] | None = ((93, 95, 97), (92, 95, 96), (92, 95, 97), (91, 94, 97)),
    classes: tuple[str, ...] = CLASSES,
    latency: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Report:
    """`milliseconds` and `hits` (as in `score_of`; None: not scored) have an entry for each model, in order."""
    bundles = make_bundles(path, models)
    latencies = {
        name: latency_of([ms, 1.01 * ms, 1.02 * ms, 1.2 * ms], **(latency or {}))
        for name, ms in zip(bundles, milliseconds, strict=True)
    }
    scores = {} if hits is None else {name: score_of(h, classes=classes) for name, h in zip(bundles, hits, strict=True)}
    given: dict[str, Any] = {
        "title": "A run",
        "command": "compress run --out runs/demo",
        "data": None if hits is None else DataUsed(name="discs", fingerprint="ab" * 32, split="test", images=3),
    }
    return build(bundles, latencies, scores, **{**given, **fields})


class Watched:
    """A progress bar that remembers what it was told: title -> (done, total)."""

    def __init__(self) -> None:
        self.steps: dict[str, tuple[int, int]] = {}
        self._title = ""

    @contextmanager
    def __call__(self, title: str, total: int) -> Iterator["Watched"]:
        self._title = title
        self.steps[title] = (0, total)
        yield self

    def advance(self, steps: int = 1) -> None:
        done, total = self.steps[self._title]
        self.steps[self._title] = (done + steps, total)
