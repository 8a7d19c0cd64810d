"""Sentences as every form of the report spells them."""

from collections.abc import Iterable

from benchmarks.report.load.results import LoadReport
from benchmarks.report.words import machine_facts, number, percent


def headline(report: LoadReport) -> str:
    """What it bears, in one sentence."""
    parts = [f"{report.target} answers {number(report.capacity)} images a second"]
    if report.ceiling is not None:
        parts.append(
            f"{percent(report.ceiling.kept)} of what the same work gives without HTTP; "
            f"HTTP adds {number(report.ceiling.added_ms)} ms to one image"
        )
    return f"{', '.join(parts)}."


def conditions(report: LoadReport) -> str:
    """What the aims are met or missed with: what HTTP costs shows more the faster the model is."""
    sent = report.requests
    model_ms = None if report.ceiling is None else report.ceiling.model_ms
    own = "" if model_ms is None else f"; the model's own run takes {number(model_ms)} ms"
    return f"{sent.media_type} of {sent.height}x{sent.width} in, PNG out{own}"


def circumstances(report: LoadReport) -> Iterable[tuple[str, str]]:
    """What the figures belong to."""
    sent = report.requests
    yield "Date", report.date
    yield (
        "Requests",
        f"{sent.media_type} of {sent.height}x{sent.width}, {number(sent.mean_bytes / 1024)} KiB on average, "
        f"{sent.source}; answered with PNG masks; over loopback, on kept connections",
    )
    yield (
        "Runs",
        f"of {report.seconds:g} s each; closed: every connection sends its next request when it has its answer; open: "
        "Poisson arrivals, sent when they are due, latency from then on",
    )
    if report.ceiling is not None and report.ceiling.model_ms is not None:
        yield (
            "Model",
            f"{number(report.ceiling.model_ms)} ms for one of these images, median of runs one after the other without "
            "HTTP",
        )
    if report.settings:
        yield "Server", ", ".join(f"{name} = {value}" for name, value in report.settings.items())
    yield from machine_facts(report.machine)
