"""All cells side by side: each in a process of its own, taking turns."""

import multiprocessing
import random
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress

from benchmarks.amp.step import device_of
from benchmarks.amp.worker import Failed, Message, Ready, Stepped, serve
from benchmarks.progress import Progress, silent
from benchmarks.report.amp.results import Cell, CellResult, GridPrecision, Workload

WARMUP = 3
"""Untimed steps before the first round: for the compiler, the optimizer's state, the scaler's way down from 65536."""
STEPS_A_TURN = 2
"""Timed steps a turn, after one that warms up memory and caches again: few, so that a drift affects all cells."""
_START_SECONDS = 120.0
"""What a process may take before its cell begins, to import torch and build the network."""


def cells(device_type: str, *, compiled: bool = True) -> tuple[Cell, ...]:
    """The grid, with or without torch.compile; TF32 is a format of GPUs."""
    precisions: tuple[GridPrecision, ...] = ("float32", "tf32", "float16", "bfloat16")
    return tuple(
        Cell(precision=precision, channels_last=channels_last, compiled=mode)
        for precision in precisions
        if precision != "tf32" or device_type == "cuda"
        for channels_last in (False, True)
        for mode in ((False, True) if compiled else (False,))
    )


def measure(grid: Sequence[Cell], workload: Workload, *, progress: Progress = silent) -> tuple[CellResult, ...]:
    """Run `workload.steps` timed steps of each cell, interleaved; a cell that fails or takes too long is a result too.

    All processes are alive at once: each holds its weights and AdamW's state while it waits, its
    activations only in its turn.
    """
    with ExitStack() as stack:
        processes: list[CellProcess] = []
        # On a CPU, cells that warm up together slow each other down; for a GPU, the CPU's cores compile them together.
        groups = [grid] if device_of(workload.device).type == "cuda" else [[cell] for cell in grid]
        with progress("warm up", len(grid)) as bar:
            for group in groups:
                started = [stack.enter_context(closing(CellProcess(cell, workload))) for cell in group]
                for process in started:
                    process.ask(WARMUP)
                for process in started:
                    process.take(untimed=WARMUP, timed=0)
                    bar.advance()
                processes.extend(started)
        order, shuffle = list(processes), random.Random(0).shuffle
        with progress("steps", workload.steps) as bar:
            for done in range(0, workload.steps, STEPS_A_TURN):
                steps = min(STEPS_A_TURN, workload.steps - done)
                shuffle(order)
                for process in order:
                    process.ask(1 + steps)
                    process.take(untimed=1, timed=steps)
                bar.advance(steps)
        return tuple(process.result() for process in processes)


class CellProcess:
    """The process of one cell, and its results so far."""

    def __init__(self, cell: Cell, workload: Workload) -> None:
        # A forked process would share what torch's threads and CUDA hold in this one.
        context = multiprocessing.get_context("spawn")
        self._cell = cell
        self._limit_s = workload.cell_seconds
        self._left_s = max(self._limit_s, _START_SECONDS)
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, cell, workload), daemon=True)
        self._process.start()
        theirs.close()
        self._ready: Ready | None = None
        self._untimed: list[Stepped] = []
        self._timed: list[Stepped] = []
        self._at_least_ms: float | None = None
        self._failure: str | None = None

    def ask(self, steps: int) -> None:
        """Ask for `steps` more steps; for none if the cell has failed."""
        # A process that has ended may have sent the reason, which is still to be received.
        if self._failure is None:
            with suppress(BrokenPipeError):
                self._connection.send(steps)

    def take(self, *, untimed: int, timed: int) -> None:
        """Wait for the steps that were asked for; there are fewer if one of them fails."""
        for index in range(untimed + timed):
            message = self._receive()
            if isinstance(message, Ready):
                self._ready = message
                self._left_s = self._limit_s  # the cell's own time begins here
                message = self._receive()
            if not isinstance(message, Stepped):
                return
            (self._untimed if index < untimed else self._timed).append(message)

    def result(self) -> CellResult:
        steps = [*self._untimed, *self._timed]
        ready, logits = self._ready, steps[-1].logits if steps else None
        return CellResult.of(
            self._cell,
            tuple(step.milliseconds for step in self._timed),
            untimed_ms=tuple(step.milliseconds for step in self._untimed),
            at_least_ms=self._at_least_ms,
            peak_memory_mib=max((step.peak_memory_mib for step in steps), default=None),
            params=ready.params if ready else None,
            compute_dtype=logits.dtype if logits else None,
            compute_layout=logits.layout if logits else None,
            logits_NKHW=logits.shape_NKHW if logits else None,
            rounding=ready.rounding if ready else None,
            skipped_steps=sum(step.skipped for step in self._timed),
            failure=self._failure,
        )

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.join()
        self._connection.close()

    def _receive(self) -> Message | None:
        """The next message of the process; None, with the failure noted, if there will be no more."""
        if self._failure is not None:
            return None
        start = time.monotonic()
        try:
            message: Message | None = self._connection.recv() if self._connection.poll(self._left_s) else None
        except (EOFError, ConnectionResetError):
            self._process.join()
            message = Failed(f"its process died with exit status {self._process.exitcode}")
        waited_s = time.monotonic() - start
        self._left_s = max(0.0, self._left_s - waited_s)
        if message is None:
            self._at_least_ms = self._bound(waited_s * 1e3)
            self._failure = self._stopped()
        elif isinstance(message, Failed):
            self._failure = message.reason
        if self._failure is not None:
            self.close()
        return message

    def _stopped(self) -> str:
        done = f"{len(self._timed)} timed" if self._timed else f"{len(self._untimed)} untimed"
        takes = "" if self._at_least_ms is None else f"; a step takes at least {self._at_least_ms:.0f} ms"
        return f"stopped after {done} steps: the limit of {self._limit_s:g} s is reached{takes}"

    def _bound(self, unfinished_ms: float) -> float | None:
        """What a step takes at least, if none was timed and one has been running for `unfinished_ms`."""
        # The start of the process, and a first step with its compiler, say nothing about a step.
        compiling = self._cell.compiled and not self._untimed
        if self._timed or self._ready is None or compiling:
            return None
        return max([unfinished_ms, *(step.milliseconds for step in self._untimed[1:])])
