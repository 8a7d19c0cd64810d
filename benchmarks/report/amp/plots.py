"""The grid as pictures: milliseconds a step and peak memory, a row for each cell."""

from collections.abc import Callable
from typing import TYPE_CHECKING, get_args

from benchmarks.report.amp.results import AmpReport, CellResult, GridPrecision
from benchmarks.report.plots import INK, Plot, colour_of, plot
from benchmarks.report.words import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PRECISIONS: tuple[GridPrecision, ...] = get_args(GridPrecision)


def draw(report: AmpReport) -> tuple[Plot, ...]:
    """A figure for each of step time and peak memory, where some cell has a value.

    Raises MissingExtraError without matplotlib.
    """
    return (
        *_bars(report, "step", "Milliseconds a step", "ms a step (dots: single steps)", lambda cell: cell.step_ms),
        *_bars(report, "memory", "Peak memory", "peak MiB", lambda cell: cell.peak_memory_mib),
    )


def _bars(
    report: AmpReport, name: str, title: str, unit: str, value_of: Callable[[CellResult], float | None]
) -> tuple[Plot, ...]:
    rows = [(cell, value) for cell in report.cells if (value := value_of(cell)) is not None]
    if not rows:
        return ()
    alt = f"{title}. " + "; ".join(f"{result.cell.name}: {number(value)}" for result, value in rows)

    def paint(axes: "Axes") -> None:
        for place, (result, value) in enumerate(rows):
            axes.barh(place, value, height=0.66, color=colour_of(_PRECISIONS.index(result.cell.precision)))
            if name == "step":
                axes.plot(
                    result.samples_ms, [place] * len(result.samples_ms), "o", color=INK, markersize=2.5, alpha=0.5
                )
            axes.annotate(
                number(value),
                (max((value, *result.samples_ms)) if name == "step" else value, place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=9.5,
            )
        axes.set_yticks(range(len(rows)), [result.cell.name for result, _ in rows])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.margins(x=0.12)
        axes.set_xlim(left=0)
        axes.spines["left"].set_visible(False)
        axes.grid(visible=True, axis="x")
        axes.set_xlabel(unit)

    return (plot(name, title, alt, paint, inches=(6.5, 1.1 + 0.3 * len(rows))),)
