"""Whose line failed: an exception from code that is not ours, in one line that its author can act on."""

import sysconfig
import traceback
from functools import cache
from pathlib import Path

LONGEST = 400
"""Characters kept of a message: libraries put whole graphs into theirs."""


def told(error: BaseException) -> str:
    """`TypeError: unsupported operand (nets/own.py:12)`: the innermost line that is neither a library's nor ours."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, SyntaxError):  # it names the line itself; its traceback has only ours
        text, place = error.msg, _place(error.filename, error.lineno)
    else:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_foreign(frame.filename)]
        place = _place(frames[-1].filename, frames[-1].lineno) if frames else ""
    text = text if len(text) <= LONGEST else text[:LONGEST] + " ..."
    return f"{type(error).__name__}: {text}".removesuffix(": ") + place


def _place(file: str | None, line: int | None) -> str:
    if file is None:
        return ""
    path = Path(file)
    return f" ({path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}:{line})"


def _is_foreign(file: str) -> bool:
    path = Path(file)
    return path.is_absolute() and not any(path.is_relative_to(root) for root in _known())


@cache
def _known() -> tuple[Path, ...]:
    """Folders of Python, of installed packages, and of segpress."""
    installed = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    ours = Path(__file__).resolve().parents[1]
    return (*installed, *(ours / package for package in ("benchmarks", "compress", "export", "serve")))
