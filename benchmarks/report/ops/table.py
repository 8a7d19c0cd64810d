"""The report's tables, for terminal, Markdown and HTML alike."""

from benchmarks.report.ops.results import BundleOps, Kind, NodeTime, OperatorTime, OpsReport, Peak
from benchmarks.report.table import Table
from benchmarks.report.words import DASH, millions, number, optional, percent, threads


def summary(report: OpsReport) -> Table:
    """A row for each bundle."""
    headers = (
        "bundle",
        "ms",
        "profiled ms",
        "nodes ms",
        "MMACs",
        "conv ms",
        "conv GMAC/s",
        "of peak",
        "all GMAC/s",
        "all of peak",
    )

    def row(bundle: BundleOps) -> tuple[str, ...]:
        return (
            bundle.name,
            number(bundle.whole_ms.p50),
            number(bundle.profiled_ms),
            number(bundle.nodes_ms),
            millions(bundle.macs),
            number(bundle.convolutions_ms),
            optional(bundle.convolutions_gmacs_per_s),
            _share(bundle.convolutions_of_peak),
            optional(bundle.graph_gmacs_per_s),
            _share(bundle.graph_of_peak),
        )

    size = f"{report.height}x{report.width}"
    caption = (
        f"{threads(report.threads)}, batch {report.batch}, {size}. ms: whole runs, the bundles in turns; "
        "profiled ms: with the profiler, several of one bundle in a row; nodes ms: the medians of the nodes, summed; "
        "conv: convolutions alone; all: their multiply-accumulates over ms; of peak: share of this machine's measured "
        "peak"
    )
    return Table(caption, headers, tuple(map(row, report.bundles)))


def operators(report: OpsReport) -> Table:
    """A row for each operator, the slowest of all bundles first."""
    found = [{(row.op, row.kind): row for row in bundle.operators} for bundle in report.bundles]
    slowest: dict[tuple[str, Kind], float] = {}
    for rows in found:
        for key, row in rows.items():
            slowest[key] = max(row.milliseconds, slowest.get(key, 0.0))
    several = len(found) > 1
    heads = ("ms", "share") if several else ("nodes", "ms", "share")
    headers = [f"{bundle.name} {head}" if several else head for bundle in report.bundles for head in heads]

    def cells(row: OperatorTime | None) -> tuple[str, ...]:
        figures = (DASH,) * 3 if row is None else (str(row.nodes), number(row.milliseconds), f"{row.share:.1%}")
        return figures[-len(heads) :]

    table = tuple(
        (*key, *(cell for rows in found for cell in cells(rows.get(key))))
        for key in sorted(slowest, key=lambda key: -slowest[key])
    )
    return Table("Nodes summed by operator; share: of the sum over all nodes", ("operator", "in", *headers), table)


def nodes(bundle: BundleOps) -> Table:
    """A row for each node, in the order in which they run."""
    headers = ("layer", "operator", "in", "output", "ms", "share", "MMACs", "GMAC/s")

    def row(node: NodeTime) -> tuple[str, ...]:
        return (
            node.layer or f"({node.name})",
            node.op,
            node.kind,
            "x".join(map(str, node.output)),
            number(node.milliseconds),
            f"{node.share:.1%}",
            DASH if node.macs is None else millions(node.macs),
            optional(node.gmacs_per_s),
        )

    caption = (
        f"Nodes of {bundle.name} as the runtime runs them: medians of {len(bundle.nodes[0].samples_ms)} runs. In "
        "brackets: what the runtime added"
    )
    return Table(caption, headers, tuple(map(row, bundle.nodes)))


def peaks(report: OpsReport) -> Table | None:
    """How fast the machine multiplies at best; None where that was not measured."""
    if not report.peaks:
        return None
    sides = [point.side for point in report.peaks[0].points]

    def row(peak: Peak) -> tuple[str, ...]:
        return (
            f"{peak.op}, {'u8 by s8' if peak.precision == 'int8' else 'float'}",
            *(number(point.gmacs_per_s) for point in peak.points),
            number(peak.gmacs_per_s),
        )

    caption = (
        f"GMAC/s of products of square matrices through the same runtime in the same run, {threads(report.threads)}"
    )
    headers = ("product", *(f"{side} cubed" for side in sides), "peak")
    return Table(caption, headers, tuple(map(row, report.peaks)))


def _share(share: float | None) -> str:
    return DASH if share is None else percent(share)
