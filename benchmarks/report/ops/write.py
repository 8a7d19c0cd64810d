"""The report as files: report.json, report.md, report.html, and the PNG that the Markdown shows."""

from collections.abc import Iterable, Sequence
from html import escape as in_html
from pathlib import Path

from benchmarks.report.folder import MARKDOWN, PAGE, write_report
from benchmarks.report.html import bullets, document, how_it_was_measured, html_table, plots_section, section
from benchmarks.report.markdown import closing_lines, escaped, joined, picture_lines, table_lines
from benchmarks.report.ops.plots import draw
from benchmarks.report.ops.results import BundleOps, OpsReport
from benchmarks.report.ops.table import nodes, operators, peaks, summary
from benchmarks.report.ops.words import circumstances, float_lines, headline, in_float
from benchmarks.report.plots import Plot, drawn, pictures


def write(report: OpsReport, out: Path) -> None:
    """Write `report` into the folder `out`. Without matplotlib there is neither picture nor page, and the report's
    notes say so."""
    plots = drawn(draw, report)
    files = {MARKDOWN: joined(_markdown(report, plots)), **pictures(plots)}
    if plots:
        files[PAGE] = document(report.title, _body(report, plots))
    write_report(out, report, files, may_be_stale=("operators.png",))


def _markdown(report: OpsReport, plots: Sequence[Plot]) -> Iterable[str]:
    yield from (f"# {escaped(report.title)}", "")
    for bundle in report.bundles:
        yield from (f"**{escaped(headline(bundle))}**", "")
    yield from table_lines(summary(report))
    found = peaks(report)
    if found is not None:
        yield from table_lines(found)
    yield from ("## What runs in float, and why", "")
    for bundle in report.bundles:
        yield from (escaped(in_float(bundle)), "")
        lines = [f"- {escaped(line)}" for line in float_lines(bundle)]
        yield from (*lines, *([""] if lines else []))
    yield from ("## Operators", "")
    yield from picture_lines(plots, titled=False)
    yield from table_lines(operators(report))
    for bundle in report.bundles:
        yield from (f"## Nodes of {escaped(bundle.name)}", "")
        yield from table_lines(nodes(bundle))
    yield from closing_lines(report, circumstances(report))


def _body(report: OpsReport, plots: Sequence[Plot]) -> Iterable[str]:
    first, *others = map(headline, report.bundles)
    yield f'<header><p class="eyebrow">{in_html(report.title)}</p><h1>{in_html(first)}</h1>'
    yield from (f"<p>{in_html(other)}</p>" for other in others)
    yield "</header><main>"
    found = peaks(report)
    results = html_table(summary(report), stacks=True, swatches=True)
    yield section("Results", results + ("" if found is None else html_table(found, stacks=True)))
    yield section("What runs in float, and why", "".join(map(_in_float, report.bundles)))
    yield plots_section(plots)
    yield section("Operators", html_table(operators(report)))
    yield from (section(f"Nodes of {bundle.name}", html_table(nodes(bundle))) for bundle in report.bundles)
    if report.notes:
        yield section("Notes", bullets(report.notes))
    yield how_it_was_measured(circumstances(report), report.command)
    yield "</main>"


def _in_float(bundle: BundleOps) -> str:
    lines = list(float_lines(bundle))
    return f"<p>{in_html(in_float(bundle))}</p>{bullets(lines) if lines else ''}"
