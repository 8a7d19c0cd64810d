"""The report as one HTML page in a single file."""

import base64
from collections.abc import Iterable, Sequence
from html import escape

from benchmarks.report.html import (
    bullets,
    checks,
    document,
    how_it_was_measured,
    html_table,
    plots_section,
    section,
    tiles,
)
from benchmarks.report.plots import Plot
from benchmarks.report.results import Report
from benchmarks.report.strip import DIFFERENCES, Row, Strip
from benchmarks.report.table import Table, details, narrowed, per_class, summary
from benchmarks.report.words import (
    DASH,
    circumstances,
    headline,
    interval,
    judgement,
    miou,
    number,
    times,
)
from export.images import U8, encode_image


def page(report: Report, plots: Sequence[Plot], strip: Strip | None) -> str:
    """The whole document: styles, plots and pictures are inside."""
    return document(report.title, _body(report, plots, strip))


def _body(report: Report, plots: Sequence[Plot], strip: Strip | None) -> Iterable[str]:
    yield from _head(report)
    yield "<main>"
    yield section("Results", _of_models(summary(report), report))
    if report.verdicts:
        yield checks(report.verdicts)
    if report.failures:
        yield section("What could not be measured", bullets(report.failures))
    yield plots_section(plots)
    if strip is not None:
        yield section("What it looks like", _strip(strip))
    classes = per_class(report)
    if classes is not None:
        yield section(classes.caption, html_table(classes, captioned=False))
    cut = narrowed(report)
    if cut is not None:
        yield section(f"What pruning cut, by {cut.headers[0]}", html_table(cut))
    yield section("More figures", _of_models(details(report), report))
    if report.notes:
        yield section("Notes", bullets(report.notes))
    yield how_it_was_measured(circumstances(report), report.command)
    yield "</main>"


def _head(report: Report) -> Iterable[str]:
    state = "bad" if not report.ok else "good" if report.verdicts else "neutral"
    yield "<header>"
    yield f'<p class="eyebrow">{escape(report.title)}</p>'
    yield f"<h1>{_unbroken(headline(report), (report.reference, report.compressed))}</h1>"
    yield f'<p class="judgement {state}">{escape(judgement(report))}</p>'
    yield tiles(_tiles(report))
    yield "</header>"


def _of_models(table: Table, report: Report) -> str:
    """A row for each model, in the report's order; the compressed one stands out where there is a reference."""
    marked = None if report.compressed == report.reference else report.compressed
    return html_table(table, stacks=True, swatches=True, marked=marked)


def _unbroken(sentence: str, names: Iterable[str]) -> str:
    """`sentence` escaped, with no line break within `names`."""
    text = escape(sentence)
    for name in sorted(set(map(escape, names)), key=len, reverse=True):
        text = text.replace(f"{name} ", f'<span class="unbroken">{name}</span> ')
    return text


def _tiles(report: Report) -> Iterable[tuple[str, str, str]]:
    """(label, figure, what it is made of)"""
    before, after = report.reference_model, report.compressed_model
    ms = number(after.latency_ms.p50)
    if before is after:
        yield "median latency", f"{ms} ms", f"95th percentile {number(after.latency_ms.p95)} ms"
        yield "mIoU", miou(after.miou), f"95 % interval {interval(after.miou_interval)}"
        yield "size", f"{number(after.size_bytes / 1e6)} MB", f"{number(after.params / 1e6)} M parameters"
        return
    yield "speed-up", times(report.speedup), f"{number(before.latency_ms.p50)} ms to {ms} ms"
    if report.miou_drop is None:
        yield "mIoU lost", DASH, "not known"
    else:
        scores = f"{miou(before.miou)} to {miou(after.miou)}"
        bounds = report.miou_drop_interval
        if bounds is not None and report.miou_drop < 0:
            bounds = (-bounds[1], -bounds[0])
        yield (
            "mIoU lost" if report.miou_drop >= 0 else "mIoU gained",
            miou(abs(report.miou_drop)),
            scores if bounds is None else f"{scores}; 95 % interval {interval(bounds)}",
        )
    ratio = before.size_bytes / after.size_bytes
    yield (
        "smaller" if ratio >= 1 else "larger",
        times(max(ratio, 1 / ratio)),
        f"{number(before.size_bytes / 1e6)} MB to {number(after.size_bytes / 1e6)} MB",
    )
    yield (
        "images a second",
        number(after.throughput_images_s),
        f"{before.name}: {number(before.throughput_images_s)}",
    )


def _strip(strip: Strip) -> str:
    legend = _legend("Classes", zip(strip.classes, strip.colours, strict=True))
    legend += _legend("Where they differ", DIFFERENCES)
    return legend + "".join(_strip_row(strip, row.shrunk()) for row in strip.rows)


def _strip_row(strip: Strip, row: Row) -> str:
    cells = "".join(
        f'<figure><img src="{_inline(picture)}" alt="{escape(f"{row.name}: {column}")}" width="{picture.shape[1]}" '
        f'height="{picture.shape[0]}"><figcaption>{escape(column)}</figcaption></figure>'
        for column, picture in zip(strip.columns, strip.pictures(row), strict=True)
    )
    return (
        f'<div class="row"><p><strong>{escape(row.name)}</strong> <span>{escape(row.reason)}; '
        f'{row.differing:.2%} of its pixels differ</span></p><div class="cells">{cells}</div></div>'
    )


def _legend(title: str, entries: Iterable[tuple[str, tuple[int, int, int]]]) -> str:
    items = "".join(
        f'<li><span class="swatch" style="background:rgb{colour}"></span>{escape(name)}</li>'
        for name, colour in entries
    )
    return f'<div class="legend"><span>{escape(title)}</span><ul>{items}</ul></div>'


def _inline(picture_HWC: U8) -> str:
    return f"data:image/png;base64,{base64.b64encode(encode_image(picture_HWC)).decode()}"
