"""SIGTERM before there is a server that could drain."""

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
    """Within this context SIGTERM ends the process at once.

    The first process of a container needs a handler for that: the kernel delivers to it only signals that it handles.
    Source: pid_namespaces(7).
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals can be handled only in the main thread
        return
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end_the_start() -> None:
    """End the process, whatever its threads are doing: no request has been accepted that could be lost."""
    logger.info("stopped by a signal before the server was ready")
    os._exit(0)


def _end(_number: int, _frame: FrameType | None) -> None:
    end_the_start()
