"""The report's picture: latency by load."""

from typing import TYPE_CHECKING

from benchmarks.report.load.results import LoadReport
from benchmarks.report.plots import Plot, colour_of, plot
from benchmarks.report.words import number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN = (50.0, 95.0, 99.0)


def draw(report: LoadReport) -> tuple[Plot, ...]:
    """Percentiles against the offered load; nothing with fewer than two open loops.

    Raises MissingExtraError without matplotlib.
    """
    opened = sorted((run.load, run.client) for run in report.runs if run.load is not None and run.client.latency)
    if len(opened) < 2:
        return ()

    def paint(axes: "Axes") -> None:
        for index, point in enumerate(_SHOWN):
            heights = [found for _, client in opened if (found := client.ms(point)) is not None]
            places = [100 * load for load, _ in opened]
            axes.plot(places, heights, marker="osD"[index], color=colour_of(index), label=f"p{point:g}")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.grid(visible=True)
        axes.set_xlabel("offered load, % of capacity")
        axes.set_ylabel("ms from when it was due")
        axes.legend(loc="upper left", fontsize=9.5)

    points = "; ".join(
        f"at {percent(load)}: " + ", ".join(f"p{p:g} {number(client.ms(p) or 0)} ms" for p in _SHOWN)
        for load, client in opened
    )
    return (plot("latency", "Latency by load", f"Latency of answered requests: {points}.", paint),)
