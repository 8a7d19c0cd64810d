"""The analysis as files: layers.md, and the picture that it shows. The step itself writes `layers.json`."""

from collections.abc import Iterable
from pathlib import Path

from benchmarks.report.folder import write_files
from benchmarks.report.markdown import command_lines, escaped, joined, picture_lines, table_lines
from benchmarks.report.plots import Plot, drawn, pictures, shortcomings
from benchmarks.report.quantization.plots import draw
from benchmarks.report.quantization.table import effects
from compress.sensitivity import QuantizationAnalysis

MARKDOWN, PICTURE = "layers.md", "layers.png"


def write(analysis: QuantizationAnalysis, folder: Path, *, command: str) -> None:
    """Write `analysis` into `folder`, which exists; without matplotlib there is no picture, and a note says so.

    `command` is what reproduces it.
    """
    plots = drawn(draw, analysis)
    write_files(folder, {**pictures(plots), MARKDOWN: joined(_lines(analysis, plots, command))})


def _lines(analysis: QuantizationAnalysis, plots: tuple[Plot, ...], command: str) -> Iterable[str]:
    yield from ("# What INT8 does to each layer", "")
    yield (
        f"{escaped(analysis.parent)} in INT8, calibrated by {analysis.calibration}; then the same graph with one layer "
        "at a time in float, alone and together with the layers that read it, so that its output is not rounded "
        "either. SQNR is that of the layer's output, 10 log10(signal / noise), and includes the noise of the layers "
        "before it. The gains of single layers do not add up, and on "
        f"{analysis.images} images differences of a few thousandths are chance."
    )
    yield ""
    yield from table_lines(effects(analysis))
    yield from picture_lines(plots, titled=False)
    for note in shortcomings(PICTURE):
        yield from (escaped(note), "")
    yield from command_lines(command)
