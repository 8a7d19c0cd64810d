"""Some images side by side: image, truth, both masks, and where the masks differ.

H height, W width, C channels; arrays are uint8.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from export.bands import as_rgb
from export.errors import ShapeError
from export.images import U8, resize_image, resize_mask
from export.metrics import mean_iou
from export.scoring import VOID, Score

VOID_COLOUR = (120, 120, 120)
DIFFERENCES = (
    ("only the compressed model is right", (74, 144, 226)),
    ("only the reference is right", (226, 88, 34)),
    ("both are wrong, differently", (240, 200, 60)),
    ("truth is void: not counted", (235, 235, 235)),
)
"""What a coloured pixel of the last picture means."""

EVEN, WORST = "one of a few spread evenly over the split", "the image that lost most"

LARGEST_SIDE = 480
"""Pictures are scaled down to this for the page."""

CELL_WIDTH = 240
GAP = 8
HEADER_HEIGHT = 30


@dataclass(frozen=True)
class Row:
    """One image under both models."""

    name: str
    reason: str
    """Why this image was chosen."""
    image_HWC: U8
    truth_HW: U8
    reference_HW: U8
    compressed_HW: U8

    def __post_init__(self) -> None:
        shapes = {mask.shape for mask in (self.truth_HW, self.reference_HW, self.compressed_HW)}
        if shapes != {self.image_HWC.shape[:2]}:
            raise ShapeError(f"{self.name}: masks of {sorted(shapes)} for an image of {self.image_HWC.shape[:2]}")

    @property
    def differing(self) -> float:
        """Share of all pixels on which the two models differ."""
        return float(np.mean(self.reference_HW != self.compressed_HW))

    def shrunk(self, largest_side: int = LARGEST_SIDE) -> "Row":
        """No side longer than `largest_side`."""
        height, width = self.image_HWC.shape[:2]
        scale = min(1.0, largest_side / max(height, width))
        return self.resized((max(1, round(height * scale)), max(1, round(width * scale))))

    def resized(self, size: tuple[int, int]) -> "Row":
        """All pictures at (height, width); masks keep their classes."""
        masks = (resize_mask(m, size) for m in (self.truth_HW, self.reference_HW, self.compressed_HW))
        return Row(self.name, self.reason, resize_image(self.image_HWC, size), *masks)


@dataclass(frozen=True)
class Strip:
    """Rows of pictures under the headings of `columns`."""

    rows: tuple[Row, ...]
    classes: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    """RGB of each class."""
    reference: str
    compressed: str

    @property
    def columns(self) -> tuple[str, ...]:
        return ("image", "truth", self.reference, self.compressed, "where they differ")

    def pictures(self, row: Row) -> tuple[U8, ...]:
        """RGB HWC of each column."""
        palette = np.full((256, 3), VOID_COLOUR, dtype=np.uint8)
        palette[: len(self.colours)] = self.colours
        masks = (row.truth_HW, row.reference_HW, row.compressed_HW)
        return (as_rgb(row.image_HWC), *(palette[mask] for mask in masks), _differences(row))

    def montage(self) -> U8:
        """All of it as one RGB picture on white, cells `CELL_WIDTH` wide under a line of headings."""
        rows = [row.resized(_cell_size(row.image_HWC)) for row in self.rows]
        heights = [row.image_HWC.shape[0] for row in rows]
        width = len(self.columns) * (CELL_WIDTH + GAP) + GAP
        height = HEADER_HEIGHT + sum(heights) + GAP * len(rows)
        canvas = Image.new("RGB", (width, height), "white")
        draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=15)
        lefts = [GAP + index * (CELL_WIDTH + GAP) for index in range(len(self.columns))]
        for left, heading in zip(lefts, self.columns, strict=True):
            draw.text((left, 7), heading, fill=(26, 29, 33), font=font)
        top = HEADER_HEIGHT
        for row in rows:
            for left, picture in zip(lefts, self.pictures(row), strict=True):
                canvas.paste(Image.fromarray(picture), (left, top))
            top += row.image_HWC.shape[0] + GAP
        return np.asarray(canvas, dtype=np.uint8)


def choose(reference: Score, compressed: Score, *, count: int = 4) -> tuple[tuple[str, str], ...]:
    """(image, why) for `count` images: some spread evenly over the split, so that none is picked by its looks, and the
    one that lost most. Fewer where the split has fewer."""
    # NaN where all of an image is void: nothing is lost there.
    drops = np.nan_to_num(mean_iou(reference.counts) - mean_iou(compressed.counts))
    names = reference.images
    chosen: dict[str, str] = {}
    if len(names) > 1 and drops.max() > 0:
        chosen[names[int(drops.argmax())]] = WORST
    even = max(count - len(chosen), 0)
    spread = np.linspace(0, len(names) - 1, even + 2)[1:-1] if len(names) > even else np.arange(len(names))
    for position in spread:
        chosen.setdefault(names[int(position)], EVEN)
    return tuple(sorted(chosen.items(), key=lambda item: item[1] == WORST))


def strip_of(
    picks: Sequence[tuple[str, str]],
    load: Callable[[str], tuple[U8, U8]],
    models: Sequence[tuple[str, Callable[[U8], U8]]],
    *,
    classes: tuple[str, ...],
    colours: tuple[tuple[int, int, int], ...],
) -> Strip:
    """Run (name, image HWC -> mask HW) of the reference and the compressed model over `picks`.

    `load` gives the image HWC and the truth HW of a name.
    """
    (reference, segment_reference), (compressed, segment_compressed) = models
    rows = []
    for name, reason in picks:
        image, truth = load(name)
        rows.append(Row(name, reason, image, truth, segment_reference(image), segment_compressed(image)))
    return Strip(tuple(rows), classes, colours, reference, compressed)


def _differences(row: Row) -> U8:
    """A dim image with the differing pixels in the colours of `DIFFERENCES`."""
    dim = (as_rgb(row.image_HWC).mean(axis=2, keepdims=True) * 0.4).astype(np.uint8)
    picture = np.repeat(dim, 3, axis=2)
    differ = row.reference_HW != row.compressed_HW
    void = row.truth_HW == VOID
    compressed_right = row.compressed_HW == row.truth_HW
    reference_right = row.reference_HW == row.truth_HW
    both_wrong = ~compressed_right & ~reference_right & ~void
    for (_, colour), where in zip(DIFFERENCES, (compressed_right, reference_right, both_wrong, void), strict=True):
        picture[differ & where] = colour
    return picture


def _cell_size(image_HWC: U8) -> tuple[int, int]:
    height, width = image_HWC.shape[:2]
    return max(1, round(height * CELL_WIDTH / width)), CELL_WIDTH
