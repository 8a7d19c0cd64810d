"""The folder of a report, made before hours are spent on what goes into it."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from export.errors import UsageError
from export.files import make_folder


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
