"""From the runtime's profile to a row for each node, and for each operator."""

from collections.abc import Sequence
from statistics import median

from benchmarks.ops.graph import DEQUANTIZE, QUANTIZE, RunNode, Written
from benchmarks.report.ops.results import Kind, NodeTime, OperatorTime
from export.errors import WorkFailedError
from export.profiling import Kernel

_FLOATS = ("float", "float16", "bfloat16", "double")
"""As the runtime calls them in its profile."""


def node_times(
    nodes: Sequence[RunNode], written: Written, profiles: Sequence[Sequence[Kernel]], batch: int
) -> tuple[NodeTime, ...]:
    """The times of `nodes`, the runtime's graph for `written`, over the runs in `profiles`.

    Raises WorkFailedError for a node that is in no profile.
    """
    kernels = {kernel.name: kernel for kernel in profiles[0]}
    if unseen := [node.name for node in nodes if node.name not in kernels]:
        raise WorkFailedError(
            f"the runtime's profile lacks {', '.join(unseen)}: this bundle cannot be measured by operator here"
        )
    # Whatever else is in a profile runs within one of these nodes, as the branches of an If do.
    runs = [{kernel.name: kernel.microseconds / 1e3 for kernel in profile} for profile in profiles]
    samples = {node.name: tuple(run[node.name] for run in runs) for node in nodes}
    medians = {name: median(taken) for name, taken in samples.items()}
    together = sum(medians.values())
    in_float = _float_nodes(nodes, kernels)

    def row(node: RunNode) -> NodeTime:
        origin = written.origin(node)
        macs = written.macs(origin) if node.is_convolution else None
        macs = None if macs is None else macs * batch
        return NodeTime(
            name=node.name,
            layer=None if origin is None else written.layer(origin),
            op=node.op,
            output=kernels[node.name].shape,
            kind="float" if node.name in in_float else "integer",
            milliseconds=medians[node.name],
            share=_ratio(medians[node.name], together),
            macs=macs,
            gmacs_per_s=speed(macs, medians[node.name]),
            samples_ms=samples[node.name],
        )

    return tuple(map(row, nodes))


def by_operator(times: Sequence[NodeTime]) -> tuple[OperatorTime, ...]:
    """Sums by operator, the slowest first; one that runs partly in integers and partly in float has two rows."""
    groups: dict[tuple[str, Kind], list[NodeTime]] = {}
    for time in times:
        groups.setdefault((time.op, time.kind), []).append(time)
    rows = []
    for (op, kind), members in groups.items():
        milliseconds = sum(time.milliseconds for time in members)
        counted = [time.macs for time in members if time.macs is not None]
        macs = sum(counted) if counted else None
        rows.append(
            OperatorTime(
                op=op,
                kind=kind,
                nodes=len(members),
                milliseconds=milliseconds,
                share=sum(time.share for time in members),
                macs=macs,
                gmacs_per_s=speed(macs, milliseconds),
            )
        )
    return tuple(sorted(rows, key=lambda row: -row.milliseconds))


def speed(macs: int | None, milliseconds: float) -> float | None:
    """Thousands of millions of multiply-accumulates a second; None without any, or without a time."""
    return macs / milliseconds / 1e6 if macs and milliseconds else None


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _float_nodes(nodes: Sequence[RunNode], kernels: dict[str, Kernel]) -> frozenset[str]:
    """Names of nodes that read or write a float tensor of two dimensions or more, unlike arithmetic on sizes."""
    maps: set[str] = set()
    found = set()
    for node in nodes:
        kernel = kernels[node.name]
        if kernel.dtype in _FLOATS and len(kernel.shape) > 1:
            maps.update(node.outputs)
        if node.op in (QUANTIZE, DEQUANTIZE) or not maps.isdisjoint((*node.inputs, *node.outputs)):
            found.add(node.name)
    return frozenset(found)
