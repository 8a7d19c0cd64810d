"""The report's plots, through matplotlib (the extra `bench`): SVG that takes its page's colours, and PNG."""

import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from benchmarks.report.results import ModelResult, Report
from benchmarks.report.words import miou, miou_header, number, size, threads
from export.errors import MissingExtraError, require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

R = TypeVar("R")

INK, MUTED, LINE, SURFACE = "#1a1d21", "#57606a", "#d5d9df", "#fefefe"
_VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", SURFACE: "--surface"}
"""What these colours are called in page.css, where the dark page has its own."""

SERIES = ("#3b7dd8", "#c8641b", "#118a6f", "#a257c9", "#b98200", "#d6487e", "#6b7280", "#5f8f2f")
"""Colours of the models in their order: at least 3:1 against the light page and the dark one."""
_MARKERS = "osD^vP*X"

_INCHES = (5.0, 3.7)
"""Small, so that the text can still be read where the page scales it to the width of a phone."""
_PNG_DOTS_PER_INCH = 160
_SHOWN_SAMPLES = 300
"""Dots for each model in the distribution; more would only make the page heavy."""


@dataclass(frozen=True)
class Plot:
    """One figure."""

    name: str
    """Name of its file, without suffix."""
    title: str
    alt: str
    """What it shows, for those who cannot see it."""
    svg: str
    """To be put into a page as it is; its colours are variables of page.css."""
    png: bytes
    """On white."""

    @property
    def file(self) -> str:
        """Name of the picture that Markdown shows."""
        return f"{self.name}.png"


@dataclass(frozen=True)
class _ErrorBar:
    name: str
    x: float
    y: float
    low: float
    high: float


def shortcomings(missing: str = "report.html") -> tuple[str, ...]:
    """A note that there is no `missing` because matplotlib is not installed; none if it is."""
    try:
        _matplotlib()
    except MissingExtraError as error:
        return (f"No {missing}: {error}",)
    return ()


def drawn(draw: Callable[[R], Iterable[Plot]], report: R) -> tuple[Plot, ...]:
    """What `draw` makes of `report`; nothing without matplotlib, of which `shortcomings` tells."""
    try:
        return tuple(draw(report))
    except MissingExtraError:
        return ()


def pictures(plots: Iterable[Plot]) -> dict[str, str | bytes]:
    """The files that Markdown shows."""
    return {plot.file: plot.png for plot in plots}


def colour_of(index: int) -> str:
    return SERIES[index % len(SERIES)]


def draw(report: Report) -> tuple[Plot, ...]:
    """Accuracy against latency if two or more models have an mIoU, the distribution of latencies, and what pruning cut.

    Raises MissingExtraError without matplotlib.
    """
    distribution = plot(
        "latency",
        "How the latencies are distributed",
        _describe_distribution(report),
        lambda axes: _distribution(axes, report),
    )
    rest = (distribution, *_of_widths(report))
    if sum(model.miou is not None for model in report.models) < 2:
        return rest
    tradeoff = plot(
        "accuracy", "Accuracy against latency", _describe_tradeoff(report), lambda axes: _tradeoff(axes, report)
    )
    return tradeoff, *rest


def _of_widths(report: Report) -> Iterator[Plot]:
    """The network before and after, a bar for each group of layers; none where nothing was pruned."""
    groups = report.widths
    if not groups:
        return
    of = "each group of layers" if report.widths_of is None else f"each convolution of {report.widths_of}"
    alt = f"Channels of {of}. " + "; ".join(f"{g.layer}: {g.kept} of {g.width}" for g in groups)

    def paint(axes: "Axes") -> None:
        places = range(len(groups))
        axes.barh(places, [group.width for group in groups], height=0.72, color=LINE, label="before")
        axes.barh(places, [group.kept for group in groups], height=0.72, color=colour_of(0), label="after")
        widest = max(group.width for group in groups)
        for place, group in enumerate(groups):
            axes.annotate(
                f"{group.kept}/{group.width}",
                (group.width, place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        axes.set_yticks(places, [group.layer for group in groups])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_ylim(len(groups) - 0.4, -0.6)
        axes.set_xlim(0, 1.14 * widest)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("channels")
        axes.legend(loc="lower right", fontsize=9.5)

    yield plot("widths", "What pruning cut", alt, paint, inches=(_INCHES[0], 1.0 + 0.24 * len(groups)))


def plot(
    name: str, title: str, alt: str, paint: Callable[["Axes"], None], *, inches: tuple[float, float] = _INCHES
) -> Plot:
    """A figure of `inches` (width, height) in the style that all share, on which `paint` draws.

    Raises MissingExtraError without matplotlib.
    """
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "font.size": 10.5,
        "text.parse_math": False,
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": LINE,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "xtick.color": LINE,
        "ytick.color": LINE,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
        "grid.color": LINE,
        "grid.linewidth": 0.7,
        "legend.frameon": False,
    }
    with _matplotlib().rc_context(style):
        figure = _matplotlib("figure").Figure(figsize=inches, layout="constrained", facecolor="none")
        axes = figure.add_subplot(facecolor="none")
        paint(axes)
        return Plot(name, title, alt, _svg(figure, name), _png(figure))


def _matplotlib(part: str = "") -> Any:
    return require(f"matplotlib.{part}".rstrip("."), extra="bench", purpose="the page with plots")


def _tradeoff(axes: "Axes", report: Report) -> None:
    """mIoU with its interval over median latency, a point for each model."""
    _log_milliseconds(axes, [model.latency_ms.p50 for model in report.models], room=1.7)
    bars = []
    for index, model in enumerate(report.models):
        if model.miou is None:
            continue
        low, high = model.miou_interval or (model.miou, model.miou)
        error = [[max(model.miou - low, 0.0)], [max(high - model.miou, 0.0)]]
        axes.errorbar(
            model.latency_ms.p50,
            model.miou,
            yerr=error,
            color=colour_of(index),
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=8.5,
            markeredgecolor=SURFACE,
            markeredgewidth=1.0,
            elinewidth=1.6,
            capsize=3.5,
            linestyle="none",
        )
        bars.append(_ErrorBar(model.name, model.latency_ms.p50, model.miou, low, high))
    axes.margins(y=0.22)
    if report.lookup_table_miou is not None:
        _lookup_table(axes, report.lookup_table_miou)
    axes.grid(visible=True)
    axes.set_xlabel(f"median ms ({threads(report.settings.threads)}, {size(report)}); left is better")
    interval = " with 95 % interval" if any(model.miou_interval for model in report.models) else ""
    axes.set_ylabel(f"{miou_header(report)}{interval}")
    _label(axes, bars)


def _lookup_table(axes: "Axes", lookup: float) -> None:
    """A line where it is near; far below the models it would squeeze them together, so it is only named at the edge."""
    low, high = axes.get_ylim()
    near = lookup > low - (high - low) / 2
    if near:
        axes.axhline(lookup, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
    axes.annotate(
        f"grey-value look-up table {miou(lookup)}" + ("" if near else ", below this plot"),
        (1.0, lookup if near else 0.0),
        xycoords=("axes fraction", "data" if near else "axes fraction"),
        xytext=(-2, 4),
        textcoords="offset points",
        ha="right",
        color=MUTED,
        fontsize=9.5,
    )


def _label(axes: "Axes", bars: Sequence[_ErrorBar]) -> None:
    """Name each model where its name covers the least of the error bars and of the names already there."""
    figure = axes.get_figure(root=True)
    if figure is None:
        return
    figure.draw_without_rendering()
    covered = [
        tuple(axes.transData.transform((bar.x, height)))
        for bar in bars
        for height in np.linspace(bar.low, bar.high, 15)
    ]
    frame = axes.get_window_extent()
    names: list[Any] = []

    def put(bar: _ErrorBar, height: float, offset: tuple[int, int], ha: str, va: str) -> "Annotation":
        return axes.annotate(
            bar.name, (bar.x, height), xytext=offset, textcoords="offset points", ha=ha, va=va, fontsize=10
        )

    for bar in bars:
        places = (
            (bar.high, (0, 4), "center", "bottom"),
            (bar.low, (0, -5), "center", "top"),
            (bar.y, (9, 4), "left", "bottom"),
            (bar.y, (-9, 4), "right", "bottom"),
            (bar.high, (-9, 2), "right", "bottom"),
            (bar.low, (9, -2), "left", "top"),
        )
        costs = []
        for place in places:
            trial = put(bar, *place)
            box = trial.get_window_extent()
            trial.remove()
            outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
            crowd = sum(box.padded(2).contains(*point) for point in covered) + 10 * sum(map(box.overlaps, names))
            costs.append(crowd + 5 * outside)
        names.append(put(bar, *places[costs.index(min(costs))]).get_window_extent())


def _distribution(axes: "Axes", report: Report) -> None:
    """Every sample as a dot, a row for each model, with the percentiles marked."""
    _log_milliseconds(axes, [time for model in report.models for time in model.latency_ms.samples], room=1.15)
    for index, model in enumerate(report.models):
        times = _thinned(model.latency_ms.samples)
        # Spread by position in time, not at random: the same report draws the same plot, and drift shows.
        heights = [index + 0.26 - 0.52 * position / max(len(times) - 1, 1) for position in range(len(times))]
        axes.scatter(times, heights, s=12, color=colour_of(index), alpha=0.55, linewidths=0)
        latency = model.latency_ms
        for percentile, reach, width in ((latency.p50, 0.36, 1.8), (latency.p95, 0.26, 1.0), (latency.p99, 0.18, 1.0)):
            axes.plot([percentile] * 2, [index - reach, index + reach], color=INK, linewidth=width)
        axes.annotate(
            number(model.latency_ms.p50),
            (model.latency_ms.p50, index - 0.36),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=9.5,
        )
    axes.set_yticks(range(len(report.models)), [model.name for model in report.models])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_ylim(len(report.models) - 0.45, -0.7)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=True, axis="x")
    axes.set_xlabel(f"ms ({threads(report.settings.threads)}, {size(report)}); ticks: p50, p95, p99")


def _thinned(samples: Sequence[float]) -> Sequence[float]:
    """Evenly chosen in time, extremes kept."""
    if len(samples) <= _SHOWN_SAMPLES:
        return samples
    last = len(samples) - 1
    chosen = {round(i * last / (_SHOWN_SAMPLES - 1)) for i in range(_SHOWN_SAMPLES)}
    chosen |= {samples.index(max(samples)), samples.index(min(samples))}
    return [samples[index] for index in sorted(chosen)]


def _log_milliseconds(axes: "Axes", values: Sequence[float], *, room: float) -> None:
    """A logarithmic axis of milliseconds with plain numbers, `room` times wider than `values` at each end."""
    ticker = _matplotlib("ticker")
    axes.set_xscale("log")
    low, high = min(values) / room, max(values) * room
    axes.set_xlim(low, high)
    # Few steps where the axis spans decades, more where it spans less than one.
    steps = (1, 2, 5) if high / low > 8 else (1, 1.5, 2, 3, 4, 5, 6, 8)
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=steps, numticks=12))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())


def _svg(figure: "Figure", name: str) -> str:
    """SVG for a page that may hold others: no prologue, its own ids, colours by variable."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'^<svg([^>]*?) width="[^"]*"', r"<svg\1", svg)
    svg = re.sub(r'^<svg([^>]*?) height="[^"]*"', r'<svg aria-hidden="true"\1', svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg


def _png(figure: "Figure") -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_PNG_DOTS_PER_INCH, facecolor="white")
    return stream.getvalue()


def _describe_tradeoff(report: Report) -> str:
    points = "; ".join(_point(model) for model in report.models if model.miou is not None)
    return f"{miou_header(report)} against median latency. {points}."


def _point(model: ModelResult) -> str:
    return f"{model.name}: {miou(model.miou)} at {number(model.latency_ms.p50)} ms"


def _describe_distribution(report: Report) -> str:
    rows = "; ".join(
        f"{model.name}: median {number(model.latency_ms.p50)}, 95th percentile {number(model.latency_ms.p95)}, "
        f"99th {number(model.latency_ms.p99)} ms"
        for model in report.models
    )
    return f"{len(report.models[0].latency_ms.samples)} timed runs of each model. {rows}."
