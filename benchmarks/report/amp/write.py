"""The report as files: report.json, report.md, and the PNGs that the Markdown shows."""

from pathlib import Path

from benchmarks.report.amp.markdown import markdown
from benchmarks.report.amp.plots import draw
from benchmarks.report.amp.results import AmpReport
from benchmarks.report.write import JSON, MARKDOWN
from export.errors import MissingExtraError
from export.files import make_folder, write_atomic, write_json


def write(report: AmpReport, out: Path) -> None:
    """Write `report` into the folder `out`; without matplotlib there are no pictures."""
    make_folder(out)
    try:
        plots = draw(report)
    except MissingExtraError:
        plots = ()
    for name in {"step", "memory"} - {plot.name for plot in plots}:
        (out / f"{name}.png").unlink(missing_ok=True)
    for plot in plots:
        write_atomic(out / f"{plot.name}.png", plot.png)
    write_atomic(out / MARKDOWN, markdown(report, plots))
    # Last: whoever finds it finds the others whole.
    write_json(out / JSON, report.model_dump(mode="json"))
