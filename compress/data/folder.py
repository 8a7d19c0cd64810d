"""A dataset folder, opened: its samples by split, its images and masks as arrays.

H height, W width, C channels; arrays are uint8.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from compress.data.classes import FILE, ClassTable
from compress.data.findings import shortened
from compress.data.layout import SPLITS, Layout, Sample, Split
from compress.data.masks import MaskReader
from export.errors import DatasetError
from export.files import sha256_file, sha256_json
from export.images import U8, decode, read_header
from export.manifest import Channels
from export.scoring import VOID

__all__ = ["VOID", "ChannelChoice", "ClassTable", "Dataset", "Sample", "Split", "open_dataset"]

ChannelChoice = Channels | Literal["auto"]
"""How a dataset's images are read; auto: as they are, grey or RGB."""


@dataclass(frozen=True)
class Dataset:
    """Images with masks in three splits. Nothing is decoded before it is needed."""

    path: Path
    table: ClassTable
    channels: Channels
    """Of what `read_image` returns: 1 grey, 3 RGB, any other number the bands of the files."""
    train: tuple[Sample, ...] = field(repr=False)
    val: tuple[Sample, ...] = field(repr=False)
    test: tuple[Sample, ...] = field(repr=False)
    known_fingerprint: str | None = field(default=None, repr=False, compare=False)
    """Known from a check, which has just read every file."""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.table.classes

    @property
    def colours(self) -> tuple[tuple[int, int, int], ...]:
        """RGB of each class, for overlays."""
        return self.table.colours()

    def split(self, name: Split) -> tuple[Sample, ...]:
        """The samples of a split, sorted by name.

        Raises DatasetError for a name that is no split.
        """
        if name not in SPLITS:
            raise DatasetError(self.path, [f"no split {name!r}; choose one of {', '.join(SPLITS)}"])
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    def read_image(self, sample: Sample) -> U8:
        """Pixels HWC with C = `channels`.

        Raises ImageError when the file cannot be decoded, or has another number of bands.
        """
        return decode(sample.image, self.channels)

    def read_mask(self, sample: Sample) -> U8:
        """Class numbers HW, 255 (`VOID`) for void whatever number or colour it has in the file.

        Raises ImageError when the file cannot be decoded, DatasetError when it holds an undeclared value.
        """
        mask = self._masks.read(sample.mask)
        unknown = [str(number) for number in mask.unknown_numbers]
        unknown += [str(list(colour)) for colour in mask.unknown_colours]
        if unknown:
            where = sample.mask.relative_to(self.path).as_posix()
            what = f"{where}: {shortened(unknown)} are not declared in {FILE}; run the data check to see what to write"
            raise DatasetError(self.path, [what])
        return mask.indices

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 over classes.json and the name and content of every image and mask.

        It does not change when the folder moves, nor with files that belong to no sample.
        """
        if self.known_fingerprint is not None:
            return self.known_fingerprint
        files = [self.path / FILE, *(file for sample in self._all() for file in (sample.image, sample.mask))]
        return fingerprint_of({file.relative_to(self.path).as_posix(): sha256_file(file) for file in files})

    def _all(self) -> Iterable[Sample]:
        return (*self.train, *self.val, *self.test)

    @cached_property
    def _masks(self) -> MaskReader:
        return MaskReader(self.table)


def open_dataset(path: Path, *, channels: ChannelChoice = "auto") -> Dataset:
    """Open a dataset folder; only its structure is checked, not what the files hold.

    `auto` is 3 channels if any image has colour, else 1; other numbers are never guessed. Raises DatasetError
    with everything that is wrong with the structure, ImageError when an image that has to be looked at cannot
    be decoded.
    """
    layout = Layout.scan(path)
    if layout.table is None or layout.problems:
        raise DatasetError(path, layout.problems.lines())
    images = [sample.image for split in SPLITS for sample in layout.samples[split]]
    if channels == "auto":
        channels = 3 if any(map(_has_colour, images)) else 1
    return Dataset(
        path,
        layout.table,
        channels,
        train=layout.samples["train"],
        val=layout.samples["val"],
        test=layout.samples["test"],
    )


def fingerprint_of(digests: Mapping[str, str]) -> str:
    """The fingerprint of files given as relative POSIX path -> hex SHA-256."""
    return sha256_json(dict(digests))


def is_coloured(pixels_HWC: U8) -> bool:
    """Whether any pixel of an RGB image is not grey."""
    red = pixels_HWC[..., 0]
    return not (np.array_equal(red, pixels_HWC[..., 1]) and np.array_equal(red, pixels_HWC[..., 2]))


def _has_colour(image: Path) -> bool:
    return not read_header(image).is_grey and is_coloured(decode(image, 3))
