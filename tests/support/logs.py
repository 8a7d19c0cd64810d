"""What the program logs while something runs."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def logged() -> Iterator[list[logging.LogRecord]]:
    """Every record of every logger, down to DEBUG, in the order in which it came."""
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    root, handler = logging.getLogger(), Keep()
    named = [logger for logger in root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    before = [(logger, logger.level) for logger in (root, *named)]
    for logger in named:  # a command that ran in this process before may have set some
        logger.setLevel(logging.NOTSET)
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield records
    finally:
        for logger, level in before:
            logger.setLevel(level)
        root.removeHandler(handler)
