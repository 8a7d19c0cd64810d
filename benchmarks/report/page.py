"""The report as one HTML page that needs nothing beside it."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from benchmarks.report.plots import Plot, colour_of
from benchmarks.report.results import Report, Verdict
from benchmarks.report.strip import DIFFERENCES, Row, Strip
from benchmarks.report.table import Table, details, narrowed, per_class, summary
from benchmarks.report.words import (
    DASH,
    circumstances,
    failed_first,
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
    style = files("benchmarks.report").joinpath("page.css").read_text(encoding="utf-8")
    body = "\n".join(_body(report, plots, strip))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(report.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _body(report: Report, plots: Sequence[Plot], strip: Strip | None) -> Iterable[str]:
    yield from _head(report)
    yield "<main>"
    yield _section("Results", _table(summary(report), report, stacks=True))
    if report.verdicts:
        checks = "".join(map(_verdict, failed_first(report.verdicts)))
        yield _section("Checks", f'<ul class="checks">{checks}</ul>')
    if report.failures:
        yield _section("What could not be measured", _list(report.failures))
    yield _section("Plots", f'<div class="plots">{"".join(map(_plot, plots))}</div>', hidden_title=True)
    if strip is not None:
        yield _section("What it looks like", _strip(strip))
    classes = per_class(report)
    if classes is not None:
        yield _section(classes.caption, _table(classes, report, of_models=False, captioned=False))
    cut = narrowed(report)
    if cut is not None:
        yield _section("What pruning cut, by group", _table(cut, report, of_models=False))
    yield _section("More figures", _table(details(report), report, stacks=True))
    if report.notes:
        yield _section("Notes", _list(report.notes))
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in circumstances(report))
    again = f'<p>Made again by:</p><pre tabindex="0"><code>{escape(report.command)}</code></pre>'
    yield _section("How it was measured", f'<dl class="facts">{facts}</dl>{again}')
    yield "</main>"


def _head(report: Report) -> Iterable[str]:
    state = "bad" if not report.ok else "good" if report.verdicts else "neutral"
    yield "<header>"
    yield f'<p class="eyebrow">{escape(report.title)}</p>'
    yield f"<h1>{_unbroken(headline(report), (report.reference, report.compressed))}</h1>"
    yield f'<p class="judgement {state}">{escape(judgement(report))}</p>'
    tiles = "".join(
        f'<div class="tile"><dt>{escape(label)}</dt><dd>{escape(figure)}</dd>'
        f'<dd class="aside">{escape(aside)}</dd></div>'
        for label, figure, aside in _tiles(report)
    )
    yield f'<dl class="tiles">{tiles}</dl>'
    yield "</header>"


def _unbroken(sentence: str, names: Iterable[str]) -> str:
    """`sentence` escaped, with no line break inside of `names`."""
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


def _section(title: str, content: str, *, hidden_title: bool = False) -> str:
    kind = ' class="unseen"' if hidden_title else ""
    return f"<section>\n<h2{kind}>{escape(title)}</h2>\n{content}\n</section>"


def _verdict(verdict: Verdict) -> str:
    state, word = ("good", "passed") if verdict.ok else ("bad", "failed")
    return (
        f'<li><span class="badge {state}">{word}</span>'
        f"<div><strong>{escape(verdict.text)}</strong><br>{escape(verdict.detail)}</div></li>"
    )


def _table(
    table: Table, report: Report, *, stacks: bool = False, of_models: bool = True, captioned: bool = True
) -> str:
    """`stacks`: on a narrow page each row becomes a card. `of_models`: a row is a model, in the report's order.
    `captioned`: the caption is to be seen; else the section's title says it."""
    # Roles are spelt out because a table that CSS lays out as blocks loses its own.
    head = "".join(f'<th scope="col" role="columnheader">{escape(header)}</th>' for header in table.headers)
    rows = []
    for index, (name, *cells) in enumerate(table.rows):
        swatch = f'<span class="swatch" style="background:{colour_of(index)}"></span>' if of_models else ""
        compressed = ' class="compressed"' if of_models and name == report.compressed != report.reference else ""
        figures = "".join(
            f'<td role="cell" data-label="{escape(header)}">{escape(cell)}</td>'
            for header, cell in zip(table.headers[1:], cells, strict=True)
        )
        rows.append(
            f'<tr role="row"{compressed}><th scope="row" role="rowheader">{swatch}{escape(name)}</th>{figures}</tr>'
        )
    kind = "wide stacks" if stacks else "wide"
    hidden = "" if captioned else ' class="unseen"'
    return (
        f'<div class="{kind}" role="region" aria-label="{escape(table.caption)}" tabindex="0"><table role="table">'
        f"<caption{hidden}>{escape(table.caption)}</caption>"
        f'<thead role="rowgroup"><tr role="row">{head}</tr></thead>'
        f'<tbody role="rowgroup">{"".join(rows)}</tbody></table></div>'
    )


def _plot(plot: Plot) -> str:
    return (
        f'<figure class="plot"><figcaption>{escape(plot.title)}</figcaption>'
        f'<div role="img" aria-label="{escape(plot.alt)}">{plot.svg}</div></figure>'
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


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _inline(picture_HWC: U8) -> str:
    return f"data:image/png;base64,{base64.b64encode(encode_image(picture_HWC)).decode()}"
