"""What was promised of mixed precision, compared with what was measured.

The promise is checked on cells that differ in nothing but their precision: the product's own way to run
(channels_last, eager), in float32 and in what `compress train` chooses. Gains from the memory layout or the
compiler are named, but not counted.
"""

from collections.abc import Iterable

from benchmarks.report.amp.results import Accuracy, AmpReport, Cell, CellResult
from benchmarks.report.results import Verdict
from benchmarks.report.words import lost, miou, number, optional, percent, times

FASTER = 2.5
"""Times."""
LESS_MEMORY = 0.47
"""Share of the peak."""
LOST_MIOU = 0.003
SUPPLY = 1.5
"""Times the images that the network takes: with less, a step waits for its images, or nearly so."""


def verdicts(report: AmpReport) -> tuple[Verdict, ...]:
    """One for each part of the promise that was measured."""
    return (*_grid(report), *([] if report.accuracy is None else [_accuracy(report.accuracy), *_fed(report.accuracy)]))


def speedup(result: CellResult | None, reference: CellResult | None) -> float | None:
    """Median of `reference` over that of `result`; None where either has none."""
    if result is None or reference is None or result.step_ms is None or reference.step_ms is None:
        return None
    return reference.step_ms / result.step_ms


def memory_saved(result: CellResult | None, reference: CellResult | None) -> float | None:
    """Share of the peak memory of `reference` that `result` does not need; None where either is not known."""
    if result is None or reference is None or result.peak_memory_mib is None or not reference.peak_memory_mib:
        return None
    return 1 - result.peak_memory_mib / reference.peak_memory_mib


def product(report: AmpReport) -> CellResult | None:
    """The cell that `compress train` runs in."""
    return report.result(Cell(precision=report.precision, channels_last=True, compiled=False))


def _grid(report: AmpReport) -> Iterable[Verdict]:
    chosen = product(report)
    reference = None if chosen is None else report.counterpart(chosen)
    if chosen is None or reference is None:
        return
    gain, saved = speedup(chosen, reference), memory_saved(chosen, reference)
    sides = f"{chosen.cell.name} against {reference.cell.name}"
    if chosen is reference:
        sides = f"compress train chooses float32 here, {report.reason}"
    yield _held(
        f"{times(FASTER)} faster",
        None if gain is None else gain >= FASTER,
        f"{times(gain or 0)}, {optional(chosen.step_ms)} ms a step against {optional(reference.step_ms)}; "
        f"{sides}{_beside(report, chosen)}",
    )
    yield _held(
        f"{LESS_MEMORY:.0%} less memory",
        None if saved is None else saved >= LESS_MEMORY,
        f"{percent(saved or 0)} less, peak {optional(chosen.peak_memory_mib)} MiB against "
        f"{optional(reference.peak_memory_mib)}; {sides}",
    )


def _held(promise: str, ok: bool | None, detail: str) -> Verdict:
    """The verdict on a promise; `ok` is None if it could not be checked."""
    if ok is None:
        return Verdict(ok=False, text=f"promise not checked: {promise}", detail="a cell that it needs has no figure")
    return Verdict(ok=ok, text=f"promise {'kept' if ok else 'missed'}: {promise}", detail=detail)


def _beside(report: AmpReport, chosen: CellResult) -> str:
    """The gain of the same cell over others that a reader may have in mind."""
    others = (
        Cell(precision="float32", channels_last=False, compiled=False),
        Cell(precision="tf32", channels_last=True, compiled=False),
    )
    known = ((cell.name, speedup(chosen, report.result(cell))) for cell in others)
    return "".join(f"; {times(gain)} over {name}" for name, gain in known if gain is not None)


def _accuracy(accuracy: Accuracy) -> Verdict:
    count = len(accuracy.seeds)
    return _held(
        f"at most {miou(LOST_MIOU)} mIoU lost",
        round(accuracy.drop.mean, 6) <= LOST_MIOU,  # the difference of two doubles is slightly off
        f"{accuracy.precision} {lost(accuracy.drop.mean)} against float32 ({miou(accuracy.float32.mean)} to "
        f"{miou(accuracy.reduced.mean)}, mean of {count} seed{'s' if count != 1 else ''}); {resolved(accuracy)}",
    )


def _fed(accuracy: Accuracy) -> Iterable[Verdict]:
    if not accuracy.supplies:
        return
    least = min(accuracy.supplies, key=lambda supply: supply.ratio)
    yield _held(
        f"data and augmentation supply {times(SUPPLY)} the images that the network takes",
        least.ratio >= SUPPLY,
        f"at least {times(least.ratio)}, {number(least.feed_images_s)} against {number(least.network_images_s)} images "
        f"a second in {least.precision} from seed {least.seed}",
    )


def resolved(accuracy: Accuracy) -> str:
    """What these seeds can tell, in words."""
    if accuracy.drop_interval is None or accuracy.resolution is None:
        return "one seed says nothing about the spread: give --seeds"
    low, high = accuracy.drop_interval
    figures = f"the loss lies between {miou(low)} and {miou(high)} (95 %)"
    if high <= LOST_MIOU or low > LOST_MIOU:
        return figures
    return (
        f"{figures}, so these seeds cannot tell: they resolve a difference of {miou(accuracy.resolution)}, "
        f"and {miou(LOST_MIOU)} is promised"
    )
