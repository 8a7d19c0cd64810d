"""The analysis as files: layers.md, and the picture that it shows. The step itself writes `layers.json`."""

from collections.abc import Iterable
from pathlib import Path

from benchmarks.report.markdown import code_lines, escaped, table_lines
from benchmarks.report.plots import Plot, shortcomings
from benchmarks.report.quantization.plots import draw
from benchmarks.report.quantization.table import effects
from compress.sensitivity import QuantizationAnalysis
from export.errors import MissingExtraError
from export.files import write_atomic

MARKDOWN, PICTURE = "layers.md", "layers.png"


def write(analysis: QuantizationAnalysis, folder: Path, *, command: str) -> None:
    """Write `analysis` into `folder`, which exists; without matplotlib there is no picture, and a note says so.

    `command` is what reproduces it.
    """
    plots: tuple[Plot, ...]
    try:
        plots = (draw(analysis),)
    except MissingExtraError:
        plots = ()
    for plot in plots:
        write_atomic(folder / PICTURE, plot.png)
    write_atomic(folder / MARKDOWN, "\n".join(_lines(analysis, plots, command)) + "\n")


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
    for plot in plots:
        yield from (f"![{escaped(plot.alt)}]({PICTURE})", "")
    for note in shortcomings(PICTURE):
        yield from (escaped(note), "")
    yield from ("Reproduce it with:", "", *code_lines(command))
