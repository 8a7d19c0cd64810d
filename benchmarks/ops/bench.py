"""`compress bench ops` without its command line: bundles in, where their time goes out."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import numpy as np
import onnx

from benchmarks.latency import DEFAULT_SIZE, named
from benchmarks.ops.floats import floats
from benchmarks.ops.graph import Written, run_nodes
from benchmarks.ops.nodes import by_operator, node_times, speed
from benchmarks.ops.peak import PeakProbe
from benchmarks.progress import Progress, silent
from benchmarks.report.folder import report_folder
from benchmarks.report.ops.results import BundleOps, OpsReport, Peak
from benchmarks.report.ops.write import write
from benchmarks.report.plots import shortcomings
from benchmarks.report.results import Latency
from benchmarks.report.words import number
from export.bundle import Bundle, load
from export.errors import UsageError
from export.images import U8, padded_size
from export.latency.kinds import Pair
from export.machine import Machine, usable_cores
from export.profiling import Kernel, optimised_graph, profiled
from export.runtime import IMAGE
from export.timing import Samples, interleaved

DEFAULT_RUNS = 50

_DISTURBED = 1.15
"""Whole runs that take this many times the sum over the nodes were disturbed: only a few percent of a run lie between
nodes."""

_TURNS = 5
"""How often runs with the profiler and without it alternate: a machine drifts within seconds."""


def bench(
    bundle_paths: Sequence[Path],
    *,
    size: Pair | None = None,
    batch: int = 1,
    threads: int | None = None,
    runs: int = DEFAULT_RUNS,
    peak: bool = True,
    out: Path | None = None,
    command: str,
    progress: Progress = silent,
) -> OpsReport:
    """Time every node of each bundle's graph, as the runtime optimises it, `runs` times on noise.

    `size` (height, width) defaults to what the first bundle was made for, and is padded to what all of them take;
    `threads` defaults to all usable cores. With `peak`, the machine's own peak is measured beside them. With `out`, the
    report is written there. Raises UsageError: BundleError, and for sizes and batches that are impossible.
    """
    bundles = named([load(path) for path in bundle_paths])
    if not bundles:
        raise UsageError("no bundle to take apart; name at least one")
    threads = threads or usable_cores()
    multiple = math.lcm(*(bundle.manifest.size_multiple for bundle in bundles.values()))
    wanted = size or next(iter(bundles.values())).manifest.own_size or DEFAULT_SIZE
    height, width = padded_size(*wanted, multiple)
    subjects = {
        name: _Subject(bundle, _noise(batch, (height, width), bundle.manifest.channels), threads)
        for name, bundle in bundles.items()
    }
    precisions = sorted({bundle.manifest.precision for bundle in bundles.values()}, reverse=True)
    probes = [PeakProbe(precision, threads) for precision in precisions] if peak else []
    with nullcontext() if out is None else report_folder(out):
        _measure(subjects, probes, runs, progress)
        peaks = tuple(probe.peak() for probe in probes)
        results = tuple(subject.result(name, peaks) for name, subject in subjects.items())
        report = OpsReport(
            title=f"Time by operator: {', '.join(bundles)}",
            command=command,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=Machine.here(),
            threads=threads,
            batch=batch,
            height=height,
            width=width,
            runs=runs,
            peaks=peaks,
            bundles=results,
            notes=(*_busy(results), *(() if out is None else shortcomings())),
        )
        if out is not None:
            write(report, out)
    return report


class _Subject:
    """One bundle, and what was measured of it so far."""

    def __init__(self, bundle: Bundle, images_NHWC: U8, threads: int) -> None:
        self._bundle = bundle
        self._images_NHWC = images_NHWC
        self._threads = threads
        self._model = bundle.model(threads=threads)
        self.run()  # what the graph refuses is found out before anything is measured
        self._written = Written(onnx.load(str(bundle.model_path)), images_NHWC.shape[1:3])
        # Optimised only once, and profiled as it is: the runtime renumbers what it adds whenever it optimises.
        self._optimised = optimised_graph(self._written.content)
        self._nodes = run_nodes(self._optimised)
        self._whole_ms: list[float] = []
        self._profiles: list[tuple[Kernel, ...]] = []

    def run(self) -> object:
        """Run once, without the profiler."""
        return self._model.masks(self._images_NHWC)

    def took(self, whole: Samples) -> None:
        """Keep the times of runs without the profiler."""
        self._whole_ms.extend(whole.milliseconds)

    def profile(self, runs: int) -> None:
        """Run with the profiler, and keep what it found."""
        feeds = {IMAGE: self._images_NHWC}
        self._profiles += profiled(self._optimised, feeds, threads=self._threads, runs=runs, optimised=False)

    def result(self, name: str, peaks: Sequence[Peak]) -> BundleOps:
        """What was measured in all, as a part of the report."""
        manifest = self._bundle.manifest
        batch = len(self._images_NHWC)
        times = node_times(self._nodes, self._written, self._profiles, batch)
        convolutions_ms = sum(time.milliseconds for time in times if time.macs is not None)
        whole = Latency.of(Samples(tuple(self._whole_ms)))
        macs = self._written.total_macs() * batch
        of_convolutions, of_graph = speed(macs, convolutions_ms), speed(macs, whole.p50)
        best = next((peak.gmacs_per_s for peak in peaks if peak.precision == manifest.precision), None)
        found, untrue = floats(self._nodes, times, self._written, manifest.float_layers)
        quantized = manifest.precision == "int8"
        return BundleOps(
            name=name,
            bundle=self._bundle.path.resolve().name,
            precision=manifest.precision,
            macs=macs,
            whole_ms=whole,
            profiled_ms=median(map(sum, zip(*(time.samples_ms for time in times), strict=True))),
            nodes_ms=sum(time.milliseconds for time in times),
            convolutions_ms=convolutions_ms,
            convolutions_gmacs_per_s=of_convolutions,
            graph_gmacs_per_s=of_graph,
            convolutions_of_peak=of_convolutions / best if of_convolutions and best else None,
            graph_of_peak=of_graph / best if of_graph and best else None,
            nodes=times,
            operators=by_operator(times),
            floats=found if quantized else (),
            not_in_float=untrue if quantized else (),
        )


def _measure(subjects: Mapping[str, _Subject], probes: Sequence[PeakProbe], runs: int, progress: Progress) -> None:
    """Measure all subjects and probes, in turns."""
    turns = min(_TURNS, runs)
    parts = [runs // turns + (turn < runs % turns) for turn in range(turns)]
    with progress("measuring", turns * (1 + len(subjects) + len(probes))) as bar:
        for part in parts:
            taken = interleaved({name: subject.run for name, subject in subjects.items()}, rounds=part)
            for name, subject in subjects.items():
                subject.took(taken[name])
            bar.advance()
            for subject in subjects.values():
                subject.profile(part)
                bar.advance()
            for probe in probes:
                probe.take()
                bar.advance()


def _busy(results: Sequence[BundleOps]) -> Iterator[str]:
    for bundle in results:
        # Whole runs of several bundles take turns, and each finds the caches as another left them.
        whole_ms = bundle.whole_ms.p50 if len(results) == 1 else bundle.profiled_ms
        if max(bundle.profiled_ms, whole_ms) > _DISTURBED * bundle.nodes_ms:
            yield (
                f"The machine was not quiet: the medians of {bundle.name}'s nodes add up to "
                f"{number(bundle.nodes_ms)} ms, whole runs take {number(bundle.profiled_ms)} ms with the profiler and "
                f"{number(bundle.whole_ms.p50)} ms without; run it again with nothing else running."
            )


def _noise(batch: int, size: Pair, channels: int) -> U8:
    """Seeded noise: kernels take as long for it as for pictures.

    Raises UsageError if it does not fit into memory.
    """
    try:
        return np.random.default_rng(0).integers(0, 256, (batch, *size, channels), dtype=np.uint8)
    except (MemoryError, ValueError) as error:
        raise UsageError(
            f"a batch of {batch} at {size[0]}x{size[1]} does not fit into memory ({error}); "
            "give a smaller --size or --batch"
        ) from error
