"""The folder of a report: made before hours are spent on what goes into it, then filled."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from benchmarks.report.results import Measurement
from export.errors import UsageError
from export.files import make_folder, write_atomic, write_json

JSON, MARKDOWN, PAGE = "report.json", "report.md", "report.html"


@contextmanager
def report_folder(out: Path) -> Iterator[None]:
    """Make the folder `out` and prove that it can be written; if the block fails, remove what was made and is empty.

    Raises UsageError for a place that cannot be a folder or be written.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    make_folder(out)
    try:
        # The mode would not tell: root and network drives have their own rules.
        TemporaryFile(dir=out).close()
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}; give another folder") from error
    try:
        yield
    except BaseException:
        with suppress(OSError):  # the first folder that is not empty keeps its parents, too
            for folder in made:
                folder.rmdir()
        raise


def write_files(folder: Path, files: Mapping[str, str | bytes], *, may_be_stale: Collection[str] = ()) -> None:
    """Write `files` into `folder`, which is made if need be. What an earlier report left there of `may_be_stale`, and
    this one does not have, is removed.

    Raises UsageError for a place that cannot be a folder.
    """
    make_folder(folder)
    for name in set(may_be_stale) - files.keys():
        (folder / name).unlink(missing_ok=True)
    for name, content in files.items():
        write_atomic(folder / name, content)


def write_report(
    out: Path, report: Measurement, files: Mapping[str, str | bytes], *, may_be_stale: Collection[str] = ()
) -> None:
    """As `write_files`, and the figures as report.json. There may always be a stale page, of another report."""
    write_files(out, files, may_be_stale=(PAGE, *may_be_stale))
    # Last: whoever finds it finds the others whole.
    write_json(out / JSON, report.model_dump(mode="json"))


def to_open(out: Path) -> Path:
    """The page of the report in `out`; the Markdown where there is no page, for want of matplotlib."""
    return out / PAGE if (out / PAGE).exists() else out / MARKDOWN
