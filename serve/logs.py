"""One line per event on standard error, for people or for log collectors.

A record may carry `fields` (see `event`). In JSON they are the members of its line; in text they are left out, since
its message says what a person wants to know.
"""

import contextlib
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any


class LogFormat(StrEnum):
    """How an event is written."""

    TEXT = "text"
    """For people; the default at a terminal."""
    JSON = "json"
    """One object a line; the default elsewhere."""

    @classmethod
    def here(cls) -> "LogFormat":
        """The format that suits standard error: text at a terminal, otherwise JSON."""
        return cls.TEXT if sys.stderr.isatty() else cls.JSON


def event(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The `extra` of a log call whose message is for people and whose JSON is `fields`."""
    return {"event": name, "fields": fields}


@contextlib.contextmanager
def logs_as(form: LogFormat) -> Iterator[None]:
    """Within this context, log lines to streams have this form; text is what the command line writes anyway."""
    # Handlers of other kinds, such as pytest's, belong to others.
    streams = [handler for handler in logging.getLogger().handlers if type(handler) is logging.StreamHandler]
    before = [handler.formatter for handler in streams]
    if form is LogFormat.JSON:
        for handler in streams:
            handler.setFormatter(JsonLines())
    try:
        yield
    finally:
        for handler, formatter in zip(streams, before, strict=True):
            handler.setFormatter(formatter)


def last_line(error: Exception) -> str:
    """Why the program ends, as a JSON line that a log collector can read like the others."""
    return JsonLines().format(logging.LogRecord("serve", logging.CRITICAL, "", 0, str(error), None, None))


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object on one line, whatever its message contains."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if hasattr(record, "fields"):
            line |= {"event": getattr(record, "event", "")} | dict(record.fields)
        else:
            line["message"] = record.getMessage()
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
