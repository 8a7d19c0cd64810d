"""One cell in a process of its own: its memory is measured alone, and it can be stopped in the middle of a step."""

import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

from benchmarks.amp.step import Logits, TrainingStep
from benchmarks.report.amp.results import Cell, Workload


@dataclass(frozen=True)
class Ready:
    """The network is made; the first step has not begun."""

    params: int
    rounding: float


@dataclass(frozen=True)
class Stepped:
    """One step is done."""

    milliseconds: float
    peak_memory_mib: float
    logits: Logits | None
    skipped: bool


@dataclass(frozen=True)
class Failed:
    """There will be no further step."""

    reason: str


_TINY = {"base": 1, "height": 32, "width": 32, "batch": 2}
"""A first step of this size loads 100 MiB of torch that stay loaded, and are not part of what a step needs."""

Message = Ready | Stepped | Failed


def serve(connection: Connection, cell: Cell, workload: Workload) -> None:
    """Send `Ready`, then for every number received that many `Stepped`; on an error send `Failed` and return.

    Returns when the other end is closed.
    """
    # Ctrl-C reaches the whole group of processes; the one that started this one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Standard output belongs to the result of the command.
    os.dup2(sys.__stderr__.fileno() if sys.__stderr__ else 2, 1)
    warnings.simplefilter("ignore")
    with _failures_sent(connection):
        TrainingStep(cell.model_copy(update={"compiled": False}), workload.model_copy(update=_TINY)).run()
        step = TrainingStep(cell, workload)
        connection.send(Ready(step.params, step.rounding()))
        while True:
            for _ in range(connection.recv()):
                milliseconds = step.run()
                connection.send(Stepped(milliseconds, step.peak_memory_mib(), step.logits, step.skipped))
            step.rest()


@contextmanager
def _failures_sent(connection: Connection) -> Iterator[None]:
    """Send whatever makes a cell fail, such as a missing compiler or too little memory, as its result."""
    try:
        yield
    except (EOFError, ConnectionError):
        return  # the other end is closed
    except Exception as error:
        connection.send(Failed(_in_a_line(error)))


def _in_a_line(error: Exception) -> str:
    """Torch's messages go on for pages; their first line says what happened."""
    text = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
    return f"{type(error).__name__}: {text.strip()}"
