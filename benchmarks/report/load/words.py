"""Sentences, spelt alike in every form of the report."""

from collections.abc import Iterable

from benchmarks.report.load.results import LoadReport
from benchmarks.report.words import machine_facts, number, percent


def headline(report: LoadReport) -> str:
    """How much load the server takes, in one sentence."""
    parts = [f"{report.target} answers {number(report.capacity)} images a second"]
    if report.ceiling is not None:
        parts.append(
            f"{percent(report.ceiling.kept)} of what the same work gives without HTTP; "
            f"HTTP adds {number(report.ceiling.added_ms)} ms to one image"
        )
    return f"{', '.join(parts)}."


def conditions(report: LoadReport) -> str:
    """What the goals are met or missed with: the faster the model, the more the cost of HTTP shows."""
    sent = report.requests
    model_ms = None if report.ceiling is None else report.ceiling.model_ms
    own = "" if model_ms is None else f"; the model's own run takes {number(model_ms)} ms"
    return f"{sent.media_type} of {sent.height}x{sent.width} in, PNG out{own}"


def circumstances(report: LoadReport) -> Iterable[tuple[str, str]]:
    """The conditions of the measurement."""
    sent = report.requests
    yield "Date", report.date
    yield (
        "Requests",
        f"{sent.media_type} of {sent.height}x{sent.width}, {number(sent.mean_bytes / 1024)} KiB on average, "
        f"{sent.source}; answered with PNG masks; over loopback, on kept connections",
    )
    yield (
        "Runs",
        f"of {report.seconds:g} s each; closed: every connection sends its next request once it has an answer; open: "
        "Poisson arrivals, sent when they are due, with latency counted from then",
    )
    if report.ceiling is not None and report.ceiling.model_ms is not None:
        yield (
            "Model",
            f"{number(report.ceiling.model_ms)} ms for one of these images, the median of single runs without HTTP",
        )
    if report.settings:
        yield "Server", ", ".join(f"{name} = {value}" for name, value in report.settings.items())
    yield from machine_facts(report.machine)
