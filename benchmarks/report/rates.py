"""A learning-rate range test as files: rates.md, the picture that it shows, and the figures as JSON."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.report.folder import write_files
from benchmarks.report.markdown import command_lines, escaped, joined, picture_lines, table_lines
from benchmarks.report.plots import MUTED, Plot, colour_of, drawn, pictures, plot, shortcomings
from benchmarks.report.table import Table
from compress.rates import RateTest
from export.files import write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

JSON, MARKDOWN, PICTURE = "rates.json", "rates.md", "rates.png"
_ROWS = 12


def write(test: RateTest, folder: Path, *, command: str) -> Path:
    """Write `test` into `folder`; return the file to open. Without matplotlib there is no picture, and a note says so.

    `command` is what reproduces it.
    """
    plots = drawn(draw, test)
    files = {MARKDOWN: joined(_lines(test, plots, command)), **pictures(plots)}
    write_files(folder, files, may_be_stale=(PICTURE,))
    write_json(folder / JSON, as_tree(test))
    return folder / MARKDOWN


def as_tree(test: RateTest) -> dict[str, object]:
    """What `--json` prints."""
    return {**test.model_dump(mode="json"), "suggested": test.suggested, "lowest": test.lowest}


def verdict(test: RateTest) -> str:
    """One sentence."""
    if test.suggested is None:
        return "the loss fell at none of the rates; look at the data, or at the loss, before the rate"
    beyond = "beyond that it rises" if test.lowest < test.rates[-1] else "no higher rate was tried"
    return (
        f"try --set train.learning_rate={test.suggested:g}: there the loss falls fastest; "
        f"it is lowest at {test.lowest:.2g}, and {beyond}"
    )


def losses(test: RateTest) -> Table:
    """About a dozen of the steps, evenly spaced, and the last one."""
    stride = max(1, len(test.rates) // _ROWS)
    shown = sorted({*range(0, len(test.rates), stride), len(test.rates) - 1})
    rows = tuple((f"{test.rates[i]:.2g}", f"{test.losses[i]:.4f}", f"{test.smoothed[i]:.4f}") for i in shown)
    return Table(f"Loss of {len(test.rates)} steps at rising rates", ("learning rate", "loss", "smoothed"), rows)


def draw(test: RateTest) -> tuple[Plot]:
    """Raises MissingExtraError without matplotlib."""

    def paint(axes: "Axes") -> None:
        axes.plot(test.rates, test.losses, ".", color=MUTED, markersize=3, label="each batch")
        axes.plot(test.rates, test.smoothed, color=colour_of(0), label="smoothed")
        if test.suggested is not None:
            axes.axvline(test.suggested, color=colour_of(1), linewidth=1.2, label=f"suggested: {test.suggested:g}")
        axes.set_xscale("log")
        axes.set_ylim(top=max(test.smoothed) * 1.1)
        axes.set_xlabel("learning rate")
        axes.set_ylabel("loss")
        axes.grid(visible=True)
        axes.legend()

    return (plot("rates", "Loss at rising learning rates", f"Loss at rising learning rates; {verdict(test)}.", paint),)


def _lines(test: RateTest, plots: Sequence[Plot], command: str) -> Iterable[str]:
    yield from ("# Which learning rate", "", f"{escaped(verdict(test))}.", "")
    yield from picture_lines(plots, titled=False)
    yield from table_lines(losses(test))
    for note in shortcomings(PICTURE):
        yield from (escaped(note), "")
    yield from command_lines(command)
