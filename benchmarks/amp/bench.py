"""`compress bench amp` without its command line: a workload and a recipe in, a report out."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.amp.accuracy import compare, reduced_choice
from benchmarks.amp.grid import cells, measure
from benchmarks.amp.step import device_of
from benchmarks.progress import Progress, silent
from benchmarks.report.amp.results import MAX_SEEDS, Accuracy, AmpReport, CellResult, Workload
from benchmarks.report.amp.verdicts import verdicts
from benchmarks.report.amp.write import write
from benchmarks.report.folder import report_folder
from benchmarks.report.plots import shortcomings
from compress.models import build, size_multiple
from compress.recipe import Recipe
from compress.train.precision import Choice, choose
from export.errors import ShapeError, UsageError
from export.machine import Machine

WORK = "accuracy"
"""Folder of the trainings, inside that of the report."""
NOISY = 1.5
"""A slowest step of this many times the median means that the machine was busy with something else."""


def bench(
    out: Path,
    *,
    workload: Workload | None = None,
    compiled: bool = True,
    recipe: Recipe | None = None,
    device: str = "auto",
    data: Path | None = None,
    seeds: int = 3,
    command: str,
    progress: Progress = silent,
) -> AmpReport:
    """Measure the grid on `workload`, train `recipe` in pairs from seeds 0, 1, ..., and write the report into `out`.

    Either part may be left out, and so may the cells with torch.compile, which take minutes each on a CPU. The
    trainings come first: they are kept in `out` and never repeated, while a grid is measured in one go. A cell that
    cannot run is still a row of the report. Raises UsageError for bad input, and what `compress.train.train` raises.
    """
    if workload is None and recipe is None:
        raise UsageError("nothing to measure; give a workload, a recipe, or both")
    if not 1 <= seeds <= MAX_SEEDS:
        raise UsageError(f"the comparison takes 1 to {MAX_SEEDS} seeds, got {seeds}")
    if workload is not None:
        _require_fitting(workload)
    picked = device_of(device)
    with report_folder(out):
        notes, lost = [], None
        choice = choose("auto", picked) if recipe is None else reduced_choice(out / WORK, recipe, picked)
        if recipe is not None and choice.precision == "float32":
            notes.append(
                f"No comparison of mIoU: compress train chooses float32 here ({choice.reason}); "
                "--set train.precision=NAME compares another."
            )
        elif recipe is not None:
            lost = compare(out / WORK, _on(recipe, picked), precision=choice.precision, seeds=range(seeds), data=data)
        measured: tuple[CellResult, ...] = ()
        if workload is not None:
            workload = workload.model_copy(update={"device": str(picked)})
            measured = measure(cells(picked.type, compiled=compiled), workload, progress=progress)
            notes.extend(_notes(measured, picked, compiled=compiled))
        report = _report(choice, picked, workload, measured, lost, [*notes, *shortcomings("pictures")], command)
        write(report, out)
    return report


def _report(
    choice: Choice,
    device: torch.device,
    workload: Workload | None,
    measured: tuple[CellResult, ...],
    lost: Accuracy | None,
    notes: Sequence[str],
    command: str,
) -> AmpReport:
    machine = Machine.here()
    report = AmpReport(
        title="What mixed precision is worth",
        command=command,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine,
        device=_in_words(device, machine),
        precision=choice.precision,
        reason=choice.reason,
        workload=workload,
        cells=measured,
        accuracy=lost,
        notes=tuple(notes),
    )
    return report.model_copy(update={"verdicts": verdicts(report)})


def _require_fitting(workload: Workload) -> None:
    multiple = size_multiple(build("unet", {"base": 1}))
    if workload.height % multiple or workload.width % multiple:
        raise ShapeError(
            f"the network takes sizes in multiples of {multiple}, got {workload.height}x{workload.width}; "
            "choose another --size"
        )


def _on(recipe: Recipe, device: torch.device) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"device": str(device)})})


def _in_words(device: torch.device, machine: Machine) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return f"{machine.cpu}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def _notes(measured: Sequence[CellResult], device: torch.device, *, compiled: bool) -> Iterable[str]:
    if device.type == "cpu":
        yield "TF32 exists only on GPUs, so there are no such cells."
    if not compiled:
        yield "The cells with torch.compile were left out on request."
    noisy = [r for r in measured if r.step_ms is not None and max(r.samples_ms) > NOISY * r.step_ms]
    if noisy:
        yield (
            f"The machine was not quiet: the slowest step of {', '.join(r.cell.name for r in noisy)} took more than "
            f"{NOISY} times the median. Run it again with nothing else running."
        )
