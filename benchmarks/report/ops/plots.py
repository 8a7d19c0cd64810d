"""A picture of it: milliseconds by operator, a bar a bundle."""

from typing import TYPE_CHECKING

from benchmarks.report.ops.results import OpsReport
from benchmarks.report.plots import INK, SURFACE, Plot, colour_of, plot
from benchmarks.report.words import number, threads

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_REACH = 0.78
"""Of a row, what its bars take together."""


def draw(report: OpsReport) -> Plot:
    """Operators from the slowest down; those that run in float are hatched.

    Raises MissingExtraError without matplotlib.
    """
    found = [{(row.op, row.kind): row.milliseconds for row in bundle.operators} for bundle in report.bundles]
    keys = {key for rows in found for key in rows}
    slowest = sorted(keys, key=lambda key: (-max(rows.get(key, 0.0) for rows in found), key))
    alt = "Milliseconds by operator. " + "; ".join(
        f"{bundle.name}: "
        + ", ".join(f"{op} in {kind} {number(rows[op, kind])}" for op, kind in slowest if (op, kind) in rows)
        for bundle, rows in zip(report.bundles, found, strict=True)
    )

    def paint(axes: "Axes") -> None:
        height = _REACH / len(found)
        for index, (bundle, rows) in enumerate(zip(report.bundles, found, strict=True)):
            axes.barh(0, 0, color=colour_of(index), label=bundle.name)
            for place, key in enumerate(slowest):
                if key not in rows:
                    continue
                middle = place - _REACH / 2 + height * (index + 0.5)
                hatch = "////" if key[1] == "float" else ""
                axes.barh(
                    middle, rows[key], height, color=colour_of(index), hatch=hatch, edgecolor=SURFACE, linewidth=0
                )
                axes.annotate(
                    number(rows[key]),
                    (rows[key], middle),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=9,
                )
        if any(kind == "float" for _, kind in slowest):
            axes.barh(0, 0, color=colour_of(0), hatch="////", edgecolor=SURFACE, label="in float")
        axes.set_yticks(range(len(slowest)), [op for op, _ in slowest])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_ylim(len(slowest) - 0.4, -0.6)
        axes.margins(x=0.12)
        axes.set_xlim(left=0)
        axes.spines["left"].set_visible(False)
        axes.grid(visible=True, axis="x")
        axes.set_xlabel(f"ms, medians summed ({threads(report.threads)}, batch {report.batch})")
        axes.legend(loc="lower right", fontsize=9.5)

    inches = (6.5, 1.2 + (0.14 + 0.2 * len(found)) * len(slowest))
    return plot("operators", "Milliseconds by operator", alt, paint, inches=inches)
