"""How fast several bundles are, taking turns in one process.

What is timed is the model alone: one padded uint8 image in, one uint8 mask out, through ONNX Runtime, batch
1. Decoding, resizing and the answer's encoding belong to the server and are measured there.
"""

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle

import numpy as np

from benchmarks.memory import Footprint, footprint
from benchmarks.progress import Progress, silent
from export.bundle import Bundle
from export.errors import ShapeError, UsageError, WorkFailedError
from export.images import U8, Geometry
from export.machine import usable_cores
from export.runtime import OnnxModel
from export.timing import Samples, interleaved

WARMUP = 3
"""Untimed rounds before the timed ones."""
DEFAULT_ROUNDS = 50
TIMED_IMAGES = 8
"""How many different images the rounds cycle through."""

_TURNS = 3
_TURN_SECONDS = 0.4
"""Target length of a turn of the throughput measurement: long enough that starting the threads hardly counts."""


@dataclass(frozen=True)
class LatencyResult:
    """What one model costs, measured in the same run as the others."""

    height: int
    width: int
    """Of the image that the graph was given, padding included."""
    threads: int
    samples: Samples
    """With `threads`."""
    one_thread: Samples
    """With one thread, which is how the server runs by default."""
    throughput: float
    """Images a second with `concurrency` one-thread runs of one shared session at a time."""
    concurrency: int
    footprint: Footprint | None
    failure: str | None
    """Why there is no footprint; None if there is one."""


def measure(
    bundles: Mapping[str, Bundle],
    *,
    sizes: Mapping[str, tuple[int, int]],
    threads: int | None = None,
    rounds: int = DEFAULT_ROUNDS,
    images: Sequence[U8] | None = None,
    progress: Progress = silent,
) -> dict[str, LatencyResult]:
    """Time each of `bundles` on the same inputs.

    `sizes` has the (height, width) of each, padded up to a multiple that all of the models take. `threads` is for one
    run: all usable cores by default. `images` are uint8 HWC and are fitted to the size; without them, seeded noise is
    used. Every model gets the same image in the same round. Raises UsageError without a bundle, round or thread,
    ShapeError for images with other channels than a model's, WorkFailedError for a provider that does not start.
    """
    if not bundles:
        raise UsageError("no bundle to measure; name at least one")
    threads = usable_cores() if threads is None else threads
    if threads < 1 or rounds < 1:
        raise UsageError(f"threads and rounds must be at least 1, got {threads} and {rounds}")
    inputs = _inputs(bundles, sizes, images)
    concurrency = usable_cores()
    one_thread_models = {name: _opened(bundle, 1, concurrency) for name, bundle in bundles.items()}
    one_thread = _latency("latency, 1 thread", one_thread_models, inputs, rounds, progress)
    if threads == 1:
        several = one_thread
    else:
        models = {name: _opened(bundle, threads) for name, bundle in bundles.items()}
        several = _latency(f"latency, {threads} threads", models, inputs, rounds, progress)
    medians = {name: samples.median for name, samples in one_thread.items()}
    throughput = _throughput(one_thread_models, inputs, medians, rounds, concurrency, progress)
    results = {}
    with progress("memory", len(bundles)) as bar:
        for name, bundle in bundles.items():
            height, width = inputs[name][0].shape[1:3]
            found, failure = _footprint(bundle, height, width, threads)
            results[name] = LatencyResult(
                height, width, threads, several[name], one_thread[name], throughput[name], concurrency, found, failure
            )
            bar.advance()
    return results


def _opened(bundle: Bundle, threads: int, runs_at_once: int = 1) -> OnnxModel:
    model = bundle.model(threads=threads, runs_at_once=runs_at_once)
    if model.providers[0] != bundle.providers[0]:
        words = f"{bundle.providers[0]} could not be started; {model.providers[0]} would run instead"
        raise WorkFailedError(f"{bundle.path}: {words}")
    return model


def _inputs(
    bundles: Mapping[str, Bundle], sizes: Mapping[str, tuple[int, int]], images: Sequence[U8] | None
) -> dict[str, list[U8]]:
    """Batches of one, NHWC, for each model: the same pixels wherever channels and size are the same."""
    multiple = math.lcm(*(bundle.manifest.size_multiple for bundle in bundles.values()))
    found: dict[tuple[int, tuple[int, int]], list[U8]] = {}
    for name, bundle in bundles.items():
        channels, size = bundle.manifest.channels, sizes[name]
        if (channels, size) in found:
            continue
        if images is None:
            noise = np.random.default_rng(0)
            shape = (TIMED_IMAGES, *size, channels)
            chosen: Sequence[U8] = list(noise.integers(0, 256, shape, dtype=np.uint8))
        else:
            chosen = images
        odd = next((image.shape for image in chosen if image.ndim != 3 or image.shape[2] != channels), None)
        if odd is not None:
            raise ShapeError(f"{name} takes images of {channels} channels, got one of shape {odd}")
        fitted = (Geometry.plan(*i.shape[:2], size=size, multiple=multiple).fit(i) for i in chosen)
        found[channels, size] = [np.ascontiguousarray(image[None]) for image in fitted]
    return {name: found[bundle.manifest.channels, sizes[name]] for name, bundle in bundles.items()}


def _latency(
    title: str, models: Mapping[str, OnnxModel], inputs: Mapping[str, list[U8]], rounds: int, progress: Progress
) -> dict[str, Samples]:
    with progress(title, WARMUP + rounds) as bar:
        calls = {name: _caller(model, inputs[name]) for name, model in models.items()}
        return interleaved(calls, rounds=rounds, warmup=WARMUP, on_round=bar.advance)


def _caller(model: OnnxModel, images: list[U8]) -> Callable[[], U8]:
    upcoming = cycle(images)
    return lambda: model.masks(next(upcoming))


def _throughput(
    models: Mapping[str, OnnxModel],
    inputs: Mapping[str, list[U8]],
    median_ms: Mapping[str, float],
    rounds: int,
    concurrency: int,
    progress: Progress,
) -> dict[str, float]:
    """Images a second, median over the turns; the models take turns here too."""
    rates: dict[str, list[float]] = {name: [] for name in models}
    order = list(models)
    shuffle = random.Random(0).shuffle
    with (
        progress("throughput", _TURNS * len(models)) as bar,
        ThreadPoolExecutor(concurrency) as pool,
    ):
        for _ in range(_TURNS):
            shuffle(order)
            for name in order:
                runs = min(max(2, math.ceil(_TURN_SECONDS * 1e3 / median_ms[name])), max(2, rounds))
                callers = [_caller(models[name], inputs[name]) for _ in range(concurrency)]
                start = time.perf_counter()
                list(pool.map(_repeat, callers, [runs] * concurrency))
                rates[name].append(concurrency * runs / (time.perf_counter() - start))
                bar.advance()
    return {name: float(np.median(found)) for name, found in rates.items()}


def _repeat(call: Callable[[], object], times: int) -> None:
    for _ in range(times):
        call()


def _footprint(bundle: Bundle, height: int, width: int, threads: int) -> tuple[Footprint | None, str | None]:
    """The footprint, or why there is none: a failure here must not cost the times."""
    try:
        return footprint(bundle, height=height, width=width, threads=threads), None
    except WorkFailedError as error:
        return None, str(error)
