"""The report's picture: milliseconds by operator, a bar for each bundle."""

from typing import TYPE_CHECKING

from benchmarks.report.ops.results import OperatorTime, OpsReport
from benchmarks.report.plots import INK, SURFACE, Plot, colour_of, plot
from benchmarks.report.words import number, threads

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN = 0.01
"""An operator below this share of every bundle's time is left to the table."""
_HATCH = "////"
_BAR, _GAP = 0.2, 0.14
"""Inches."""


def draw(report: OpsReport) -> tuple[Plot]:
    """Operators from the slowest down; what runs in float is hatched.

    Raises MissingExtraError without matplotlib.
    """
    groups: dict[tuple[str, str], list[tuple[int, OperatorTime]]] = {}
    for index, bundle in enumerate(report.bundles):
        for row in bundle.operators:
            groups.setdefault((row.op, row.kind), []).append((index, row))
    shown = [bars for bars in groups.values() if any(row.share >= _SHOWN for _, row in bars)]
    shown.sort(key=lambda bars: -max(row.milliseconds for _, row in bars))

    def paint(axes: "Axes") -> None:
        for index, bundle in enumerate(report.bundles):
            axes.barh(0, 0, color=colour_of(index), label=bundle.name)
        if any(row.kind == "float" for bars in shown for _, row in bars):
            axes.barh(0, 0, color=colour_of(0), hatch=_HATCH, edgecolor=SURFACE, linewidth=0, label="in float")
        place, middles = _GAP, []
        for bars in shown:
            middles.append(place + len(bars) * _BAR / 2)
            for index, row in bars:
                _bar(axes, place + _BAR / 2, row, colour_of(index))
                place += _BAR
            place += _GAP
        axes.set_yticks(middles, [bars[0][1].op for bars in shown])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_ylim(place, 0)
        axes.margins(x=0.12)
        axes.set_xlim(left=0)
        axes.spines["left"].set_visible(False)
        axes.grid(visible=True, axis="x")
        axes.set_xlabel(f"ms, medians summed ({threads(report.threads)}, batch {report.batch})")
        axes.legend(loc="lower right", fontsize=9.5)

    bundles = (
        f"{bundle.name}: {', '.join(f'{row.op} in {row.kind} {number(row.milliseconds)}' for row in bundle.operators)}"
        for bundle in report.bundles
    )
    inches = (6.5, 1.2 + sum(len(bars) * _BAR + _GAP for bars in shown))
    return (plot("operators", "Milliseconds by operator", f"Milliseconds. {'; '.join(bundles)}", paint, inches=inches),)


def _bar(axes: "Axes", middle: float, row: OperatorTime, colour: str) -> None:
    hatch = _HATCH if row.kind == "float" else ""
    axes.barh(middle, row.milliseconds, _BAR, color=colour, hatch=hatch, edgecolor=SURFACE, linewidth=0)
    axes.annotate(
        number(row.milliseconds),
        (row.milliseconds, middle),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
    )
