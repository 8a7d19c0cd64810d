"""The report as files: report.json, report.md, and the picture that the Markdown shows."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.report.ablation.plots import draw
from benchmarks.report.ablation.results import AblationReport, key
from benchmarks.report.ablation.table import of_group
from benchmarks.report.folder import MARKDOWN, write_report
from benchmarks.report.markdown import closing_lines, escaped, joined, picture_lines, table_lines
from benchmarks.report.plots import Plot, drawn, pictures
from benchmarks.report.words import machine_facts, miou
from compress.recipe import unusual


def headlines(report: AblationReport) -> Iterable[str]:
    """What is better or worse than the base beyond the spread, on the test split."""
    if report.deviation is None:
        yield "One seed says nothing about the spread, so no difference can be told from chance; give --seeds."
        return
    for judgement in ("better", "worse"):
        found = [
            (difference.mean, name)
            for name, difference in report.differences_test.items()
            if difference.judgement == judgement
        ]
        named = ", ".join(f"{name} ({miou(abs(mean))})" for mean, name in sorted(found, key=lambda item: -abs(item[0])))
        yield f"{judgement.capitalize()} than the base on the test split, beyond the spread: {named or 'none'}."


def write(report: AblationReport, out: Path) -> None:
    """Write `report` into the folder `out`; without matplotlib there is no picture."""
    plots = drawn(draw, report)
    files = {MARKDOWN: joined(_lines(report, plots)), **pictures(plots)}
    write_report(out, report, files, may_be_stale=("differences.png",))


def _lines(report: AblationReport, plots: Sequence[Plot]) -> Iterable[str]:
    yield from (f"# {escaped(report.title)}", "")
    yield from (f"- {escaped(line)}" for line in headlines(report))
    yield ""
    if failed := report.failures():
        yield from ("## What failed", "", *(f"- {escaped(line)}" for line in failed), "")
    yield from picture_lines(plots, titled=False)
    for group in report.by_group():
        yield from (f"## {escaped(group)}", "")
        yield from table_lines(of_group(report, group), caption=False)
    yield from (escaped(_spread_in_words(report)), "")
    yield from ("## What was changed", "")
    trained = {section: report.recipe[section] for section in ("data", "model", "train")}
    for variant in report.variants:
        settings = " ".join(f"`{setting}`" for setting in variant.settings) or "nothing"
        yield f"- {escaped(key(variant))}: {settings}"
    yield from ("", "The base: " + " ".join(f"`{setting}`" for setting in unusual(trained)), "")
    yield from closing_lines(report, _circumstances(report))


def _spread_in_words(report: AblationReport) -> str:
    text = (
        "Mean ± deviation over the seeds; train: on a few batches without augmentation; gained: mean minus that of the "
        "base, ± half of its 95 % interval. Each change is compared with the base and with nothing else, so of changes "
        "that do nothing, one in twenty lies outside by chance."
    )
    if report.deviation is None:
        return text
    found = report.deviation
    return (
        f"{text} The intervals assume that all trainings vary alike from seed to seed: {miou(found.val)} on validation "
        f"and {miou(found.test)} on test ({found.degrees} degrees of freedom)."
    )


def _circumstances(report: AblationReport) -> Iterable[tuple[str, str]]:
    yield "Date", report.date
    data, counts = report.data, ", ".join(f"{count} {split}" for split, count in report.images.items())
    yield "Data", f"{data.name}, {counts} images, fingerprint {data.fingerprint}"
    yield (
        "mIoU",
        "of the epoch that the validation split ranked first, in torch float32; the test split is used only after that",
    )
    yield from machine_facts(report.machine)
