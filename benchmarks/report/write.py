"""A report as files: report.json, report.md, report.html, and the PNGs that the Markdown shows."""

from pathlib import Path

from benchmarks.report.folder import MARKDOWN, PAGE, write_report
from benchmarks.report.markdown import markdown
from benchmarks.report.page import page
from benchmarks.report.plots import draw, drawn, pictures
from benchmarks.report.results import Report
from benchmarks.report.strip import Strip
from export.images import encode_image

STRIP = "strip.png"


def write(report: Report, out: Path, strip: Strip | None = None) -> None:
    """Write `report` into the folder `out`.

    Without matplotlib there are no plots and no page; the report's notes say so.
    """
    plots = drawn(draw, report)
    files = {MARKDOWN: markdown(report, plots, strip), **pictures(plots)}
    if strip is not None:
        files[STRIP] = encode_image(strip.montage())
    if plots:
        files[PAGE] = page(report, plots, strip)
    write_report(out, report, files, may_be_stale=(STRIP, "accuracy.png", "latency.png", "widths.png"))
