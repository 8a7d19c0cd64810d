"""The report as files: report.json, report.md, report.html, and the PNG that the Markdown shows."""

from collections.abc import Iterable
from html import escape as in_html
from pathlib import Path

from benchmarks.report.html import bullets, checks, document, how_it_was_measured, html_table, plots_section, section
from benchmarks.report.load.plots import draw
from benchmarks.report.load.results import LoadReport
from benchmarks.report.load.table import ceiling, costs, runs, stages
from benchmarks.report.load.words import circumstances, headline
from benchmarks.report.markdown import check_lines, code_lines, escaped, table_lines
from benchmarks.report.plots import Plot
from benchmarks.report.table import Table
from benchmarks.report.write import JSON, MARKDOWN, PAGE
from export.errors import MissingExtraError
from export.files import make_folder, write_atomic, write_json

_PICTURE = "latency.png"


def write(report: LoadReport, out: Path) -> None:
    """Write `report` into the folder `out`. Without matplotlib there is neither picture nor page."""
    make_folder(out)
    files: dict[str, str | bytes] = {}
    try:
        plot = draw(report)
    except MissingExtraError:
        plot = None
    else:
        files[PAGE] = document(report.title, _body(report, plot))
    files[MARKDOWN] = "\n".join(_markdown(report, plot)) + "\n"
    if plot is not None:
        files[_PICTURE] = plot.png
    for name in {_PICTURE, PAGE} - files.keys():
        (out / name).unlink(missing_ok=True)
    for name, content in files.items():
        write_atomic(out / name, content)
    # Last: whoever finds it finds the others whole.
    write_json(out / JSON, report.model_dump(mode="json"))


def _details(report: LoadReport) -> Iterable[tuple[str, Table | None]]:
    yield "Without HTTP", ceiling(report)
    yield "Where the time goes", stages(report)
    yield "What it costs", costs(report)


def _markdown(report: LoadReport, plot: Plot | None) -> Iterable[str]:
    yield from (f"# {escaped(report.title)}", "", f"**{escaped(headline(report))}**", "")
    yield from table_lines(runs(report))
    yield from check_lines(report.verdicts)
    if plot is not None:
        yield from (f"## {escaped(plot.title)}", "", f"![{escaped(plot.alt)}]({_PICTURE})", "")
    for title, table in _details(report):
        if table is not None:
            yield from (f"## {title}", "", *table_lines(table))
    if report.notes:
        yield from ("## Notes", "", *(f"- {escaped(note)}" for note in report.notes), "")
    yield from ("## How it was measured", "")
    yield from (f"- {escaped(name)}: {escaped(value)}" for name, value in circumstances(report))
    yield from ("", "Reproduce it with:", "", *code_lines(report.command))


def _body(report: LoadReport, plot: Plot | None) -> Iterable[str]:
    yield f'<header><p class="eyebrow">{in_html(report.title)}</p><h1>{in_html(headline(report))}</h1></header><main>'
    yield section("Results", html_table(runs(report), stacks=True))
    yield checks(report.verdicts)
    if plot is not None:
        yield plots_section([plot])
    for title, table in _details(report):
        if table is not None:
            yield section(title, html_table(table, stacks=True))
    if report.notes:
        yield section("Notes", bullets(report.notes))
    yield how_it_was_measured(circumstances(report), report.command)
    yield "</main>"
