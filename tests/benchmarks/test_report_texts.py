"""Markdown, HTML and the terminal's table: every figure, nothing unescaped, nothing loaded from elsewhere."""

import io
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console
from support.reports import make_report

from benchmarks.report.markdown import escaped, markdown
from benchmarks.report.page import page
from benchmarks.report.plots import draw
from benchmarks.report.results import Goals, Report
from benchmarks.report.table import details, per_class, summary, terminal_table
from benchmarks.report.words import DASH, MINUS, TIMES, miou, number, times

NASTY = ('<b onclick="x">', "a|b", "**bold** _it_ `code` [l](http://x) #1 $x$ ~~s~~ \\ &amp;")
VOID_ELEMENTS = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Checks that elements nest, and keeps what a test asks about."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return make_report(
        tmp_path_factory.mktemp("report"),
        classes=NASTY,
        title='A <run> & "more"',
        command="compress run '<&>' ```",
        notes=("note <i>",),
        goals=Goals(speedup=4.5, max_drop=0.02),
        lookup_table_miou=0.6512,
        latency={"failure": "no <memory>"},
    )


@pytest.fixture(scope="module")
def html(report: Report) -> str:
    return page(report, draw(report), None)


def cells(report: Report) -> list[str]:
    tables = [summary(report), details(report), per_class(report)]
    return [cell for table in tables if table is not None for row in table.rows for cell in row]


def test_every_cell_is_on_the_page(report: Report, html: str) -> None:
    found = Page(html)
    for cell in cells(report):
        assert cell in found.text


def test_every_cell_is_in_the_markdown(report: Report) -> None:
    lines = markdown(report, (), None).splitlines()
    tables = [summary(report), details(report), per_class(report)]
    for table in tables:
        assert table is not None
        for row in table.rows:
            assert "| " + " | ".join(map(escaped, row)) + " |" in lines


def test_what_was_asked_for_and_found_is_everywhere(report: Report, html: str) -> None:
    text = "".join(Page(html).text)
    plain = markdown(report, (), None)
    for verdict in report.verdicts:
        for words in (verdict.text, verdict.detail):
            assert words in text
            assert escaped(words) in plain
    for words in (*report.notes, *report.failures, report.machine.cpu, report.date):
        assert words in text
        assert escaped(words) in plain
    assert report.command in text
    assert f"````\n{report.command}\n````" in plain


def test_the_page_needs_nothing_from_elsewhere(html: str) -> None:
    found = Page(html)
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in found.elements}
    for _, attributes in found.elements:
        for key in ("src", "srcset", "href", "xlink:href", "data", "poster", "action"):
            value = attributes.get(key)
            assert value is None or value.startswith(("data:", "#"))
    assert not re.search(r"@import|url\((?!#)", html)


def test_the_page_is_sound(html: str) -> None:
    found = Page(html)
    ids = Counter(attributes["id"] for _, attributes in found.elements if "id" in attributes)
    assert [name for name, count in ids.items() if count > 1] == []
    for attributes in found.of("use"):
        assert (attributes.get("xlink:href") or attributes.get("href") or "").removeprefix("#") in ids
    for reference in re.findall(r"url\(#([^)]+)\)", html):
        assert reference in ids
    assert all(attributes.get("scope") in ("col", "row") for attributes in found.of("th"))
    assert len(found.of("caption")) == len(found.of("table")) == 3
    pictures = [attributes for attributes in found.of("div") if attributes.get("role") == "img"]
    assert len(pictures) == 2
    assert all("dense-fp32" in (attributes["aria-label"] or "") for attributes in pictures)
    assert len(found.of("h1")) == 1
    assert found.of("html") == [{"lang": "en"}]


def test_plots_take_the_colours_of_the_page(html: str) -> None:
    svgs = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    style = html[: html.index("</style>")]
    assert len(svgs) == 2
    for svg in svgs:
        used = set(re.findall(r"var\((--[a-z]+)\)", svg))
        assert "--ink" in used
        assert all(f"{name}:" in style for name in used)
        # Only the colours of series are fixed; all others are variables.
        assert "#000000" not in svg
        assert "#ffffff" not in svg


def test_plots_are_the_same_for_the_same_report(report: Report) -> None:
    assert draw(report) == draw(report)


def test_the_page_is_dark_where_the_reader_is(html: str) -> None:
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_markup_in_names_stays_text(report: Report, html: str) -> None:
    found = Page(html)
    assert not {"b", "run", "i", "memory"} & {tag for tag, _ in found.elements}
    assert 'A <run> & "more"' in found.text


@given(st.text(st.characters(exclude_categories=["Cs"])))
@example("a\n# b")
@example("| x |")
def test_escaped_markdown_is_one_line_whose_special_characters_are_escaped(text: str) -> None:
    line = escaped(text)
    assert len(line.splitlines()) <= 1
    assert not re.search(r"(?<!\\)(\\\\)*[`*_{}\[\]<>#|~&$]", line)
    assert re.sub(r"\\(.)", r"\1", line) == " ".join(text.split())


def test_the_terminals_table_fits_eighty_columns(tmp_path: Path) -> None:
    report = make_report(tmp_path)
    stream = io.StringIO()
    Console(file=stream, width=80).print(terminal_table(report))
    shown = stream.getvalue()
    for row in summary(report).rows:
        assert any(all(cell in line.split() for cell in row) for line in shown.splitlines())
    assert "…" not in shown


def test_models_without_a_score_show_a_dash(tmp_path: Path) -> None:
    report = make_report(tmp_path, hits=None)
    assert per_class(report) is None
    assert summary(report).rows[0][4] == DASH
    plots = draw(report)
    assert [plot.name for plot in plots] == ["latency"]
    assert "<h1>" in page(report, plots, None)


def test_the_split_is_in_the_header(tmp_path: Path) -> None:
    assert "test mIoU" in summary(make_report(tmp_path)).headers
    assert "mIoU" in summary(make_report(tmp_path, hits=None)).headers


@given(st.floats(1e-6, 1e12))
def test_numbers_keep_three_digits(value: float) -> None:
    shown = number(value)
    assert "e" not in shown
    assert float(shown.replace(",", "")) == pytest.approx(value, rel=0.006)
    assert number(-value) == MINUS + shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (0.01234, "0.0123"), (4.5612, "4.56"), (17.94, "17.9"), (31101.4, "31,101")]
)
def test_numbers_as_people_write_them(value: float, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0.914, "0.91"), (6.204, "6.20"), (9.996, "10.0"), (14.21, "14.2"), (131.4, "131")]
)
def test_ratios_as_people_write_them(value: float, shown: str) -> None:
    assert times(value) == shown + TIMES


def test_a_negative_miou_difference_has_a_minus_sign() -> None:
    assert miou(-0.00512) == f"{MINUS}0.0051"
