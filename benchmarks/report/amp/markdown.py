"""The report as Markdown."""

from collections.abc import Iterable, Sequence

from benchmarks.report.amp.results import AmpReport, Workload
from benchmarks.report.amp.table import checks, grid, seeds, supplies
from benchmarks.report.amp.verdicts import resolved
from benchmarks.report.markdown import closing_lines, escaped, joined, picture_lines, table_lines
from benchmarks.report.plots import Plot
from benchmarks.report.words import failed_first, machine_facts


def markdown(report: AmpReport, plots: Sequence[Plot]) -> str:
    """The whole report; it shows pictures from the files beside it."""
    return joined(_lines(report, plots))


def failures(report: AmpReport) -> list[str]:
    """Why cells did not run to their end, a line for each reason."""
    names: dict[str, list[str]] = {}
    for result in report.cells:
        if result.failure is not None:
            names.setdefault(result.failure, []).append(result.cell.name)
    return [f"{', '.join(cells)}: {reason}" for reason, cells in names.items()]


def _lines(report: AmpReport, plots: Sequence[Plot]) -> Iterable[str]:
    yield f"# {escaped(report.title)}"
    yield ""
    for verdict in failed_first(report.verdicts):
        text = escaped(verdict.text)
        yield f"- {text if verdict.ok else f'**{text}**'} ({escaped(verdict.detail)})"
    yield ""
    if report.cells:
        yield from ("## A training step", "")
        yield from table_lines(grid(report))
    if failed := failures(report):
        yield from ("## What did not run to its end", "", *(f"- {escaped(line)}" for line in failed), "")
    yield from picture_lines(plots)
    if report.accuracy is not None:
        yield from ("## What is lost", "")
        yield from table_lines(seeds(report.accuracy))
        yield from (escaped(f"From the differences of the seeds, {resolved(report.accuracy)}."), "")
        if report.accuracy.supplies:
            yield from ("## Whether the network waits for its images", "")
            yield from table_lines(supplies(report.accuracy))
    if report.cells:
        yield from ("## Whether each cell ran as labelled", "")
        yield from table_lines(checks(report))
    yield from closing_lines(report, _circumstances(report))


def _circumstances(report: AmpReport) -> Iterable[tuple[str, str]]:
    yield "Date", report.date
    if report.workload is not None:
        yield "Step", _step(report.workload)
        yield (
            "Taking turns",
            "each cell is a process of its own; all are alive at once and take turns of one untimed and up to two "
            "timed steps, each round in another order",
        )
        yield (
            "Memory",
            "on a GPU the peak of what torch's allocator gave out; on a CPU the largest resident set minus that of the "
            "same process after a step of a tiny network. Compiled cells include what the compiler needs",
        )
    if report.accuracy is not None:
        data, train = report.accuracy.data, report.accuracy.recipe["train"]
        yield "Data", f"{data.name}, {data.split} split, {data.images} images, fingerprint {data.fingerprint}"
        model = ", ".join(f"{name} {value}" for name, value in report.accuracy.recipe["model"].items())
        yield "Training", f"{model}; {train['epochs']} epochs of batch {train['batch_size']}"
    yield "Chosen precision", f"{report.precision}: {report.reason}"
    yield "Device", report.device
    yield from machine_facts(report.machine)


def _step(workload: Workload) -> str:
    return (
        f"UNet-{workload.base}, batch {workload.batch} of {workload.height}x{workload.width}, {workload.channels} "
        f"channels, {workload.classes} classes, by the code of compress train: forward, cross-entropy + Dice in "
        f"float32, backward, clipping, AdamW, averaged weights, with a gradient scaler for float16; on noise that is "
        f"already on the device, without loading or augmenting. {workload.steps} timed steps a cell, "
        f"{workload.cell_seconds:g} s at most"
    )
