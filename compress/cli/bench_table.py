"""`compress bench table`"""

import time
from pathlib import Path
from typing import Annotated

import typer

from compress.cli.common import JsonOption, ThreadsOption, emit, parse_size, require_outside_bundles
from export.bundle import load
from export.errors import UsageError, require
from export.images import padded_size
from export.manifest import Precision


def command(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Float bundle of the dense network.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Table to write, or to continue.")],
    size: Annotated[
        str | None, typer.Option("--size", metavar="HxW", help="Image size; default: that of the bundle.")
    ] = None,
    precision: Annotated[Precision, typer.Option("--precision", help="Precision that will be served.")] = "fp32",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time the layers of a network at all widths it may be cut to, on the machine that will serve; needs no torch.

    From this table, pruning predicts the latency of any choice of widths. If it is interrupted, the same command
    continues.
    """
    require("onnx", extra="bench", purpose="compress bench table")
    require_outside_bundles(out)
    from compress.progress import counter
    from export.latency.dense import measure_dense

    source = load(bundle)
    wanted = parse_size(size) or source.manifest.own_size
    if wanted is None:
        raise UsageError(f"{source.path} does not state its image size; give --size HxW")
    padded = padded_size(*wanted, source.manifest.size_multiple)
    started = time.monotonic()
    with counter("measuring layers") as progress:
        table = measure_dense(source, out, size=padded, precision=precision, threads=threads, progress=progress)
    seconds = time.monotonic() - started
    result = {
        "path": str(out),
        "entries": len(table),
        "seconds": round(seconds, 1),
        "reference_ms": table.reference_ms,
        "precision": table.precision,
        "threads": table.threads,
        "size": list(padded),
    }
    emit(
        result,
        f"{out}: {len(table)} layers in {table.precision} with {table.threads} threads, {seconds:.0f} s; "
        f"the reference convolution takes {table.reference_ms:.2f} ms",
        as_json=as_json,
    )
