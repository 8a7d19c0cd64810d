"""`compress predict`: a folder of images becomes masks and overlays."""

from dataclasses import dataclass
from pathlib import Path

from compress.anymodel import ONE_LOOK, AnyModel, load_model
from compress.progress import task
from export.errors import ImageError, UsageError
from export.files import make_folder, write_atomic
from export.images import SUFFIXES, decode, encode_image, encode_mask
from export.overlay import overlay
from export.refine import Refinement


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

    Raises UsageError before anything is written: for files that are not images or lack the bands that the model takes
    (all are named), and where hand-drawn masks, or the images themselves, would be replaced.
    """
    _require_nothing_lost(images, out)
    model = load_model(path, threads=threads, refine=refine)
    sources = _sources(images, model.channels)
    _require_own_masks(sources, out)
    for folder in ("masks", "overlays"):
        make_folder(out / folder)
    written = []
    with task("predict", len(sources)) as bar:
        for source in sources:
            written.append(_predict_one(model, source, out))
            bar.advance()
    return written


def _require_nothing_lost(images: Path, out: Path) -> None:
    if (out / "images").exists() or (out / "classes.json").exists():
        raise UsageError(f"{out} is a dataset, whose masks the predictions would replace; give another --out")
    read = (images.parent if images.is_file() else images).resolve()
    for folder in (out / "masks", out / "overlays"):
        if read == folder.resolve():
            raise UsageError(f"{images} lies where predictions are written ({folder}); give another --out")


def _require_own_masks(sources: list[Path], out: Path) -> None:
    """Raises UsageError for masks without the overlay that a prediction has: others drew them."""
    names = [f"{source.stem}.png" for source in sources]
    drawn = [name for name in names if (out / "masks" / name).exists() and not (out / "overlays" / name).exists()]
    if drawn:
        more = f" (and {len(drawn) - 1} more)" if len(drawn) > 1 else ""
        raise UsageError(
            f"{out / 'masks' / drawn[0]}{more} would be replaced, and has no overlay, as a prediction has: it may have "
            "been drawn by hand; move it away, or give another --out"
        )


def _predict_one(model: AnyModel, source: Path, out: Path) -> Prediction:
    image = decode(source, model.channels)
    mask = model.segment(image)
    paths = Prediction(source, out / "masks" / f"{source.stem}.png", out / "overlays" / f"{source.stem}.png")
    # The overlay first: so a mask of ours always has one, whenever this is interrupted.
    write_atomic(paths.overlay, encode_image(overlay(image, mask, model.colours)))
    write_atomic(paths.mask, encode_mask(mask))
    return paths


def _sources(images: Path, channels: int) -> list[Path]:
    if not images.exists():
        raise UsageError(f"{images}: no such file or folder")
    # Hidden files are passed over, as they are in a dataset.
    found = (
        [images]
        if images.is_file()
        else sorted(p for p in images.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    )
    if not found:
        raise UsageError(f"{images} holds no image ({', '.join(sorted(SUFFIXES))})")
    problems = []
    stems: dict[str, Path] = {}
    for path in found:
        try:
            decode(path, channels)  # all of it: the header does not show that a file is cut short
        except ImageError as error:
            problems.append(str(error))
        if path.stem in stems:
            problems.append(f"{path.name} and {stems[path.stem].name} would be written to the same {path.stem}.png")
        stems[path.stem] = path
    if problems:
        raise UsageError(f"{images}: nothing was written:" + "".join(f"\n  - {problem}" for problem in problems))
    return found
