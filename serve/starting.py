"""SIGTERM while there is no server yet that could drain."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def ends_on_sigterm() -> Iterator[None]:
    """Within, SIGTERM ends the process at once. Without a handler it would not do so where the process is a container's
    first: such signals the kernel does not deliver there. Source: pid_namespaces(7).
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # the signals belong to whoever runs the main thread
        return
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end_the_start() -> None:
    """End the process, whatever its threads are at: nothing has been accepted that could be lost."""
    logger.info("told to stop before it was ready; stopped")
    os._exit(0)


def _end(_number: int, _frame: FrameType | None) -> None:
    end_the_start()
