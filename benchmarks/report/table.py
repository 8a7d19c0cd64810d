"""The report's tables, for terminal, Markdown and HTML alike."""

from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table as RichTable

from benchmarks.report.results import GroupWidth, ModelResult, Report
from benchmarks.report.words import (
    DASH,
    interval,
    millions,
    miou,
    miou_header,
    number,
    optional,
    percent,
    size,
    threads,
    times,
)


@dataclass(frozen=True)
class Table:
    """Rows of text under headers; the first column names the row, the others hold figures."""

    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def summary(report: Report) -> Table:
    """What each model costs and is worth."""
    headers = ("model", "params M", "MMACs", "size MB", miou_header(report), "p50 ms", "p95 ms", "gain")

    def row(model: ModelResult) -> tuple[str, ...]:
        return (
            model.name,
            millions(model.params),
            millions(model.macs),
            millions(model.size_bytes),
            miou(model.miou),
            number(model.latency_ms.p50),
            number(model.latency_ms.p95),
            times(model.gain),
        )

    settings = report.settings
    caption = f"Latency with {threads(settings.threads)}, batch 1, {size(report)}; gain over {report.reference}"
    return Table(caption, headers, tuple(map(row, report.models)))


def details(report: Report) -> Table:
    """Figures to look up afterwards."""
    headers = (
        "model",
        "p99 ms",
        "1 thread p50 ms",
        "1 thread p95 ms",
        "1 thread p99 ms",
        "images/s",
        "load ms",
        "peak MiB",
        "mIoU 95 % interval",
    )

    def row(model: ModelResult) -> tuple[str, ...]:
        one = model.latency_one_thread_ms
        return (
            model.name,
            number(model.latency_ms.p99),
            *map(number, (one.p50, one.p95, one.p99, model.throughput_images_s)),
            optional(model.load_ms),
            optional(model.peak_memory_mib),
            interval(model.miou_interval),
        )

    concurrency = report.settings.concurrency
    caption = (
        f"images/s: {concurrency} one-thread run{'s' if concurrency != 1 else ''} of one shared session at a time, "
        "which is how the server runs. Load time and peak memory: of a fresh process with Python, ONNX Runtime and "
        "the one model"
    )
    return Table(caption, headers, tuple(map(row, report.models)))


def per_class(report: Report) -> Table | None:
    """IoU of each class under each model; None where nothing was scored."""
    scored = [model for model in report.models if model.iou_per_class]
    if not scored:
        return None
    # A dict keeps the order of the classes and drops repetitions.
    classes = dict.fromkeys(name for model in scored for name in model.iou_per_class)
    rows = tuple((name, *(miou(model.iou_per_class.get(name)) for model in scored)) for name in classes)
    return Table("IoU of each class", ("class", *(model.name for model in scored)), rows)


def narrowed(report: Report) -> Table | None:
    """What pruning cut from each group of layers or convolution; None where nothing was pruned."""
    if not report.widths:
        return None
    if report.widths_of is not None:
        rows = tuple((group.layer, str(group.width), str(group.kept)) for group in report.widths)
        return Table(f"Convolutions of {report.widths_of}", ("convolution", "channels", "kept"), rows)
    timed = any(group.milliseconds_spared is not None for group in report.widths)
    headers = ("group", "channels", "kept", "importance lost", *(("ms spared",) if timed else ()))

    def row(group: GroupWidth) -> tuple[str, ...]:
        times = (optional(group.milliseconds_spared),) if timed else ()
        return (
            group.layer,
            str(group.width),
            str(group.kept),
            DASH if group.importance_lost is None else percent(group.importance_lost),
            *times,
        )

    spared = "; ms spared: by the latency table, what keeping the group whole would cost" if timed else ""
    caption = f"Groups of coupled layers, named by the first; importance lost: share of the group's importance{spared}"
    return Table(caption, headers, tuple(map(row, report.widths)))


def terminal_table(report: Report) -> RichTable:
    """The summary for a terminal."""
    return for_terminal(summary(report))


def for_terminal(table: Table) -> RichTable:
    """`table` as a terminal shows it."""
    shown = RichTable(
        title=escape(table.caption),
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    for index, header in enumerate(table.headers):
        shown.add_column(header, justify="right" if index else "left", no_wrap=True)
    for row in table.rows:
        shown.add_row(*map(escape, row))
    return shown
