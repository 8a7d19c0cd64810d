"""The differences as a picture: a row for each change, a dot with its interval for each split."""

from typing import TYPE_CHECKING

from benchmarks.report.ablation.results import AblationReport, Difference, key
from benchmarks.report.plots import INK, MUTED, Plot, colour_of, plot
from benchmarks.report.words import MINUS, miou

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OFFSET = 0.17
"""How far, in rows, the two splits of a change are moved apart from its place, so that neither hides the other."""


def draw(report: AblationReport) -> tuple[Plot, ...]:
    """The picture; none where no change was trained.

    Raises MissingExtraError without matplotlib.
    """
    if not report.differences_test:
        return ()
    title = "mIoU gained over the base"
    rows = len(report.differences_test) + len(report.by_group())
    inches = (6.5, 1.3 + 0.27 * rows)
    return (plot("differences", title, _describe(report), lambda axes: _paint(axes, report), inches=inches),)


def _paint(axes: "Axes", report: AblationReport) -> None:
    names: list[str] = []
    headings: list[int] = []
    for group, variants in report.by_group().items():
        shown = [variant for variant in variants if key(variant) in report.differences_test]
        if not shown:
            continue
        headings.append(len(names))
        names.append(group)
        for variant in shown:
            _dot(axes, report.differences_test[key(variant)], len(names) - _OFFSET, colour_of(0), "o")
            _dot(axes, report.differences_val[key(variant)], len(names) + _OFFSET, colour_of(1), "s")
            names.append(variant.name)
    axes.axvline(0, color=MUTED, linewidth=0.9, zorder=1)
    for index, label in ((0, "test split"), (1, "validation split")):
        axes.plot([], [], "os"[index], color=colour_of(index), label=label)
    axes.set_yticks(range(len(names)), names)
    for place, name in enumerate(axes.get_yticklabels()):
        name.set_fontweight("bold" if place in headings else "normal")
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=True, axis="x")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+.2f}".replace("-", MINUS))
    interval = "" if report.deviation is None else " (95 %)"
    axes.set_xlabel(f"mIoU gained over the base{interval}; right is better")
    axes.legend(ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0), fontsize=9.5)


def _dot(axes: "Axes", difference: Difference, place: float, colour: str, marker: str) -> None:
    if difference.interval is not None:
        axes.hlines(place, *difference.interval, color=colour, linewidth=1.4, alpha=0.6)
    axes.plot([difference.mean], [place], marker, color=colour, markersize=5)


def _describe(report: AblationReport) -> str:
    ordered = sorted(report.differences_test.items(), key=lambda item: item[1].mean, reverse=True)
    rows = "; ".join(f"{name} {miou(difference.mean)} ({difference.judgement})" for name, difference in ordered)
    return f"mIoU on the test split minus that of the base, the best first. {rows}."
