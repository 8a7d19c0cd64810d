"""A soak's report as files, report.json, report.md and the PNG that it shows, and what the server is held to."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.report.folder import MARKDOWN, write_report
from benchmarks.report.load.growth import SETTLED, ratio, slope
from benchmarks.report.load.results import SoakReport, is_accepted
from benchmarks.report.markdown import check_lines, closing_lines, escaped, joined, picture_lines, table_lines
from benchmarks.report.plots import Plot, colour_of, drawn, pictures, plot
from benchmarks.report.results import Verdict
from benchmarks.report.table import Table
from benchmarks.report.words import machine_facts, number, optional, percent, times

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_RATIO = 1.3
MAX_GROWTH = 0.02
"""Share of the resident memory by which a soak may grow after it has settled."""
MIN_ANSWERED = 0.99
"""Share of the good requests that must be answered 200, up to LOAD of the capacity."""
LOAD = 0.8
REFUSED = "429"
"""What any client may get before the server looks at what it sent."""


def verdicts(report: SoakReport) -> tuple[Verdict, ...]:
    return tuple(_verdicts(report))


def _verdicts(report: SoakReport) -> Iterable[Verdict]:
    client = report.client
    # On a machine with other tenants the capacity of the first seconds may not last: that explains a few refusals, but
    # many mean that the server takes less load than it should. Beyond LOAD, refusing is its duty.
    asked = MIN_ANSWERED if report.load <= LOAD else 0.0
    told = f"at least {percent(asked)} of them with 200, the rest with" if asked else "with 200, or with"
    yield Verdict(
        ok=client.errors.keys() <= {REFUSED} and client.ok > 0 and client.ok >= asked * client.sent,
        text=f"every good request was answered: {told} 429 where it would have waited too long",
        detail=f"{client.ok} of {client.sent}"
        + "".join(f", {count} x {kind}" for kind, count in client.errors.items()),
    )
    broken = {code: count for code, count in report.answers.items() if code.startswith("5")}
    yield Verdict(
        ok=not broken,
        text="no answer was a 5xx",
        detail=", ".join(f"{count} x {code}" for code, count in (broken or report.answers).items()),
    )
    odd = [
        f"{traffic.kind}: {count} x {outcome}"
        for traffic in report.hostile
        for outcome, count in traffic.outcomes.items()
        if not is_accepted(outcome, {*traffic.accepted, REFUSED})
    ]
    if report.hostile:
        met = sum(sum(traffic.outcomes.values()) for traffic in report.hostile)
        yield Verdict(
            ok=not odd,
            text="hostile clients were handled as they should be",
            detail=", ".join(odd) or f"{met} clients of {len(report.hostile)} kinds",
        )
    settled = report.samples[round(SETTLED * len(report.samples)) :]
    found = slope(report.samples)
    if found is not None:
        hours = (settled[-1].seconds - settled[0].seconds) / 3600
        grown = found.per_hour * hours / settled[0].resident_mib
        yield Verdict(
            ok=grown < MAX_GROWTH,
            text=f"memory grows by less than {percent(MAX_GROWTH)} once it has settled",
            detail=f"{number(found.per_hour)} ± {number(found.error)} MiB an hour, {grown:.2%} of "
            f"{number(settled[0].resident_mib)} MiB",
        )
        middle = len(settled) // 2
        earlier, later = settled[:middle], settled[middle:]
        # The median: a connection is counted at its two ends in turn, and may open or close in between.
        for what, first, last in (
            (
                "file descriptors beside those of open connections",
                median(s.own_descriptors for s in earlier),
                median(s.own_descriptors for s in later),
            ),
            ("threads", median(s.threads for s in earlier), median(s.threads for s in later)),
        ):
            yield Verdict(
                ok=last <= first,
                text=f"the number of {what} does not grow",
                detail=f"median {first:g} in the first half, {last:g} in the second",
            )
    growth = ratio(report)
    if growth is not None:
        yield Verdict(
            ok=growth <= MAX_RATIO,
            text=f"memory after 5,000 sizes is within {times(MAX_RATIO)} of that after 500",
            detail=times(growth),
        )


def hostile_table(report: SoakReport) -> Table:
    """A row for each kind."""
    rows = tuple(
        (
            traffic.kind,
            str(sum(traffic.outcomes.values())),
            ", ".join(f"{count} x {outcome}" for outcome, count in traffic.outcomes.items()),
        )
        for traffic in report.hostile
    )
    return Table("Hostile clients and their outcomes", ("kind", "clients", "outcomes"), rows)


def headline(report: SoakReport) -> str:
    """The result in one sentence."""
    client = report.client
    last = report.samples[-1].resident_mib if report.samples else None
    return (
        f"{report.minutes:g} minutes at {percent(report.load)} of its capacity: {client.ok} of {client.sent} requests "
        f"answered, p99 {optional(client.ms(99.0))} ms, {optional(last)} MiB resident at the end."
    )


def write(report: SoakReport, out: Path) -> None:
    """Write `report` into the folder `out`; without matplotlib there is no picture."""
    plots = drawn(_draw, report)
    files = {MARKDOWN: joined(_lines(report, plots)), **pictures(plots)}
    write_report(out, report, files, may_be_stale=("memory.png",))


def _draw(report: SoakReport) -> tuple[Plot, ...]:
    if not report.samples:
        return ()

    def paint(axes: "Axes") -> None:
        minutes = [sample.seconds / 60 for sample in report.samples]
        axes.plot(minutes, [sample.resident_mib for sample in report.samples], color=colour_of(0))
        axes.set_ylim(bottom=0)
        axes.grid(visible=True)
        axes.set_xlabel("minutes")
        axes.set_ylabel("resident MiB")

    memory = [sample.resident_mib for sample in report.samples]
    alt = f"Resident memory from {number(memory[0])} to {number(memory[-1])} MiB, at most {number(max(memory))} MiB."
    return (plot("memory", "Memory of the server", alt, paint),)


def _lines(report: SoakReport, plots: Sequence[Plot]) -> Iterable[str]:
    yield from (f"# {escaped(report.title)}", "", f"**{escaped(headline(report))}**", "")
    yield from check_lines(report.verdicts)
    if report.hostile:
        yield from ("## Hostile clients", "", *table_lines(hostile_table(report), caption=False))
    yield from picture_lines(plots)
    yield from closing_lines(report, _circumstances(report))


def _circumstances(report: SoakReport) -> Iterable[tuple[str, str]]:
    yield "Date", report.date
    yield (
        "Load",
        f"{number(report.rate)} requests a second, Poisson arrivals over loopback; every image has a random size, "
        f"{report.smallest} to {report.largest} pixels a side",
    )
    yield "Sampled", f"{len(report.samples)} times; memory must have settled after {percent(SETTLED)} of the time"
    yield from machine_facts(report.machine)
