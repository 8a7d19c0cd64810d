"""Parts of a page in a single file: every report that has a page is made of these."""

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from benchmarks.report.plots import Plot, colour_of
from benchmarks.report.results import Verdict
from benchmarks.report.table import Table
from benchmarks.report.words import failed_first


def document(title: str, body: Iterable[str]) -> str:
    """The whole file: the style is inside."""
    style = files("benchmarks.report").joinpath("page.css").read_text(encoding="utf-8")
    content = "\n".join(body)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{content}\n</body>\n</html>\n"
    )


def tiles(figures: Iterable[tuple[str, str, str]]) -> str:
    """A tile for each (label, figure, what the figure is made of)."""
    shown = "".join(
        f'<div class="tile"><dt>{escape(label)}</dt><dd>{escape(figure)}</dd>'
        f'<dd class="aside">{escape(aside)}</dd></div>'
        for label, figure, aside in figures
    )
    return f'<dl class="tiles">{shown}</dl>'


def section(title: str, content: str, *, hidden_title: bool = False) -> str:
    """A section of the page; `content` is HTML already."""
    kind = ' class="unseen"' if hidden_title else ""
    return f"<section>\n<h2{kind}>{escape(title)}</h2>\n{content}\n</section>"


def html_table(
    table: Table, *, stacks: bool = False, swatches: bool = False, marked: str | None = None, captioned: bool = True
) -> str:
    """`table` as HTML.

    `stacks`: on a narrow page each row becomes a card. `swatches`: rows show the colours that plots give them, in their
    order. `marked`: the name of a row that stands out. `captioned`: the caption is visible; else the section's title
    stands for it.
    """
    # Roles are spelt out because a table that CSS lays out as blocks loses its own.
    head = "".join(f'<th scope="col" role="columnheader">{escape(header)}</th>' for header in table.headers)
    rows = []
    for index, (name, *cells) in enumerate(table.rows):
        swatch = f'<span class="swatch" style="background:{colour_of(index)}"></span>' if swatches else ""
        kind = ' class="compressed"' if name == marked else ""
        figures = "".join(
            f'<td role="cell" data-label="{escape(header)}">{escape(cell)}</td>'
            for header, cell in zip(table.headers[1:], cells, strict=True)
        )
        rows.append(f'<tr role="row"{kind}><th scope="row" role="rowheader">{swatch}{escape(name)}</th>{figures}</tr>')
    kind = "wide stacks" if stacks else "wide"
    hidden = "" if captioned else ' class="unseen"'
    return (
        f'<div class="{kind}" role="region" aria-label="{escape(table.caption)}" tabindex="0"><table role="table">'
        f"<caption{hidden}>{escape(table.caption)}</caption>"
        f'<thead role="rowgroup"><tr role="row">{head}</tr></thead>'
        f'<tbody role="rowgroup">{"".join(rows)}</tbody></table></div>'
    )


def plots_section(plots: Iterable[Plot]) -> str:
    """All `plots`, side by side where there is room."""
    return section("Plots", f'<div class="plots">{"".join(map(_figure, plots))}</div>', hidden_title=True)


def bullets(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def checks(verdicts: Sequence[Verdict]) -> str:
    """What the figures were checked for, and whether it holds."""
    shown = "".join(map(_verdict, failed_first(verdicts)))
    return section("Checks", f'<ul class="checks">{shown}</ul>')


def how_it_was_measured(facts: Iterable[tuple[str, str]], command: str) -> str:
    """The conditions of the measurement, and the command that reproduces it."""
    shown = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    again = f'<p>Reproduce it with:</p><pre tabindex="0"><code>{escape(command)}</code></pre>'
    return section("How it was measured", f'<dl class="facts">{shown}</dl>{again}')


def _verdict(verdict: Verdict) -> str:
    state, word = ("good", "passed") if verdict.ok else ("bad", "failed")
    return (
        f'<li><span class="badge {state}">{word}</span>'
        f"<div><strong>{escape(verdict.text)}</strong><br>{escape(verdict.detail)}</div></li>"
    )


def _figure(plot: Plot) -> str:
    return (
        f'<figure class="plot"><figcaption>{escape(plot.title)}</figcaption>'
        f'<div role="img" aria-label="{escape(plot.alt)}">{plot.svg}</div></figure>'
    )
