"""`compress predict`: a folder of images becomes masks and overlays."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compress.anymodel import ONE_LOOK, AnyModel, load_model
from compress.progress import task
from export.bands import as_rgb
from export.errors import ImageError, UsageError
from export.files import make_folder, write_atomic
from export.images import SUFFIXES, U8, decode, encode_image, encode_mask
from export.refine import Refinement

OPACITY = 0.5


@dataclass(frozen=True)
class Prediction:
    """What was written for one image."""

    image: Path
    mask: Path
    overlay: Path


def predict(
    path: Path, images: Path, out: Path, *, threads: int | None = None, refine: Refinement = ONE_LOOK
) -> list[Prediction]:
    """Write `out/masks/NAME.png` (class indices) and `out/overlays/NAME.png` for every image of `images`.

    `path` is a checkpoint or a bundle; `images` a folder or a single file. Masks have the size of their image;
    `refine` says how each is looked at.

    Raises UsageError naming every file that is no image, or has not the bands that the model takes, before anything is
    written.
    """
    model = load_model(path, threads=threads, refine=refine)
    sources = _sources(images, model.channels)
    for folder in ("masks", "overlays"):
        make_folder(out / folder)
    written = []
    with task("predict", len(sources)) as bar:
        for source in sources:
            written.append(_predict_one(model, source, out))
            bar.advance()
    return written


def overlay(image_HWC: U8, mask_HW: U8, colours: Sequence[tuple[int, int, int]]) -> U8:
    """What people are shown of the image, with each class washed in its colour, RGB HWC."""
    rgb = as_rgb(image_HWC).astype(np.float32)
    painted: NDArray[np.float32] = np.asarray(colours, dtype=np.float32)[mask_HW]
    return np.asarray((1 - OPACITY) * rgb + OPACITY * painted, dtype=np.uint8)


def _predict_one(model: AnyModel, source: Path, out: Path) -> Prediction:
    image = decode(source, model.channels)
    mask = model.segment(image)
    paths = Prediction(source, out / "masks" / f"{source.stem}.png", out / "overlays" / f"{source.stem}.png")
    write_atomic(paths.mask, encode_mask(mask))
    write_atomic(paths.overlay, encode_image(overlay(image, mask, model.colours)))
    return paths


def _sources(images: Path, channels: int) -> list[Path]:
    if not images.exists():
        raise UsageError(f"{images}: no such file or folder")
    found = [images] if images.is_file() else sorted(p for p in images.iterdir() if p.suffix.lower() in SUFFIXES)
    if not found:
        raise UsageError(f"{images} holds no image ({', '.join(sorted(SUFFIXES))})")
    problems = []
    stems: dict[str, Path] = {}
    for path in found:
        try:
            decode(path, channels)  # all of it: that a file is cut short does not show in its header
        except ImageError as error:
            problems.append(str(error))
        if path.stem in stems:
            problems.append(f"{path.name} and {stems[path.stem].name} would be written to the same {path.stem}.png")
        stems[path.stem] = path
    if problems:
        raise UsageError(f"{images}: nothing was written:" + "".join(f"\n  - {problem}" for problem in problems))
    return found
