"""The report's tables, for terminal and Markdown alike."""

from collections.abc import Sequence
from statistics import fmean, median

from benchmarks.report.ablation.results import AblationReport, Difference, Run, Variant, key, of_runs
from benchmarks.report.table import Table
from benchmarks.report.words import DASH, MINUS, miou, number, spread

HEADERS = (
    "change",
    "seeds",
    "train mIoU",
    "val mIoU",
    "test mIoU",
    "gained on val",
    "gained on test",
    "on test",
    "s a run",
)


def of_group(report: AblationReport, group: str) -> Table:
    """A row for each change of `group`, under that of the base."""
    base = (
        "base",
        *_scores(report.base),
        *(DASH,) * 3,
        _seconds(report.base),
    )
    rows = [base, *(_row(report, variant) for variant in report.by_group()[group])]
    return Table(group, HEADERS, tuple(rows))


def _row(report: AblationReport, variant: Variant) -> tuple[str, ...]:
    if variant.same_as_base:
        return (variant.name, *(DASH,) * 6, "is the base", DASH)
    if not variant.runs:
        return (variant.name, "0", *(DASH,) * 5, "failed", DASH)
    on_test = report.differences_test[key(variant)]
    return (
        variant.name,
        *_scores(variant.runs),
        _gain(report.differences_val[key(variant)]),
        _gain(on_test),
        on_test.judgement,
        _seconds(variant.runs),
    )


def _scores(runs: Sequence[Run]) -> tuple[str, ...]:
    trained = [run.train for run in runs if run.train is not None]
    on_train = miou(fmean(trained)) if trained else DASH
    return str(len(runs)), on_train, spread(of_runs(runs, "val")), spread(of_runs(runs, "test"))


def _seconds(runs: Sequence[Run]) -> str:
    return number(median(run.seconds for run in runs))


def _gain(difference: Difference) -> str:
    sign = "+" if difference.mean >= 0 else MINUS
    reach = "" if difference.interval is None else f" ± {miou((difference.interval[1] - difference.interval[0]) / 2)}"
    return f"{sign}{miou(abs(difference.mean))}{reach}"
