"""`compress predict`"""

from pathlib import Path
from typing import Annotated

import typer

from compress.cli.common import (
    JsonOption,
    MirrorOption,
    OutOption,
    ThreadsOption,
    WindowOption,
    emit,
    parse_size,
    require_outside_bundles,
)


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Checkpoint or bundle.")],
    images: Annotated[Path, typer.Option("--images", metavar="DIR", help="Folder of images, or one image.")],
    out: OutOption,
    threads: ThreadsOption = None,
    mirror: MirrorOption = False,
    window: WindowOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a mask (class indices, PNG) and an overlay for every image of a folder."""
    from compress.predict import predict
    from export.refine import Refinement

    require_outside_bundles(out)
    written = predict(model, images, out, threads=threads, refine=Refinement(mirror, parse_size(window)))
    emit(
        {
            "images": len(written),
            "masks": [str(p.mask) for p in written],
            "overlays": [str(p.overlay) for p in written],
        },
        f"{len(written)} masks in {out / 'masks'}, overlays in {out / 'overlays'}",
        as_json=as_json,
    )
