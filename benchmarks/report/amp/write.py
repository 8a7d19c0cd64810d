"""The report as files: report.json, report.md, and the PNGs that the Markdown shows."""

from pathlib import Path

from benchmarks.report.amp.markdown import markdown
from benchmarks.report.amp.plots import draw
from benchmarks.report.amp.results import AmpReport
from benchmarks.report.folder import MARKDOWN, write_report
from benchmarks.report.plots import drawn, pictures


def write(report: AmpReport, out: Path) -> None:
    """Write `report` into the folder `out`; without matplotlib there are no pictures."""
    plots = drawn(draw, report)
    files = {MARKDOWN: markdown(report, plots), **pictures(plots)}
    write_report(out, report, files, may_be_stale=("step.png", "memory.png"))
