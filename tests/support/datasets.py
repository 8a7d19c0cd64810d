"""Small dataset folders for tests, made from a seed: discs on noise, easy enough for a tiny UNet to learn in seconds.

write_dataset(tmp_path / "discs", counts={"train": 8, "val": 4, "test": 4})
write_dataset(tmp_path / "heap", counts=40)                       # one heap, split by the hash of the names
write_dataset(tmp_path / "mixed", counts={...}, size=[(64, 64), (48, 80)], channels=3)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from export.bands import lossless_format
from export.files import write_json
from export.images import U8, encode_image, encode_mask

DEFAULT_COUNTS = {"train": 8, "val": 4, "test": 4}

Size = tuple[int, int]


def write_dataset(
    path: Path,
    *,
    counts: Mapping[str, int] | int = DEFAULT_COUNTS,
    size: Size | Sequence[Size] = (64, 64),
    classes: Sequence[str] = ("background", "disc"),
    channels: int = 1,
    seed: int = 0,
    table: Mapping[str, Any] | None = None,
) -> Path:
    """Write a sound dataset folder and return `path`.

    `counts` is the number of images in each split, or a single number for one heap without splits. `size` is (height,
    width), or several that images take in turn. Class 0 is the background, every other class a disc with a brightness
    of its own, which differs between channels; each class occurs in every image. `table` adds keys to classes.json.
    """
    sizes = [cast(Size, size)] if isinstance(size[0], int) else list(cast(Sequence[Size], size))
    rng = np.random.default_rng(seed)
    folders = {path: counts} if isinstance(counts, int) else {path / split: count for split, count in counts.items()}
    number, suffix = 0, lossless_format(channels).lower()
    for folder, count in folders.items():
        for part in ("images", "masks"):
            (folder / part).mkdir(parents=True)
        for _ in range(count):
            image, mask = discs(rng, sizes[number % len(sizes)], len(classes), channels)
            (folder / "images" / f"{number:04d}.{suffix}").write_bytes(encode_image(image))
            (folder / "masks" / f"{number:04d}.png").write_bytes(encode_mask(mask))
            number += 1
    write_json(path / "classes.json", {"classes": list(classes), "ignore_index": None, **(table or {})})
    return path


def discs(rng: np.random.Generator, size: Size, classes: int, channels: int) -> tuple[U8, U8]:
    """One image HWC and its mask HW."""
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    mask = np.zeros(size, dtype=np.uint8)
    for index in range(1, classes):
        # Each class has its own strip, so that none hides another.
        strip = width / (classes - 1)
        radius = rng.uniform(0.2, 0.35) * min(height, strip)
        centre = rng.uniform(0.3, 0.7) * height, (index - 1 + rng.uniform(0.4, 0.6)) * strip
        mask[np.hypot(rows - centre[0], columns - centre[1]) <= radius] = index
    shades = np.linspace(60, 200, classes)
    levels = np.stack([np.roll(shades, shift) for shift in range(channels)], axis=1)
    noisy = levels[mask] + rng.normal(0, 20, (height, width, channels))
    return noisy.clip(0, 255).astype(np.uint8), mask
