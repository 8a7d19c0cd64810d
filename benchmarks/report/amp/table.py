"""The report's tables, for terminal and Markdown alike."""

from benchmarks.report.amp.results import Accuracy, AmpReport, Cell, CellResult
from benchmarks.report.amp.verdicts import memory_saved, speedup
from benchmarks.report.table import Table
from benchmarks.report.words import DASH, miou, number, optional, percent, spread, times


def grid(report: AmpReport) -> Table:
    """What each cell costs."""
    headers = ("precision", "layout", "mode", "ms", "gain", "on plain", "MiB", "saved")
    plain = report.result(Cell(precision="float32", channels_last=False, compiled=False))

    def row(result: CellResult) -> tuple[str, ...]:
        reference = report.counterpart(result)
        cell = result.cell
        return (
            cell.precision,
            cell.layout,
            cell.mode,
            _step(result),
            _times(speedup(result, reference)),
            _times(speedup(result, plain)),
            optional(result.peak_memory_mib),
            _share(memory_saved(result, reference)),
        )

    caption = (
        "Medians of the milliseconds a step, and peak memory. gain, saved: against float32 in the same layout and "
        "mode; on plain: gain over float32 contiguous eager"
    )
    return Table(caption, headers, tuple(map(row, report.cells)))


def checks(report: AmpReport) -> Table:
    """Whether each cell ran as labelled, and how far its figures can be trusted."""
    headers = ("cell", "logits", "rounding", "timed steps", "lowest ms", "highest ms", "first step ms", "skipped")

    def row(result: CellResult) -> tuple[str, ...]:
        samples = result.samples_ms
        return (
            result.cell.name,
            f"{result.compute_dtype} {result.compute_layout}" if result.compute_dtype else DASH,
            DASH if result.rounding is None else f"{result.rounding:.0e}",
            str(len(samples)),
            optional(min(samples, default=None)),
            optional(max(samples, default=None)),
            optional(next(iter(result.untimed_ms), None)),
            str(result.skipped_steps),
        )

    caption = (
        "rounding: error of one convolution in the same process against float64, over its largest value. The first "
        "step includes the compiler. skipped: timed steps without the optimizer, because a gradient was beyond float16"
    )
    return Table(caption, headers, tuple(map(row, report.cells)))


def seeds(accuracy: Accuracy) -> Table:
    """The pairs of trainings."""
    rows: list[tuple[str, ...]] = [
        (f"seed {seed.seed}", miou(seed.float32), miou(seed.reduced), miou(seed.float32 - seed.reduced))
        for seed in accuracy.seeds
    ]
    rows.append(("mean ± deviation", *map(spread, (accuracy.float32, accuracy.reduced, accuracy.drop))))
    caption = f"mIoU on the {accuracy.data.split} split, scored in float32 whatever the training's precision"
    return Table(caption, ("training", "float32", accuracy.precision, "lost"), tuple(rows))


def supplies(accuracy: Accuracy) -> Table:
    """What feeds the trainings."""
    rows = tuple(
        (
            f"{supply.precision}, seed {supply.seed}",
            number(supply.feed_images_s),
            number(supply.network_images_s),
            times(supply.ratio),
        )
        for supply in accuracy.supplies
    )
    caption = (
        "Images a second: data and augmentation alone; the network alone (forward, backward, optimizer). Timed "
        "separately in the steps of each training"
    )
    return Table(caption, ("training", "supplied", "taken", "ratio"), rows)


def tables(report: AmpReport) -> tuple[Table, ...]:
    """The tables that show `report` in a few lines."""
    return (
        *([grid(report)] if report.cells else []),
        *([] if report.accuracy is None else [seeds(report.accuracy)]),
        *([supplies(report.accuracy)] if report.accuracy is not None and report.accuracy.supplies else []),
    )


def _step(result: CellResult) -> str:
    if result.step_ms is not None:
        return number(result.step_ms)
    return "failed" if result.at_least_ms is None else f"≥ {number(result.at_least_ms)}"


def _times(gain: float | None) -> str:
    return DASH if gain is None else times(gain)


def _share(share: float | None) -> str:
    return DASH if share is None else percent(share)
