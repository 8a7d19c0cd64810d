"""The analysis as files: analysis.md, and the picture that it shows. The step itself writes `analysis.json`."""

from collections.abc import Iterable
from pathlib import Path

from benchmarks.report.folder import write_files
from benchmarks.report.markdown import command_lines, escaped, joined, picture_lines, table_lines
from benchmarks.report.plots import Plot, drawn, pictures, shortcomings
from benchmarks.report.pruning.plots import draw
from benchmarks.report.pruning.table import sensitivity
from compress.sensitivity import Analysis

MARKDOWN, PICTURE = "analysis.md", "analysis.png"


def write(analysis: Analysis, folder: Path, *, command: str) -> None:
    """Write `analysis` into `folder`, which exists; without matplotlib there is no picture, and a note says so.

    `command` is what reproduces it.
    """
    plots = drawn(draw, analysis)
    write_files(folder, {**pictures(plots), MARKDOWN: joined(_lines(analysis, plots, command))})


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
    yield from picture_lines(plots, titled=False)
    for note in shortcomings(PICTURE):
        yield from (escaped(note), "")
    yield from command_lines(command)
