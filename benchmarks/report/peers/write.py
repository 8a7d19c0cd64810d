"""The report on servers side by side as files, report.json and report.md, and what ours is held to."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.report.folder import MARKDOWN, write_report
from benchmarks.report.markdown import check_lines, closing_lines, escaped, joined, table_lines
from benchmarks.report.peers.results import PeerResult, PeersReport
from benchmarks.report.results import Verdict
from benchmarks.report.table import Table
from benchmarks.report.words import DASH, machine_facts, number, optional

DRIFT = 0.03
"""Two medians that differ by less may change places in the next run."""


def verdicts(report: PeersReport) -> tuple[Verdict, ...]:
    return tuple(_verdicts(report))


def _verdicts(report: PeersReport) -> Iterable[Verdict]:
    ours, *peers = report.servers
    if peers:
        best = max(peers, key=lambda peer: peer.capacity)
        yield Verdict(
            ok=ours.capacity >= (1 - DRIFT) * best.capacity,
            text=f"{ours.name} answers as many images a second as the best of the others, within {DRIFT:.0%}",
            detail=f"{number(ours.capacity)} against {number(best.capacity)} of {best.name}",
        )
        tails = {peer.name: tail for peer in peers if (tail := peer.opened.ms(99.0)) is not None}
        if tails:
            # A server that refuses most requests answers the few others fast: that is no tail to be held to.
            whole = {peer.name: tails[peer.name] for peer in peers if peer.name in tails and not peer.opened.errors}
            bound = min(whole.values(), default=float("inf"))
            own, errors = ours.opened.ms(99.0), sum(ours.opened.errors.values())
            yield Verdict(
                ok=own is not None and own <= (1 + DRIFT) * bound and not errors,
                text=f"its p99 in the open loop is as low as the best of the others', within {DRIFT:.0%}; no errors",
                detail=f"{optional(own)} ms and {errors} errors against {_best(whole)}",
            )
    yield behaves(report)


def behaves(report: PeersReport) -> Verdict:
    """The verdict on ours alone, whatever the others do."""
    ours = report.servers[0]
    bad = [f"{what}: {cell.text}" for what, cell in ours.behaviours.items() if not cell.good]
    return Verdict(
        ok=not bad,
        text=f"{ours.name} behaves in every hard case",
        detail="; ".join(bad) or f"{len(ours.behaviours)} cases",
    )


def _best(tails: Mapping[str, float]) -> str:
    if not tails:
        return "others that all had errors"
    name = min(tails, key=lambda peer: tails[peer])
    return f"{number(tails[name])} of {name}"


def speeds(report: PeersReport) -> Table:
    """A row for each server."""
    rows = tuple(
        (
            f"{server.name} {server.version}",
            number(server.capacity),
            *(optional(server.opened.ms(point)) for point in (50.0, 95.0, 99.0)),
            *(_by_turn(server, point) for point in (50.0, 99.0)),
            ", ".join(f"{count} x {kind}" for kind, count in server.opened.errors.items()) or "none",
        )
        for server in report.servers
    )
    caption = (
        f"{report.workers} runs at once in each; images/s: closed loop of {report.connections} connections, median of "
        f"{report.turns} turns; latency: open loop at {number(report.rate)} requests a second, all turns together; "
        "by turn: from the lowest turn to the highest"
    )
    headers = ("server", "images/s", "p50 ms", "p95 ms", "p99 ms", "p50 by turn", "p99 by turn", "errors")
    return Table(caption, headers, rows)


def _by_turn(server: PeerResult, point: float) -> str:
    found = [ms for turn in server.opened_turns if (ms := turn.ms(point)) is not None]
    return f"{number(min(found))} to {number(max(found))}" if found else DASH


def behaviours(report: PeersReport) -> Table:
    """A row for each hard case, a column for each server."""
    cases = report.servers[0].behaviours
    rows = tuple(
        (case, *(_cell(server.behaviours[case].good, server.behaviours[case].text) for server in report.servers))
        for case in cases
    )
    return Table("Hard cases; NO: not what a server should do", ("case", *(s.name for s in report.servers)), rows)


def _cell(good: bool, text: str) -> str:
    return text if good else f"NO: {text}"


def write(report: PeersReport, out: Path) -> None:
    """Write `report` into the folder `out`."""
    write_report(out, report, {MARKDOWN: joined(_lines(report))})


def _lines(report: PeersReport) -> Iterable[str]:
    yield from (f"# {escaped(report.title)}", "")
    yield from table_lines(speeds(report))
    yield from check_lines(report.verdicts)
    yield from ("## Hard cases", "", *table_lines(behaviours(report)))
    if report.failures:
        yield from ("## What could not be measured", "", *(f"- {escaped(line)}" for line in report.failures), "")
    sent = report.requests
    facts = (
        ("Date", report.date),
        (
            "Requests",
            f"{sent.media_type} of {sent.height}x{sent.width}, {number(sent.mean_bytes / 1024)} KiB on average, "
            f"{sent.source}; the mask comes back as PNG; over loopback, on kept connections; in the form that each "
            "server takes: bytes, an HTML form, or base64 in JSON",
        ),
        (
            "Runs",
            f"in {report.turns} turns, all servers running and their order changing from turn to turn: "
            f"{report.seconds:g} s each at saturation, {report.seconds / report.turns:.3g} s each in the open loop; "
            f"one model.onnx, of {report.bundle}, one thread a run, no batching; latency from when a request was due",
        ),
        *machine_facts(report.machine),
    )
    yield from closing_lines(report, facts)
