"""The analysis as a picture: a row for each layer, its noise beside its name, the mIoU that float gains as dots."""

from typing import TYPE_CHECKING

from benchmarks.report.plots import INK, LINE, MUTED, SURFACE, Plot, colour_of, plot
from benchmarks.report.quantization.table import signed
from benchmarks.report.words import MINUS, miou
from compress.sensitivity import InFloat, QuantizationAnalysis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMED = 3
"""Layers in the picture's text alternative; the table has all of them."""


def draw(analysis: QuantizationAnalysis) -> tuple[Plot]:
    """mIoU that each layer would gain in float, in the order of the network, with the noise beside its name.

    Raises MissingExtraError without matplotlib.
    """
    inches = (6.5, 1.3 + 0.24 * len(analysis.layers))
    title = "What each layer would gain in float"
    return (plot("layers", title, _describe(analysis), lambda axes: _paint(axes, analysis), inches=inches),)


def _paint(axes: "Axes", analysis: QuantizationAnalysis) -> None:
    axes.axvline(0, color=MUTED, linewidth=0.9, zorder=1)
    kinds: tuple[tuple[str, str, float, list[InFloat | None]], ...] = (
        ("alone", "o", -0.12, [effect.alone for effect in analysis.layers]),
        ("with the layers that read it", "s", 0.12, [effect.with_readers for effect in analysis.layers]),
    )
    for index, (label, marker, offset, ways) in enumerate(kinds):
        dots = [(analysis.won(way), place + offset) for place, way in enumerate(ways) if way is not None]
        axes.hlines([y for _, y in dots], 0, [x for x, _ in dots], color=colour_of(index), linewidth=1.2, alpha=0.45)
        axes.plot(
            [x for x, _ in dots],
            [y for _, y in dots],
            marker,
            color=colour_of(index),
            markersize=5,
            markeredgecolor=SURFACE,
            markeredgewidth=0.7,
            label=label,
        )
    for place in range(1, len(analysis.layers)):
        axes.axhline(place - 0.5, color=LINE, linewidth=0.5, zorder=0)
    noise = ["" if effect.sqnr_db is None else f"  {effect.sqnr_db:.0f} dB" for effect in analysis.layers]
    names = [f"{effect.layer}{text}" for effect, text in zip(analysis.layers, noise, strict=True)]
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.08)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", MINUS))
    axes.grid(visible=True, axis="x")
    axes.set_xlabel(f"mIoU gained in float, over {miou(analysis.miou_int8)} with all in INT8")
    axes.legend(ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0), fontsize=9.5)


def _describe(analysis: QuantizationAnalysis) -> str:
    first = analysis.most_won_first()[:_NAMED]
    named = ", ".join(f"{effect.layer} {signed(analysis.most_won(effect), 4)}" for effect in first)
    return f"mIoU gained when a layer stays in float, {len(analysis.layers)} layers. Most is gained by {named}."
