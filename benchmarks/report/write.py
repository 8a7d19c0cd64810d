"""A report as files: report.json, report.md, report.html, and the PNGs that the Markdown shows."""

from pathlib import Path

from benchmarks.report.markdown import markdown
from benchmarks.report.page import page
from benchmarks.report.plots import Plot, draw
from benchmarks.report.results import Report
from benchmarks.report.strip import Strip
from export.errors import MissingExtraError
from export.files import write_atomic, write_json
from export.images import encode_image

JSON, MARKDOWN, PAGE, STRIP = "report.json", "report.md", "report.html", "strip.png"


def shown(out: Path) -> Path:
    """The page of the report in `out`; the Markdown where there is no page, for want of matplotlib."""
    return out / PAGE if (out / PAGE).exists() else out / MARKDOWN


def write(report: Report, out: Path, strip: Strip | None = None) -> tuple[Path, ...]:
    """Write `report` into the folder `out` and return the files, report.json first.

    Without matplotlib there are no plots and no page; the report's notes say so. Files of an earlier
    report that this one does not have are removed.
    """
    out.mkdir(parents=True, exist_ok=True)
    plots: tuple[Plot, ...]
    try:
        plots = draw(report)
    except MissingExtraError:
        plots = ()
    files: dict[str, str | bytes] = {MARKDOWN: markdown(report, plots, strip)}
    files |= {f"{plot.name}.png": plot.png for plot in plots}
    if strip is not None:
        files[STRIP] = encode_image(strip.montage())
    if plots:
        files[PAGE] = page(report, plots, strip)
    for name in {PAGE, STRIP, "accuracy.png", "latency.png", "widths.png"} - files.keys():
        (out / name).unlink(missing_ok=True)
    for name, content in files.items():
        write_atomic(out / name, content)
    # Last: whoever finds it finds the others whole.
    write_json(out / JSON, report.model_dump(mode="json"))
    return (out / JSON, *(out / name for name in files))
