"""The analysis as a picture: a row for each group, a dot for each cut."""

from typing import TYPE_CHECKING

from benchmarks.report.plots import INK, LINE, MUTED, SURFACE, Plot, colour_of, plot
from benchmarks.report.words import MINUS, miou
from compress.sensitivity import Analysis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = "osD^v"
_LINEAR = 0.01
"""mIoU on either side of zero: most groups lie there, and some lose thirty times as much."""
_TICKS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
_NAMED = 3
"""Groups in the picture's text alternative; the table has all of them."""


def draw(analysis: Analysis) -> tuple[Plot, ...]:
    """mIoU lost by each cut of each group, the most sensitive group on top; nothing where none was cut.

    Raises MissingExtraError without matplotlib.
    """
    if not analysis.most_sensitive_first():
        return ()
    inches = (6.5, 1.3 + 0.3 * len(analysis.most_sensitive_first()))
    title = "What each group of layers costs"
    return (plot("analysis", title, _describe(analysis), lambda axes: _paint(axes, analysis), inches=inches),)


def _paint(axes: "Axes", analysis: Analysis) -> None:
    groups = analysis.most_sensitive_first()
    axes.axvline(0, color=MUTED, linewidth=0.9, zorder=1)
    for index, share in enumerate(analysis.shares):
        # One below the other within the row, so that equal losses do not hide each other.
        offset = 0.5 * ((index + 0.5) / len(analysis.shares) - 0.5)
        dots = [
            (analysis.lost(cut), place + offset)
            for place, group in enumerate(groups)
            for cut in group.cuts
            if cut.share == share
        ]
        axes.hlines([y for _, y in dots], 0, [x for x, _ in dots], color=colour_of(index), linewidth=1.2, alpha=0.45)
        axes.plot(
            [x for x, _ in dots],
            [y for _, y in dots],
            _MARKERS[index % len(_MARKERS)],
            color=colour_of(index),
            markersize=5.5,
            markeredgecolor=SURFACE,
            markeredgewidth=0.7,
            label=f"{share:.0%}",
        )
    for place in range(1, len(groups)):
        axes.axhline(place - 0.5, color=LINE, linewidth=0.5, zorder=0)
    axes.set_yticks(range(len(groups)), [f"{group.group}  {group.width}" for group in groups])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.spines["left"].set_visible(False)
    _scale(axes, [analysis.lost(cut) for group in groups for cut in group.cuts])
    axes.grid(visible=True, axis="x")
    axes.set_xlabel(f"mIoU lost, of {miou(analysis.miou_parent)}; the scale is linear up to {_LINEAR}")
    axes.legend(
        title="channels kept", ncols=len(analysis.shares), loc="lower right", bbox_to_anchor=(1.0, 1.0), fontsize=9.5
    )


def _scale(axes: "Axes", lost: list[float]) -> None:
    """Logarithmic, and linear around zero, where some cuts gain a little."""
    low, high = min(0.0, *lost) - _LINEAR / 4, max(_LINEAR, *lost) * 1.3
    axes.set_xscale("symlog", linthresh=_LINEAR)
    ticks = [tick for tick in (*(-tick for tick in _TICKS[1:]), *_TICKS) if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}".replace("-", MINUS) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(low, high)


def _describe(analysis: Analysis) -> str:
    groups = analysis.most_sensitive_first()
    named = ", ".join(f"{group.group} {miou(analysis.mean_lost(group))}" for group in groups[:_NAMED])
    least = f"{groups[-1].group} {miou(analysis.mean_lost(groups[-1]))}"
    return (
        f"mIoU lost when a group alone is cut, {len(groups)} groups. Averaged over its cuts, most is lost by "
        f"{named}; least by {least}."
    )
