"""The network before and after, as a reader of the report sees it."""

from pathlib import Path
from typing import Any

from support.reports import make_report

from benchmarks.report.markdown import markdown
from benchmarks.report.page import page
from benchmarks.report.plots import draw
from benchmarks.report.results import GroupWidth
from benchmarks.report.table import narrowed
from benchmarks.report.write import write

GROUPS: tuple[dict[str, Any], ...] = (
    {"layer": "stem.0", "width": 64, "kept": 16, "importance_lost": 0.4213, "milliseconds_spared": 1.234},
    {"layer": "down.0.0", "width": 128, "kept": 128, "importance_lost": 0.0, "milliseconds_spared": 0.0},
)


def test_what_was_cut_is_shown_by_group(tmp_path: Path) -> None:
    report = make_report(tmp_path / "bundles", widths=[GroupWidth(**group) for group in GROUPS])
    plots = draw(report)
    assert plots[-1].name == "widths"
    assert "stem.0: 16 of 64; down.0.0: 128 of 128" in plots[-1].alt
    assert ">16/64<" in plots[-1].svg
    text = markdown(report, plots, None)
    assert "| stem.0 | 64 | 16 | 42% | 1.23 |" in text
    assert "| down.0.0 | 128 | 128 | 0% | 0 |" in text
    assert "(widths.png)" in text
    html = page(report, plots, None)
    assert "What pruning cut, by group" in html
    assert ">42%<" in html
    write(report, tmp_path / "out")
    assert (tmp_path / "out" / "widths.png").exists()
    write(make_report(tmp_path / "bundles"), tmp_path / "out")
    assert not (tmp_path / "out" / "widths.png").exists()


def test_without_a_latency_table_nothing_is_said_of_milliseconds(tmp_path: Path) -> None:
    plain = [GroupWidth(layer=group["layer"], width=group["width"], kept=group["kept"]) for group in GROUPS]
    table = narrowed(make_report(tmp_path / "bundles", widths=plain))
    assert table is not None
    assert table.headers == ("group", "channels", "kept", "importance lost")
    assert table.rows[0][:3] == ("stem.0", "64", "16")
    assert "ms spared" not in table.caption


def test_of_a_network_that_was_not_pruned_nothing_is_shown(tmp_path: Path) -> None:
    report = make_report(tmp_path / "bundles")
    assert narrowed(report) is None
    assert "What pruning cut" not in markdown(report, draw(report), None)
