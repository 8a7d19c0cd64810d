"""The report as files: report.json and report.md."""

from collections.abc import Iterable
from pathlib import Path

from benchmarks.report.folder import MARKDOWN, write_report
from benchmarks.report.markdown import closing_lines, escaped, joined, table_lines
from benchmarks.report.table import Table
from benchmarks.report.widths.results import Choice, WidthsReport
from benchmarks.report.words import DASH, machine_facts, millions, miou, number, percent, threads, times


def summary(report: WidthsReport) -> Table:
    """A row for each choice."""

    def row(choice: Choice) -> tuple[str, ...]:
        error = choice.speedup_predicted / choice.speedup - 1
        return (
            choice.name,
            number(choice.latency_ms.p50),
            times(choice.speedup),
            f"{times(choice.speedup_predicted)} ({percent(error)})",
            millions(choice.macs),
            percent(choice.importance_lost),
            DASH if choice.damage is None else number(choice.damage),
            miou(choice.miou),
        )

    headers = (
        "widths by",
        "p50 ms",
        "speed-up",
        "predicted",
        "MMACs",
        "importance lost",
        "damage",
        "val mIoU, not fine-tuned",
    )
    size = f"{report.height}x{report.width}"
    caption = f"{report.precision}, {threads(report.threads)}, batch 1, {size}; predicted: by the latency table (error)"
    return Table(caption, headers, tuple(map(row, report.choices)))


def widths(report: WidthsReport) -> Table:
    """A row for each group of layers."""
    dense = report.choices[0].widths
    rows = tuple((layer, *(str(choice.widths[layer]) for choice in report.choices)) for layer in dense)
    return Table("Channels of each group of layers", ("group", *(choice.name for choice in report.choices)), rows)


def write(report: WidthsReport, out: Path) -> None:
    """Write `report` into the folder `out`."""
    write_report(out, report, {MARKDOWN: joined(_lines(report))})


def _lines(report: WidthsReport) -> Iterable[str]:
    yield from (f"# {escaped(report.title)}", "")
    yield from table_lines(summary(report))
    yield from (f"- {escaped(choice.name)}: {escaped(choice.how)}" for choice in report.choices)
    yield from ("", "## Widths", "")
    yield from table_lines(widths(report), caption=False)
    yield from closing_lines(report, _circumstances(report))


def _circumstances(report: WidthsReport) -> Iterable[tuple[str, str]]:
    rounds = len(report.choices[0].latency_ms.samples)
    yield "Date", report.date
    yield "Latency", f"through ONNX Runtime, spinning off, {rounds} rounds, all networks taking turns in one process"
    yield "Importance", report.importance
    data = report.data
    yield "Data", f"{data.name}, {data.split} split, {data.images} images, fingerprint {data.fingerprint}"
    yield from machine_facts(report.machine)
