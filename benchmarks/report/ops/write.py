"""The report as files: report.json, report.md, report.html, and the PNG that the Markdown shows."""

from collections.abc import Iterable
from html import escape as in_html
from pathlib import Path

from benchmarks.report.html import bullets, document, how_it_was_measured, html_table, plots_section, section
from benchmarks.report.markdown import code_lines, escaped, table_lines
from benchmarks.report.ops.plots import draw
from benchmarks.report.ops.results import BundleOps, OpsReport
from benchmarks.report.ops.table import nodes, operators, peaks, summary
from benchmarks.report.ops.words import circumstances, float_lines, headline, in_float
from benchmarks.report.plots import Plot
from benchmarks.report.write import JSON, MARKDOWN, PAGE
from export.errors import MissingExtraError
from export.files import make_folder, write_atomic, write_json

_PICTURE = "operators.png"


def write(report: OpsReport, out: Path) -> Path:
    """Write `report` into the folder `out`; return the file to open. Without matplotlib there is neither picture nor
    page, and the report's notes say so."""
    make_folder(out)
    plot: Plot | None
    try:
        plot = draw(report)
    except MissingExtraError:
        plot = None
    files: dict[str, str | bytes] = {MARKDOWN: "\n".join(_markdown(report, plot)) + "\n"}
    if plot is not None:
        files |= {_PICTURE: plot.png, PAGE: document(report.title, _body(report, plot))}
    for name in {_PICTURE, PAGE} - files.keys():
        (out / name).unlink(missing_ok=True)
    for name, content in files.items():
        write_atomic(out / name, content)
    # Last: whoever finds it finds the others whole.
    write_json(out / JSON, report.model_dump(mode="json"))
    return out / (PAGE if plot is not None else MARKDOWN)


def _markdown(report: OpsReport, plot: Plot | None) -> Iterable[str]:
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
    if plot is not None:
        yield from (f"![{escaped(plot.alt)}]({_PICTURE})", "")
    yield from table_lines(operators(report))
    for bundle in report.bundles:
        yield from (f"## Nodes of {escaped(bundle.name)}", "")
        yield from table_lines(nodes(bundle))
    if report.notes:
        yield from ("## Notes", "", *(f"- {escaped(note)}" for note in report.notes), "")
    yield from ("## How it was measured", "")
    yield from (f"- {escaped(name)}: {escaped(value)}" for name, value in circumstances(report))
    yield from ("", "Reproduce it with:", "", *code_lines(report.command))


def _body(report: OpsReport, plot: Plot) -> Iterable[str]:
    first, *others = map(headline, report.bundles)
    yield f'<header><p class="eyebrow">{in_html(report.title)}</p><h1>{in_html(first)}</h1>'
    yield from (f"<p>{in_html(other)}</p>" for other in others)
    yield "</header><main>"
    found = peaks(report)
    results = html_table(summary(report), stacks=True, swatches=True)
    yield section("Results", results + ("" if found is None else html_table(found, stacks=True)))
    yield section("What runs in float, and why", "".join(map(_in_float, report.bundles)))
    yield plots_section([plot])
    yield section("Operators", html_table(operators(report)))
    yield from (section(f"Nodes of {bundle.name}", html_table(nodes(bundle))) for bundle in report.bundles)
    if report.notes:
        yield section("Notes", bullets(report.notes))
    yield how_it_was_measured(circumstances(report), report.command)
    yield "</main>"


def _in_float(bundle: BundleOps) -> str:
    lines = list(float_lines(bundle))
    return f"<p>{in_html(in_float(bundle))}</p>{bullets(lines) if lines else ''}"
