"""`compress export`"""

from pathlib import Path
from typing import Annotated

import typer

from compress.cli.common import (
    JsonOption,
    NameOption,
    OutOption,
    RecipeOption,
    SetOption,
    VersionOption,
    emit,
    recipe_of,
)
from export.errors import require


def command(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="Checkpoint folder.")],
    out: OutOption,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Dataset for the parity check, golden inputs and accuracy."),
    ] = None,
    outputs: Annotated[
        str | None, typer.Option("--outputs", help="Outputs of the graph: mask (default), logits or both.")
    ] = None,
    name: NameOption = None,
    version: VersionOption = None,
    golden: Annotated[
        str | None,
        typer.Option("--golden", help="Source of the golden inputs: calibration (default) or synthetic."),
    ] = None,
    recipe: RecipeOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Export a checkpoint as a float ONNX bundle, proven to give the same answers as torch."""
    require("torch", extra="train", purpose="compress export")
    from compress.export_fp32 import export

    chosen = recipe_of(
        recipe,
        settings,
        export__outputs=outputs,
        export__name=name,
        export__version=version,
        export__golden=golden,
    )
    bundle = export(checkpoint, out, chosen, data=data)
    manifest = bundle.manifest
    result = {
        "name": manifest.name,
        "version": manifest.version,
        "digest": manifest.digest,
        "size_bytes": bundle.size_bytes,
        "params": manifest.params,
        "macs": manifest.macs,
        "miou": manifest.accuracy.miou if manifest.accuracy else None,
    }
    scored = f", mIoU {manifest.accuracy.miou:.4f} on the validation split" if manifest.accuracy else ""
    emit(
        result,
        f"{out}: {manifest.params / 1e6:.2f} M parameters, {bundle.size_bytes / 1e6:.2f} MB{scored}; "
        "parity with torch holds",
        as_json=as_json,
    )
