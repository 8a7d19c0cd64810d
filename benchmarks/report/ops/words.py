"""Sentences, spelt alike in every form of the report."""

from collections.abc import Iterable

from benchmarks.report.ops.results import BundleOps, FloatNode, OpsReport
from benchmarks.report.words import machine_facts, number, percent, threads


def headline(bundle: BundleOps) -> str:
    """Where the time goes, in one sentence."""
    first = bundle.operators[0]
    parts = [f"{bundle.name} takes {number(bundle.whole_ms.p50)} ms, {percent(first.share)} of it in {first.op}"]
    if bundle.convolutions_gmacs_per_s is not None:
        peak = bundle.convolutions_of_peak
        of_peak = "" if peak is None else f", {percent(peak)} of what this machine can do"
        parts.append(f"its convolutions run at {number(bundle.convolutions_gmacs_per_s)} GMAC/s{of_peak}")
    return f"{'; '.join(parts)}."


def in_float(bundle: BundleOps) -> str:
    """How much runs in float, in one sentence."""
    if bundle.precision == "fp32":
        return f"{bundle.name} is a float bundle: all of it runs in float, as it should."
    if not bundle.floats:
        return f"Nothing in {bundle.name} runs in float."
    count = len(bundle.floats)
    share = sum(node.share for node in bundle.floats)
    return f"Of the {len(bundle.nodes)} nodes of {bundle.name}, {count} run in float, for {share:.1%} of the time:"


def float_lines(bundle: BundleOps) -> Iterable[str]:
    """A line for each node in float, with the reason; then the layers that the manifest wrongly says run in float."""
    yield from map(_float_line, bundle.floats)
    for layer in bundle.not_in_float:
        yield f"{layer}: the manifest says that it was left in float, but nothing of that name runs in float here"


def circumstances(report: OpsReport) -> Iterable[tuple[str, str]]:
    """The conditions of the measurement."""
    yield "Date", report.date
    yield (
        "Time",
        f"through ONNX Runtime, {threads(report.threads)}, batch {report.batch}, {report.height}x{report.width}, "
        f"spinning off, on noise; medians of {report.runs} runs with the profiler and as many without it, in turns",
    )
    yield (
        "Nodes",
        "of the graph as it is optimised for serving; float: it reads or writes a float tensor, scales and weights "
        "aside; multiply-accumulates: of convolutions, as model.onnx has them",
    )
    if report.peaks:
        yield (
            "Peak",
            "products of large square matrices through the same runtime, in the same turns, the fastest of all",
        )
    yield "Bundles", ", ".join(f"{bundle.name} from {bundle.bundle}" for bundle in report.bundles)
    yield from machine_facts(report.machine)


def _float_line(node: FloatNode) -> str:
    told = " (from the manifest)" if node.told_by == "manifest" else ""
    figures = f"{node.op}, {number(node.milliseconds)} ms, {node.share:.1%}"
    return f"{node.layer or node.node} ({figures}): {node.reason}{told}"
