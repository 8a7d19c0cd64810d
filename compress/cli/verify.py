"""`compress verify`"""

from pathlib import Path
from typing import Annotated

import typer

from compress.cli.common import JsonOption, ThreadsOption, emit


def command(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder.")],
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check everything a bundle claims: schema, hashes, signature, golden answers. Reports every problem at once."""
    from export.bundle import verify

    found = verify(bundle, threads=threads)
    worst = max(found.golden_differing.values(), default=0.0)
    lines = [
        f"{bundle}: sound; {len(found.bundle.manifest.files)} files, {len(found.golden_differing)} golden answers "
        f"(at most {worst:.3%} of the pixels differ)",
        *(f"warning: {warning}" for warning in found.warnings),
    ]
    emit(
        {
            "ok": True,
            "name": found.bundle.manifest.name,
            "digest": found.bundle.manifest.digest,
            "golden_differing": found.golden_differing,
            "warnings": list(found.warnings),
        },
        "\n".join(lines),
        as_json=as_json,
    )
