"""Figures and sentences, spelt alike in every form of the report."""

import math
from collections.abc import Sequence

from benchmarks.report.results import Report, Verdict
from benchmarks.report.spread import Spread
from export.machine import Machine

MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
DASH = "\N{EN DASH}"


def number(value: float) -> str:
    """Three significant digits, whole numbers in full, no exponent: 0.0123, 4.56, 31,101."""
    if value == 0:
        return "0"
    decimals = 2 - math.floor(math.log10(abs(value)))
    return f"{value:,.{min(max(decimals, 0), 9)}f}".replace("-", MINUS)


def optional(value: float | None) -> str:
    return DASH if value is None else number(value)


def miou(value: float | None) -> str:
    """Four decimals: a hundredth of a point."""
    return DASH if value is None else f"{value:.4f}".replace("-", MINUS)


def interval(bounds: tuple[float, float] | None) -> str:
    return DASH if bounds is None else f"{miou(bounds[0])} to {miou(bounds[1])}"


def spread(figure: Spread) -> str:
    """An mIoU over several seeds, with its deviation where there are several."""
    return miou(figure.mean) + ("" if figure.deviation is None else f" ± {miou(figure.deviation)}")


def times(value: float) -> str:
    """A ratio: 0.92, 6.20, 14.2, 131."""
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{decimals}f}{TIMES}"


def percent(share: float) -> str:
    """Whole percent: 47%."""
    return f"{round(share, 2) + 0.0:.0%}".replace("-", MINUS)  # + 0.0 turns -0.0 into 0.0


def millions(value: float) -> str:
    return number(value / 1e6)


def faster(gain: float) -> str:
    """A speed-up in words; below 1 it is a slow-down."""
    return f"{times(gain)} faster" if gain >= 1 else f"{times(1 / gain)} slower"


def smaller(ratio: float) -> str:
    """A ratio of sizes, reference over model, in words."""
    return f"{times(ratio)} smaller" if ratio >= 1 else f"{times(1 / ratio)} larger"


def lost(drop: float) -> str:
    """An mIoU drop in words; below 0 it is a gain."""
    if round(drop, 4) == 0:
        return "loses no mIoU"
    return f"{'loses' if drop > 0 else 'gains'} {miou(abs(drop))} mIoU"


def threads(count: int) -> str:
    return f"{count} thread{'s' if count != 1 else ''}"


def size(report: Report) -> str:
    """Height and width at which the models were timed, as `--size` takes them; all of them, where they differ."""
    settings = report.settings
    sizes = {model.timed_at or (settings.height, settings.width) for model in report.models}
    return " or ".join(f"{height}x{width}" for height, width in sorted(sizes))


def miou_header(report: Report) -> str:
    """`test mIoU` where every score is of that split."""
    splits = {model.miou_split for model in report.models if model.miou is not None}
    return f"{splits.pop()} mIoU" if len(splits) == 1 else "mIoU"


def headline(report: Report) -> str:
    """The result in one sentence."""
    reference, compressed = report.reference_model, report.compressed_model
    took = number(compressed.latency_ms.p50)
    if reference is compressed:
        scored = "" if compressed.miou is None else f" and scores {miou(compressed.miou)} mIoU"
        return f"{compressed.name} takes {took} ms an image{scored}."
    parts = [f"{faster(report.speedup)} than {reference.name} ({took} against {number(reference.latency_ms.p50)} ms)"]
    parts.append(smaller(reference.size_bytes / compressed.size_bytes))
    sentence = f"{compressed.name} is {parts[0]}, {parts[1]}"
    if report.miou_drop is None:
        return f"{sentence}; the drop in accuracy is not known."
    scores = f"{miou(reference.miou)} to {miou(compressed.miou)}"
    return f"{sentence}, and {lost(report.miou_drop)} ({scores})."


def judgement(report: Report) -> str:
    """Whether the headline may be believed, in one sentence."""
    failed = [verdict.text for verdict in report.verdicts if not verdict.ok]
    broken = len(report.failures)
    if failed:
        found = f"{len(failed)} of {len(report.verdicts)} checks failed: {'; '.join(failed)}"
    elif report.verdicts:
        count = len(report.verdicts)
        found = f"All {count} checks passed" if count > 1 else "The one check passed"
    else:
        found = "No check applies to these models" if len(report.models) > 1 else "Nothing to compare it with"
    return f"{found}; {broken} measurement{'s' if broken != 1 else ''} failed." if broken else f"{found}."


def failed_first(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """What the reader must not miss comes first."""
    return sorted(verdicts, key=lambda verdict: verdict.ok)


def verdict_lines(verdicts: Sequence[Verdict]) -> list[str]:
    """For a terminal: a line for each verdict."""
    return [f"{'ok' if v.ok else 'NOT OK'}: {v.text} ({v.detail})" for v in failed_first(verdicts)]


def circumstances(report: Report) -> tuple[tuple[str, str], ...]:
    """The conditions of the measurement: data, settings, machine, versions."""
    settings = report.settings
    inputs = "real images" if settings.real_images else "seeded noise"
    facts = [
        ("Date", report.date),
        (
            "Latency",
            f"uint8 image to uint8 mask through ONNX Runtime, batch 1, {size(report)}, {threads(settings.threads)}, "
            f"spinning off; {settings.rounds} rounds after {settings.warmup} to warm up, with the models taking turns "
            f"in one process, on {inputs}",
        ),
    ]
    if report.data is not None:
        data = report.data
        facts += [
            ("Data", f"{data.name}, {data.split} split, {data.images} images, fingerprint {data.fingerprint}"),
            ("mIoU", "one confusion matrix over the split, void ignored, mean over the classes, at mask size"),
        ]
    facts += [
        *machine_facts(report.machine),
        ("Bundles", ", ".join(f"{model.name} from {model.bundle}" for model in report.models)),
        *((f"Recipe of {model.name}", ", ".join(model.recipe)) for model in report.models if model.recipe),
    ]
    return tuple(facts)


def machine_facts(machine: Machine) -> tuple[tuple[str, str], ...]:
    """Machine and versions, named."""
    return (
        (
            "Machine",
            f"{machine.cpu}, {machine.cores} usable core{'s' if machine.cores != 1 else ''}, "
            f"{machine.memory_gib} GiB, {machine.instruction_set}",
        ),
        ("System", f"{machine.system}, Python {machine.python}"),
        ("Libraries", ", ".join(f"{name} {version}" for name, version in machine.libraries.items())),
    )
