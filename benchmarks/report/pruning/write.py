"""The analysis as files to be read: analysis.md, and the picture that it shows. `analysis.json` is the step's own."""

from collections.abc import Iterable
from pathlib import Path

from benchmarks.report.markdown import code_lines, escaped, table_lines
from benchmarks.report.plots import Plot, shortcomings
from benchmarks.report.pruning.plots import draw
from benchmarks.report.pruning.table import sensitivity
from compress.sensitivity import Analysis
from export.errors import MissingExtraError
from export.files import write_atomic

MARKDOWN, PICTURE = "analysis.md", "analysis.png"


def write(analysis: Analysis, folder: Path, *, command: str) -> None:
    """Into `folder`, which is there; without matplotlib there is no picture, and a note says so.

    `command` is what makes it again.
    """
    plots: tuple[Plot, ...]
    try:
        plots = (draw(analysis),) if analysis.most_sensitive_first() else ()
    except MissingExtraError:
        plots = ()
    for plot in plots:
        write_atomic(folder / PICTURE, plot.png)
    write_atomic(folder / MARKDOWN, "\n".join(_lines(analysis, plots, command)) + "\n")


def _lines(analysis: Analysis, plots: tuple[Plot, ...], command: str) -> Iterable[str]:
    yield from ("# What each group of layers costs", "")
    yield (
        f"Each group of coupled layers of {escaped(analysis.parent)} was cut alone, the others left whole, to "
        f"multiples of {analysis.multiple} channels, the least important by {analysis.importance} first. BatchNorm "
        "statistics were taken again, nothing was fine-tuned: what a network loses for good is less, and cuts of "
        "several groups do not add up. Read the order, not the figures."
    )
    yield ""
    yield from table_lines(sensitivity(analysis))
    if whole := analysis.at_their_floor():
        names = ", ".join(f"{group.group} ({group.width})" for group in whole)
        yield from (f"At their floor, not to be cut: {escaped(names)}.", "")
    for plot in plots:
        yield from (f"![{escaped(plot.alt)}]({PICTURE})", "")
    for note in shortcomings(PICTURE):
        yield from (escaped(note), "")
    yield from ("Made again by:", "", *code_lines(command))
