"""Bundles side by side: scored, timed, and reported.

`bench` starts from paths and is what the command line calls; `report_on` starts from bundles that are already
loaded and scored, and is how `compress run` ends. Both give the same report.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.measure import DEFAULT_ROUNDS, TIMED_IMAGES, measure
from benchmarks.progress import Progress, silent
from benchmarks.report.build import build
from benchmarks.report.folder import report_folder
from benchmarks.report.results import DataUsed, Goals, GroupWidth, Report
from benchmarks.report.strip import Strip, choose, strip_of
from benchmarks.report.write import write
from compress.data.evaluation import usual_size
from compress.data.folder import Dataset, open_dataset
from compress.data.layout import Sample, Split
from export.bundle import Bundle, load
from export.errors import DatasetError, MissingExtraError, UsageError, require
from export.images import U8
from export.providers import required
from export.scoring import Score, score
from export.sessions import Provider

DEFAULT_SIZE = (256, 256)


def bench(
    bundle_paths: Sequence[Path],
    *,
    data: Path | None = None,
    split: Split = "test",
    size: tuple[int, int] | None = None,
    threads: int | None = None,
    rounds: int = DEFAULT_ROUNDS,
    providers: Sequence[Provider] = (Provider.CPU,),
    pictures: bool = True,
    out: Path,
    command: str,
    progress: Progress = silent,
) -> Report:
    """Compare bundles and write the report into `out`; the first is the reference, the last the most compressed.

    With `data`, all are scored on its `split` and timed on its images; without, accuracy is quoted from the
    manifests and latency is measured on noise. With several `providers`, each bundle is measured on each of them, and
    every such pair counts as a model. Without `pictures`, the report shows none of the images. `command` is
    what the report names to reproduce it. Raises UsageError for bad input: BundleError, DatasetError, and
    models and data that do not go together.
    """
    bundles = _on_each(named([load(path) for path in bundle_paths]), providers)
    if not bundles:
        raise UsageError("no bundle to measure; name at least one")
    dataset = None if data is None else _dataset_for(bundles, data)
    with report_folder(out):
        return report_on(
            bundles,
            {} if dataset is None else _scores(bundles, dataset, split, threads, progress),
            dataset=dataset,
            split=split,
            size=size,
            threads=threads,
            rounds=rounds,
            pictures=pictures,
            out=out,
            title=f"Bundles compared: {', '.join(bundles)}",
            command=command,
            progress=progress,
        )


def _scores(
    bundles: Mapping[str, Bundle], dataset: Dataset, split: Split, threads: int | None, progress: Progress
) -> dict[str, Score]:
    scores = {}
    samples = _samples(dataset, split)
    for name, bundle in bundles.items():
        segmenter = bundle.segmenter(threads=threads)
        with progress(f"scoring {name}", len(samples)) as bar:
            triples = ((s.name, dataset.read_image(s), dataset.read_mask(s)) for s in samples)
            scores[name] = score(segmenter.segment, triples, dataset.classes, on_image=bar.advance)
    return scores


def report_on(
    bundles: Mapping[str, Bundle],
    scores: Mapping[str, Score],
    *,
    dataset: Dataset | None,
    split: Split = "test",
    size: tuple[int, int] | None = None,
    threads: int | None = None,
    rounds: int = DEFAULT_ROUNDS,
    pictures: bool = True,
    out: Path,
    title: str,
    command: str,
    goals: Goals | None = None,
    lookup_table_miou: float | None = None,
    widths: Sequence[GroupWidth] = (),
    notes: Sequence[str] = (),
    progress: Progress = silent,
) -> Report:
    """Time `bundles` and write a report of that and their `scores` on `split` of `dataset` into `out`.

    The first is the reference, the last the most compressed. Without `widths`, the widths shown are those of the last
    float bundle that was cut from the reference. `size` (height, width) defaults to what each model resizes images to;
    for those that do not, to that of most images, else what the reference was made for, else 256x256. Raises what
    `measure` raises, and DatasetError for a split without images.
    """
    samples = () if dataset is None else _samples(dataset, split)
    images = None if dataset is None else [dataset.read_image(sample) for sample in _spread(samples, TIMED_IMAGES)]
    latencies = measure(
        bundles,
        sizes=dict.fromkeys(bundles, size) if size else _sizes_of(bundles, dataset),
        threads=threads,
        rounds=rounds,
        images=images,
        progress=progress,
    )
    widths_of, widths = (None, widths) if widths else _cut(bundles)
    report = build(
        bundles,
        latencies,
        scores,
        title=title,
        command=command,
        data=None if dataset is None else DataUsed.of(dataset.path, dataset.fingerprint, split, len(samples)),
        goals=goals,
        lookup_table_miou=lookup_table_miou,
        widths=widths,
        widths_of=widths_of,
        notes=notes,
    )
    strip = None if dataset is None or not pictures else _strip(bundles, scores, dataset, samples, threads)
    write(report, out, strip)
    return report


def _cut(bundles: Mapping[str, Bundle]) -> tuple[str | None, tuple[GroupWidth, ...]]:
    """What pruning cut from the first of `bundles`; nothing without the extra that draws plots, which has onnx too."""
    with suppress(MissingExtraError):
        require("onnx", extra="bench", purpose="showing what pruning cut")
        from benchmarks.cut import cut_from

        return cut_from(next(iter(bundles.values())), bundles)
    return None, ()


def named(bundles: Sequence[Bundle]) -> dict[str, Bundle]:
    """Bundles by the name in their manifest, or by folder where only that is unique; else with a number added."""
    names = [bundle.manifest.name for bundle in bundles]
    if len(set(names)) < len(names):
        folders = [bundle.path.resolve().name for bundle in bundles]
        names = folders if len(set(folders)) == len(folders) else names
    seen: Counter[str] = Counter()
    named = {}
    for name, bundle in zip(names, bundles, strict=True):
        seen[name] += 1
        unique = name if seen[name] == 1 else f"{name}-{seen[name]}"
        while unique in named:
            unique += "-"
        named[unique] = bundle
    return named


def _on_each(bundles: Mapping[str, Bundle], providers: Sequence[Provider]) -> dict[str, Bundle]:
    """Each bundle on each provider; the provider is added to the name unless everything runs on the CPU.

    Raises UsageError for a provider that is not available.
    """
    asked = {provider: tuple(required(provider)) for provider in dict.fromkeys(providers)}
    return {
        name if list(asked) == [Provider.CPU] else f"{name} on {provider}": replace(bundle, providers=runtime_names)
        for name, bundle in bundles.items()
        for provider, runtime_names in asked.items()
    }


def _dataset_for(bundles: Mapping[str, Bundle], path: Path) -> Dataset:
    """The dataset, with as many channels as the models take.

    Raises UsageError when the models' channels differ, or their classes are not those of the data.
    """
    channels = {name: bundle.manifest.channels for name, bundle in bundles.items()}
    if len(set(channels.values())) > 1:
        spelt = ", ".join(f"{name} {count}" for name, count in channels.items())
        raise UsageError(f"the models take images with different channels ({spelt}); compare models that take the same")
    dataset = open_dataset(path, channels=next(iter(channels.values())))
    for name, bundle in bundles.items():
        if bundle.manifest.classes != dataset.classes:
            raise UsageError(
                f"{name} knows the classes {', '.join(bundle.manifest.classes)}; {path} has "
                f"{', '.join(dataset.classes)}; score it on data with its own classes"
            )
    return dataset


def _samples(dataset: Dataset, split: Split) -> tuple[Sample, ...]:
    samples = dataset.split(split)
    if not samples:
        raise DatasetError(dataset.path, [f"the {split} split has no images; choose another split"])
    return samples


def _spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """At most `count` of `samples`, evenly spaced."""
    positions = np.linspace(0, len(samples) - 1, min(count, len(samples))).astype(int)
    return [samples[position] for position in positions]


def _sizes_of(bundles: Mapping[str, Bundle], dataset: Dataset | None) -> dict[str, tuple[int, int]]:
    """The size at which each model would run: what it resizes images to, or one for all that take them as they are."""
    reference = next(iter(bundles.values())).manifest
    shared = reference.own_size or DEFAULT_SIZE if dataset is None else usual_size(dataset)
    return {name: bundle.manifest.size or shared for name, bundle in bundles.items()}


def _strip(
    bundles: Mapping[str, Bundle],
    scores: Mapping[str, Score],
    dataset: Dataset,
    samples: Sequence[Sample],
    threads: int | None,
) -> Strip | None:
    """Pictures of a few images; None if there is nothing to compare with the reference."""
    reference, compressed = next(iter(bundles)), list(bundles)[-1]
    if reference == compressed or not {reference, compressed} <= scores.keys():
        return None
    by_name = {sample.name: sample for sample in samples}

    def load_pair(name: str) -> tuple[U8, U8]:
        return dataset.read_image(by_name[name]), dataset.read_mask(by_name[name])

    return strip_of(
        choose(scores[reference], scores[compressed]),
        load_pair,
        [(name, bundles[name].segmenter(threads=threads).segment) for name in (reference, compressed)],
        classes=dataset.classes,
        colours=dataset.colours,
    )
