"""The analysis as files: analysis.md, and the picture that it shows. The step itself writes `analysis.json`."""

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
    """Write `analysis` into `folder`, which exists; without matplotlib there is no picture, and a note says so.

    `command` is what reproduces it.
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
        "statistics were recomputed, but nothing was fine-tuned: fine-tuning recovers part of these losses, and losses "
        "of several groups do not add up. Read the order, not the figures."
    )
    yield ""
    yield from table_lines(sensitivity(analysis))
    if whole := analysis.at_their_floor():
        names = ", ".join(f"{group.group} ({group.width})" for group in whole)
        yield from (f"At their minimum width, and not cut: {escaped(names)}.", "")
    for plot in plots:
        yield from (f"![{escaped(plot.alt)}]({PICTURE})", "")
    for note in shortcomings(PICTURE):
        yield from (escaped(note), "")
    yield from ("Reproduce it with:", "", *code_lines(command))
