"""Ends what a benchmark has started when it is asked to end itself."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_STATUS = 128 + signal.SIGTERM
"""Of a shell's command that SIGTERM ended."""


@contextmanager
def sigterm_unwinds() -> Iterator[None]:
    """While the block lasts, SIGTERM raises SystemExit, so that what the block started is ended as after Ctrl-C.

    Outside of the main thread, where no signal can be handled, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(_STATUS)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
