"""The report as Markdown, for a repository or a pull request."""

import re
from collections.abc import Iterable, Sequence

from benchmarks.report.plots import Plot
from benchmarks.report.results import Measurement, Report, Verdict
from benchmarks.report.strip import DIFFERENCES, Strip
from benchmarks.report.table import Table, details, narrowed, per_class, summary
from benchmarks.report.words import circumstances, failed_first, headline, judgement

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&$])")


def markdown(report: Report, plots: Sequence[Plot], strip: Strip | None) -> str:
    """The whole report; it shows pictures from the files beside it."""
    return joined(_lines(report, plots, strip))


def escaped(text: str) -> str:
    """`text` on one line, so that Markdown shows it as it is."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _lines(report: Report, plots: Sequence[Plot], strip: Strip | None) -> Iterable[str]:
    yield f"# {escaped(report.title)}"
    yield ""
    yield f"**{escaped(headline(report))}** {escaped(judgement(report))}"
    yield ""
    yield from table_lines(summary(report))
    if report.verdicts:
        yield from check_lines(report.verdicts)
    if report.failures:
        yield from ("## What could not be measured", "", *(f"- {escaped(line)}" for line in report.failures), "")
    yield from picture_lines(plots)
    if strip is not None:
        yield from _strip(strip)
    classes = per_class(report)
    if classes is not None:
        yield from (f"## {escaped(classes.caption)}", "")
        yield from table_lines(classes, caption=False)
    cut = narrowed(report)
    if cut is not None:
        yield from (f"## What pruning cut, by {cut.headers[0]}", "")
        yield from table_lines(cut)
    yield from ("## More figures", "")
    yield from table_lines(details(report))
    yield from closing_lines(report, circumstances(report))


def joined(lines: Iterable[str]) -> str:
    """The lines as the text of a file."""
    return "\n".join(lines) + "\n"


def picture_lines(plots: Iterable[Plot], *, titled: bool = True) -> Iterable[str]:
    """The pictures of `plots`, from the files beside the Markdown; a blank line after each."""
    for plot in plots:
        if titled:
            yield from (f"## {escaped(plot.title)}", "")
        yield from (f"![{escaped(plot.alt)}]({plot.file})", "")


def closing_lines(report: Measurement, facts: Iterable[tuple[str, str]]) -> Iterable[str]:
    """What every report ends with: its notes, how it was measured, and the command that measures it again."""
    if report.notes:
        yield from ("## Notes", "", *(f"- {escaped(note)}" for note in report.notes), "")
    yield from ("## How it was measured", "", *(f"- {escaped(name)}: {escaped(value)}" for name, value in facts), "")
    yield from command_lines(report.command)


def command_lines(command: str) -> Iterable[str]:
    """How to make the same again."""
    return ("Reproduce it with:", "", *code_lines(command))


def check_lines(verdicts: Sequence[Verdict]) -> Iterable[str]:
    """What the figures were checked for, and whether it holds; a blank line after it."""
    yield from ("## Checks", "")
    for verdict in failed_first(verdicts):
        mark = "passed" if verdict.ok else "**failed**"
        yield f"- {mark}: {escaped(verdict.text)} ({escaped(verdict.detail)})"
    yield ""


def table_lines(table: Table, *, caption: bool = True) -> Iterable[str]:
    """Names to the left, figures to the right; a blank line after it."""
    yield "| " + " | ".join(map(escaped, table.headers)) + " |"
    yield "| --- |" + " ---: |" * (len(table.headers) - 1)
    for row in table.rows:
        yield "| " + " | ".join(map(escaped, row)) + " |"
    yield ""
    if caption:
        yield from (f"{escaped(table.caption)}.", "")


def _strip(strip: Strip) -> Iterable[str]:
    yield from ("## What it looks like", "")
    yield f"![{escaped(', '.join(strip.columns))} of {len(strip.rows)} images](strip.png)"
    yield ""
    for index, row in enumerate(strip.rows, start=1):
        yield f"{index}. {escaped(row.name)}: {row.reason}; {row.differing:.2%} of its pixels differ"
    yield ""
    yield f"Classes: {_legend(zip(strip.classes, strip.colours, strict=True))}."
    yield f"Where they differ: {_legend(DIFFERENCES)}."
    yield ""


def _legend(entries: Iterable[tuple[str, tuple[int, int, int]]]) -> str:
    return "; ".join(f"{escaped(name)} `#{bytes(colour).hex()}`" for name, colour in entries)


def code_lines(text: str) -> Iterable[str]:
    """A fenced block; the fence is longer than any run of backticks within."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return (fence, text, fence)
