"""Builds a report from what was measured."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

from benchmarks.measure import WARMUP, LatencyResult
from benchmarks.report import plots
from benchmarks.report.results import DataUsed, Goals, GroupWidth, Latency, ModelResult, Report, Settings
from benchmarks.report.verdicts import verdicts
from benchmarks.report.words import interval, number
from compress.recipe import unusual
from export.bundle import Bundle
from export.images import Geometry
from export.machine import Machine
from export.scoring import Score

_RUNTIMES = ("openvino", "tensorrt")
"""Targets that are other runtimes, whose kernels are not those of the CPU provider."""
NOISY = 1.5
"""A 95th percentile of this many times the median means that the machine was busy with something else."""
COARSE = 0.02
"""An interval of the drop wider than this cannot tell a drop of one point from none."""


def build(
    bundles: Mapping[str, Bundle],
    latencies: Mapping[str, LatencyResult],
    scores: Mapping[str, Score],
    *,
    title: str,
    command: str,
    data: DataUsed | None,
    goals: Goals | None = None,
    lookup_table_miou: float | None = None,
    widths: Sequence[GroupWidth] = (),
    widths_of: str | None = None,
    notes: Sequence[str] = (),
) -> Report:
    """Compare `bundles`: the first is the reference, the last the most compressed.

    A model without a score takes its mIoU from its manifest, if that names one.
    """
    names = list(bundles)
    reference, compressed = names[0], names[-1]
    reference_ms = latencies[reference].samples.median
    models = tuple(
        _result(
            name,
            bundles[name],
            latencies[name],
            scores.get(name),
            data,
            reference_ms,
            _origin(bundles[name], bundles),
        )
        for name in names
    )
    drop, drop_interval = _drop(models, scores)
    shared = latencies[reference]
    settings = Settings(
        threads=shared.threads,
        height=shared.height,
        width=shared.width,
        rounds=len(shared.samples.milliseconds),
        warmup=WARMUP,
        concurrency=shared.concurrency,
        real_images=data is not None,
    )
    return Report(
        title=title,
        command=command,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=Machine.here(),
        data=data,
        settings=settings,
        models=models,
        reference=reference,
        compressed=compressed,
        speedup=models[-1].gain,
        miou_drop=drop,
        miou_drop_interval=drop_interval,
        lookup_table_miou=lookup_table_miou,
        widths=tuple(widths),
        widths_of=widths_of,
        goals=goals or Goals(),
        verdicts=verdicts(models, goals=goals, lookup_table_miou=lookup_table_miou),
        notes=(
            *notes,
            *_accuracy_notes(models, scores, drop_interval),
            *_latency_notes(models, bundles, settings),
            *plots.shortcomings(),
        ),
        failures=tuple(f"{name}: {result.failure}" for name, result in latencies.items() if result.failure),
    )


def _result(
    name: str,
    bundle: Bundle,
    latency: LatencyResult,
    score: Score | None,
    data: DataUsed | None,
    reference_ms: float,
    origin: Iterable[str],
) -> ModelResult:
    manifest = bundle.manifest
    accuracy = manifest.accuracy
    miou, bounds, per_class = None, None, {}
    split, fingerprint = (data.split, data.fingerprint) if data else (None, None)
    if score is not None:
        miou, per_class = None if math.isnan(score.miou) else score.miou, score.iou_per_class
        bounds = score.interval() if score.images_counted > 1 and miou is not None else None
    elif accuracy is not None:
        miou, bounds, per_class, split = accuracy.miou, accuracy.miou_interval, accuracy.iou_per_class, accuracy.split
        fingerprint = manifest.parents.get("data")
    return ModelResult(
        name=name,
        bundle=bundle.path.resolve().name,
        precision=manifest.precision,
        recipe=(*unusual(manifest.recipe), *origin),
        weights=manifest.parents.get("checkpoint"),
        cut_from=manifest.parents.get("parent"),
        made_for=_made_for(bundle),
        params=manifest.params,
        macs=manifest.macs,
        size_bytes=bundle.size_bytes,
        miou=miou,
        miou_interval=bounds,
        miou_split=None if miou is None else split,
        miou_data=None if miou is None else fingerprint,
        iou_per_class=per_class,
        timed_at=(latency.height, latency.width),
        latency_ms=Latency.of(latency.samples),
        latency_one_thread_ms=Latency.of(latency.one_thread),
        gain=reference_ms / latency.samples.median,
        throughput_images_s=latency.throughput,
        load_ms=latency.footprint.load_ms if latency.footprint else None,
        peak_memory_mib=latency.footprint.peak_memory_mib if latency.footprint else None,
    )


def _made_for(bundle: Bundle) -> str | None:
    target = bundle.manifest.target
    runs_there = bundle.providers[0].lower().startswith(target)
    return target if target in _RUNTIMES and not runs_there else None


def _origin(bundle: Bundle, bundles: Mapping[str, Bundle]) -> Iterator[str]:
    """The checkpoints that `bundle`'s was cut from and learned from, by the names of those in the comparison."""
    names = {other.manifest.parents.get("checkpoint"): name for name, other in reversed(list(bundles.items()))}
    for role, words in (("parent", "cut from"), ("teacher", "taught by")):
        weights = bundle.manifest.parents.get(role)
        if weights is not None:
            yield f"{words} {names.get(weights, f'the checkpoint {weights[:8]}')}"


def _drop(
    models: Sequence[ModelResult], scores: Mapping[str, Score]
) -> tuple[float | None, tuple[float, float] | None]:
    before, after = models[0], models[-1]
    if before.miou is None or after.miou is None or not after.scored_like(before):
        return None, None
    drop = before.miou - after.miou
    parent, child = scores.get(before.name), scores.get(after.name)
    if parent is None or child is None or parent.images_counted < 2 or parent.images != child.images:
        return drop, None
    return drop, parent.drop_interval(child)


def _accuracy_notes(
    models: Sequence[ModelResult], scores: Mapping[str, Score], drop_interval: tuple[float, float] | None
) -> Iterable[str]:
    quoted = [model.name for model in models if model.name not in scores and model.miou is not None]
    if quoted:
        yield f"The mIoU of {', '.join(quoted)} is quoted from the manifest; --data scores it here."
    splits = {model.miou_split for model in models if model.miou is not None}
    if len(splits) > 1:
        yield f"The models' mIoU is of different splits ({', '.join(sorted(map(str, splits)))}), so no drop is given."
    elif not models[-1].scored_like(models[0]) and models[0].miou is not None and models[-1].miou is not None:
        yield "The models' mIoU is of different datasets or classes, so no drop is given."
    if drop_interval is not None and drop_interval[1] - drop_interval[0] > COARSE and len(models) > 1:
        yield (
            f"The split is small: the drop lies anywhere from {interval(drop_interval)} (95 %). "
            "It takes more images to tell a drop of one point from none."
        )


def _latency_notes(models: Sequence[ModelResult], bundles: Mapping[str, Bundle], settings: Settings) -> Iterable[str]:
    if not settings.real_images:
        yield "Latency was measured on seeded noise; --data measures it on real images."
    noisy = [model for model in models if model.latency_ms.p95 > NOISY * model.latency_ms.p50]
    if noisy:
        worst = max(noisy, key=lambda model: model.latency_ms.p95 / model.latency_ms.p50)
        yield (
            f"The machine was not quiet: the 95th percentile of {worst.name} is "
            f"{number(worst.latency_ms.p95 / worst.latency_ms.p50)} times its median. Trust the medians more than the "
            "tails, or run it again with nothing else running."
        )
    for model in models:
        if model.made_for is not None:
            yield f"{model.name} was made for {model.made_for}, and was timed elsewhere: its latency there is another."
    timed = {model.name: model.timed_at for model in models}
    if len(set(timed.values())) > 1:
        each = ", ".join(f"{name} at {_spelt(size)}" for name, size in timed.items())
        yield f"Each model was timed at the size that it resizes images to: {each}. --size times all at one."
    counted = {name: _counted_at(bundle) for name, bundle in bundles.items()}
    elsewhere = {name: size for name, size in counted.items() if size is not None and size != timed[name]}
    if elsewhere:
        sizes = ", ".join(_spelt(size) for size in sorted(set(elsewhere.values())))
        timed_at = ", ".join(sorted({_spelt(timed[name]) for name in elsewhere}))
        yield f"MMACs are those of the manifests, counted at {sizes}; latency was measured at {timed_at}."


def _spelt(size: tuple[int, int] | None) -> str:
    return "an unknown size" if size is None else f"{size[0]}x{size[1]}"


def _counted_at(bundle: Bundle) -> tuple[int, int] | None:
    """Height and width, padding included, at which the manifest's MACs were counted."""
    own_size, multiple = bundle.manifest.own_size, bundle.manifest.size_multiple
    if own_size is None:
        return None
    geometry = Geometry.plan(*own_size, size=None, multiple=multiple)
    return geometry.padded_height, geometry.padded_width
