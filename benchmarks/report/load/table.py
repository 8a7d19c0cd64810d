"""The tables of a load report."""

from benchmarks.report.load.results import LoadReport, Run
from benchmarks.report.table import Table
from benchmarks.report.words import DASH, number, optional, percent

STAGES = ("queue", "decode", "preprocess", "inference", "postprocess", "encode", "request")


def runs(report: LoadReport) -> Table:
    """What the clients saw, a row for each run."""

    def row(run: Run) -> tuple[str, ...]:
        client, health = run.client, run.health
        errors = ", ".join(f"{count} x {kind}" for kind, count in client.errors.items())
        return (
            name(run),
            DASH if run.rate is None else number(run.rate),
            number(client.throughput),
            *(optional(client.ms(point)) for point in (50.0, 95.0, 99.0)),
            errors or "none",
            DASH if health is None else optional(health.p99_ms),
        )

    headers = (
        "run",
        "sent/s",
        "answered/s",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "errors",
        "health p99",
    )
    caption = "Latency from when a request was due to the end of its answer; loads are shares of the capacity"
    return Table(caption, headers, tuple(map(row, report.runs)))


def stages(report: LoadReport) -> Table | None:
    """The server's own view, a row for each run."""
    seen = [(run, run.server.stages_ms) for run in report.runs if run.server is not None]
    if not seen:
        return None
    rows = tuple((name(run), *(optional(means.get(stage)) for stage in STAGES)) for run, means in seen)
    return Table("Mean milliseconds of each stage, by the server's own metrics", ("run", *STAGES), rows)


def costs(report: LoadReport) -> Table:
    """What each side used of the machine, a row for each run."""

    def row(run: Run) -> tuple[str, ...]:
        server = run.server
        busy = (DASH, DASH) if server is None else (f"{server.cpu:.2f}", number(server.resident_mib))
        return name(run), f"{run.generator_cpu:.2f}", *busy

    headers = ("run", "cores busy: generator", "server", "server's resident MiB")
    return Table("Cores kept busy by the load generator and by the server", headers, tuple(map(row, report.runs)))


def ceiling(report: LoadReport) -> Table | None:
    """The same work without HTTP, a row for each turn."""
    found = report.ceiling
    if found is None:
        return None
    headers = ("turn", "images/s without", "over HTTP", "kept", "one image ms without", "over HTTP", "added ms")
    rows = tuple(
        (
            str(turn),
            number(rate.direct),
            number(rate.over_http),
            percent(rate.over_http / rate.direct),
            number(one.direct),
            number(one.over_http),
            number(one.over_http - one.direct),
        )
        for turn, (rate, one) in enumerate(zip(found.throughput, found.latency_ms, strict=True), start=1)
    )
    return Table(f"The same decode, run and encode in {found.workers} threads, without HTTP and over it", headers, rows)


def name(run: Run) -> str:
    """Such as `closed, 4 connections` or `open, 80%`."""
    if run.load is None:
        return f"closed, {run.connections} connection{'s' if run.connections != 1 else ''}"
    return f"open, {percent(run.load)}"
