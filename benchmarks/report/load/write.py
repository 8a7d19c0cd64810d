"""The report as files: report.json, report.md, report.html, and the PNG that the Markdown shows."""

from collections.abc import Iterable, Sequence
from html import escape as in_html
from pathlib import Path

from benchmarks.report.folder import MARKDOWN, PAGE, write_report
from benchmarks.report.html import bullets, checks, document, how_it_was_measured, html_table, plots_section, section
from benchmarks.report.load.plots import draw
from benchmarks.report.load.results import LoadReport
from benchmarks.report.load.table import ceiling, costs, runs, stages
from benchmarks.report.load.words import circumstances, headline
from benchmarks.report.markdown import check_lines, closing_lines, escaped, joined, picture_lines, table_lines
from benchmarks.report.plots import Plot, drawn, pictures, shortcomings
from benchmarks.report.table import Table


def write(report: LoadReport, out: Path) -> None:
    """Write `report` into the folder `out`. Without matplotlib there is neither picture nor page."""
    plots = drawn(draw, report)
    files = {MARKDOWN: joined(_markdown(report, plots)), **pictures(plots)}
    if not shortcomings():
        files[PAGE] = document(report.title, _body(report, plots))
    write_report(out, report, files, may_be_stale=("latency.png",))


def _details(report: LoadReport) -> Iterable[tuple[str, Table | None]]:
    yield "Without HTTP", ceiling(report)
    yield "Where the time goes", stages(report)
    yield "What it costs", costs(report)


def _markdown(report: LoadReport, plots: Sequence[Plot]) -> Iterable[str]:
    yield from (f"# {escaped(report.title)}", "", f"**{escaped(headline(report))}**", "")
    yield from table_lines(runs(report))
    yield from check_lines(report.verdicts)
    yield from picture_lines(plots)
    for title, table in _details(report):
        if table is not None:
            yield from (f"## {title}", "", *table_lines(table))
    yield from closing_lines(report, circumstances(report))


def _body(report: LoadReport, plots: Sequence[Plot]) -> Iterable[str]:
    yield f'<header><p class="eyebrow">{in_html(report.title)}</p><h1>{in_html(headline(report))}</h1></header><main>'
    yield section("Results", html_table(runs(report), stacks=True))
    yield checks(report.verdicts)
    if plots:
        yield plots_section(plots)
    for title, table in _details(report):
        if table is not None:
            yield section(title, html_table(table, stacks=True))
    if report.notes:
        yield section("Notes", bullets(report.notes))
    yield how_it_was_measured(circumstances(report), report.command)
    yield "</main>"
