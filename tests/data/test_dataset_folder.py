"""A sound dataset folder: its splits, its arrays, its fingerprint."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.datasets import write_dataset

from compress.data import SPLITS, VOID, Dataset, check, open_dataset, require_sound, split_of
from export.errors import DatasetError
from export.files import write_json
from export.images import decode, encode_image, encode_mask

PIXEL, EMPTY = encode_image(np.zeros((1, 1, 1), np.uint8)), encode_mask(np.zeros((1, 1), np.uint8))
NAMES = st.text(st.characters(categories=["L", "Nd"], include_characters=" -"), min_size=1, max_size=12)


def write_heap(path: Path, stems: list[str], **table: object) -> Path:
    """A folder of one-pixel pictures without splits; `stems` may be too few for a sound set."""
    for part, content in (("images", PIXEL), ("masks", EMPTY)):
        (path / part).mkdir(parents=True)
        for stem in stems:
            (path / part / f"{stem}.png").write_bytes(content)
    write_json(path / "classes.json", {"classes": ["ground", "thing"], **table})
    return path


def single_pair(path: Path, image: Image.Image, mask: Image.Image, **table: object) -> Dataset:
    """A dataset with this pair in each of its three splits."""
    for split in SPLITS:
        for part, picture in (("images", image), ("masks", mask)):
            (path / split / part).mkdir(parents=True)
            picture.save(path / split / part / "a.png")
    write_json(path / "classes.json", {"classes": ["ground", "thing"], **table})
    return open_dataset(path)


def test_split_folders(tmp_path: Path) -> None:
    dataset = open_dataset(write_dataset(tmp_path / "d", counts={"train": 3, "val": 2, "test": 1}))
    assert [len(dataset.split(split)) for split in SPLITS] == [3, 2, 1]
    assert [sample.name for sample in dataset.train] == ["0000", "0001", "0002"]
    sample = dataset.test[0]
    assert sample.image == tmp_path / "d/test/images/0005.png"
    assert sample.mask == tmp_path / "d/test/masks/0005.png"
    image, mask = dataset.read_image(sample), dataset.read_mask(sample)
    assert (image.shape, image.dtype.name) == ((64, 64, 1), "uint8")
    assert (mask.shape, mask.dtype.name) == ((64, 64), "uint8")
    assert set(np.unique(mask)) == {0, 1}


@pytest.mark.parametrize(
    ("stem", "split"),
    [("image_1", "train"), ("image_12", "train"), ("image_14", "val"), ("image_6", "test"), ("image_11", "test")],
)
def test_split_by_hash_is_what_sha256sum_says(stem: str, split: str) -> None:
    """The hash is fixed for ever: another would move training pictures of finished models into their test split."""
    assert split_of(stem) == split


def test_the_hash_gives_about_8_to_1_to_1() -> None:
    splits = [split_of(f"image_{index}") for index in range(5000)]
    assert [round(splits.count(split) / 5000, 1) for split in SPLITS] == [0.8, 0.1, 0.1]


@settings(max_examples=15)
@given(st.sets(NAMES, min_size=30, max_size=60))
def test_a_heap_is_split_whole_and_by_name_alone(names: set[str]) -> None:
    stems = sorted(name.strip() or "x" for name in names)
    with tempfile.TemporaryDirectory() as folder:
        path = write_heap(Path(folder) / "heap", stems)
        if {split_of(stem) for stem in stems} != set(SPLITS):
            with pytest.raises(DatasetError, match=r"the hash put none of \d+ images in \d+ groups there"):
                open_dataset(path)
            return
        dataset = open_dataset(path)
        found = {sample.name: split for split in SPLITS for sample in dataset.split(split)}
    assert found == {stem: split_of(stem) for stem in stems}


@settings(max_examples=15)
@given(st.lists(st.integers(1, 4), min_size=60, max_size=80))
def test_kin_stay_together(family_sizes: list[int]) -> None:
    """60 families at least, because the names of the first 60 reach every split."""
    stems = [f"patient{family}_slice{index}" for family, size in enumerate(family_sizes) for index in range(size)]
    with tempfile.TemporaryDirectory() as folder:
        dataset = open_dataset(write_heap(Path(folder) / "heap", stems, group=r"^(patient\d+)_"))
        families = [{sample.name.split("_")[0] for sample in dataset.split(split)} for split in SPLITS]
        assert sum(len(dataset.split(split)) for split in SPLITS) == len(stems)
    assert sum(map(len, families)) == len(family_sizes)
    assert len(set.union(*families)) == len(family_sizes)


def test_a_group_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    stems = [f"patient{index}_a" for index in range(60)]
    path = write_heap(tmp_path / "heap", [*stems, "stray"], group=r"^(patient\d+)_")
    with pytest.raises(DatasetError, match=r"images/stray.png: `group` .* matches nothing in the name; widen it"):
        open_dataset(path)


def test_fingerprint_knows_content_and_names_but_not_the_place(tmp_path: Path) -> None:
    first = write_dataset(tmp_path / "first", counts={"train": 2, "val": 1, "test": 1}, seed=3)
    again = write_dataset(tmp_path / "again", counts={"train": 2, "val": 1, "test": 1}, seed=3)
    (again / "README.txt").write_text("belongs to no sample")
    fingerprint = open_dataset(first).fingerprint
    assert len(fingerprint) == 64
    assert open_dataset(again).fingerprint == fingerprint
    assert require_sound(first).fingerprint == fingerprint


@pytest.mark.parametrize(
    "change",
    [
        lambda path: (path / "classes.json").write_text((path / "classes.json").read_text() + " "),
        lambda path: (path / "train/images/0000.png").write_bytes((path / "train/images/0001.png").read_bytes()),
        lambda path: (path / "test/masks/0003.png").write_bytes(encode_mask(np.zeros((64, 64), np.uint8))),
        lambda path: [
            (path / f"val/{part}/0002.png").rename(path / f"val/{part}/two.png") for part in ("images", "masks")
        ],
        lambda path: [
            (path / f"train/{part}/0000.png").rename(path / f"val/{part}/0000.png") for part in ("images", "masks")
        ],
        lambda path: [(path / f"train/{part}/0000.png").unlink() for part in ("images", "masks")],
    ],
    ids=["classes.json", "image", "mask", "name", "split", "gone"],
)
def test_fingerprint_changes_with_what_it_covers(tmp_path: Path, change: object) -> None:
    path = write_dataset(tmp_path / "d", counts={"train": 2, "val": 1, "test": 1})
    before = open_dataset(path).fingerprint
    assert callable(change)
    change(path)
    assert open_dataset(path).fingerprint != before


def test_ignore_index_becomes_void(tmp_path: Path) -> None:
    mask = Image.fromarray(np.array([[0, 1], [11, 1]], np.uint8))
    dataset = single_pair(tmp_path, Image.new("L", (2, 2)), mask, ignore_index=11)
    assert dataset.read_mask(dataset.train[0]).tolist() == [[0, 1], [VOID, 1]]


def test_declared_values(tmp_path: Path) -> None:
    mask = Image.fromarray(np.array([[0, 255], [128, 64]], np.uint8))
    values = {"0": "ground", "64": "ground", "128": "void", "255": "thing"}
    dataset = single_pair(tmp_path, Image.new("L", (2, 2)), mask, values=values)
    assert dataset.read_mask(dataset.train[0]).tolist() == [[0, 1], [VOID, 0]]


def test_one_bit_mask(tmp_path: Path) -> None:
    mask = Image.fromarray(np.array([[False, True]]))
    assert mask.mode == "1"
    dataset = single_pair(tmp_path, Image.new("L", (2, 1)), mask)
    assert dataset.read_mask(dataset.train[0]).tolist() == [[0, 1]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colour_mask_goes_by_the_declared_palette(tmp_path: Path, mode: str) -> None:
    colours = np.array([[[0, 0, 0], [255, 0, 0]], [[255, 255, 255], [255, 0, 0]]], np.uint8)
    mask = Image.fromarray(colours).convert(mode)
    palette = {"thing": [255, 0, 0], "ground": [0, 0, 0], "void": [255, 255, 255]}
    dataset = single_pair(tmp_path, Image.new("L", (2, 2)), mask, palette=palette)
    assert dataset.read_mask(dataset.train[0]).tolist() == [[0, 1], [VOID, 1]]
    assert dataset.colours == ((0, 0, 0), (255, 0, 0))


def test_palette_image_goes_by_number_where_no_palette_is_declared(tmp_path: Path) -> None:
    mask = Image.fromarray(np.array([[0, 1], [1, 255]], np.uint8))
    mask.putpalette([*range(256)] * 3)
    dataset = single_pair(tmp_path, Image.new("L", (2, 2)), mask, ignore_index=255)
    assert dataset.read_mask(dataset.train[0]).tolist() == [[0, 1], [1, VOID]]
    assert any("palette images, read by the numbers stored" in note for note in check(tmp_path).notes)


@settings(max_examples=15)
@given(st.lists(st.sampled_from([0, 1, 2, VOID]), min_size=12, max_size=12))
def test_the_same_mask_in_any_spelling_reads_the_same(cells: list[int]) -> None:
    indices = np.array(cells, np.uint8).reshape(3, 4)
    colours = {"a": [10, 20, 30], "b": [200, 100, 0], "c": [0, 0, 255], "void": [255, 255, 255]}
    values = {"a": 7, "b": 70, "c": 170, "void": 250}
    row = {0: "a", 1: "b", 2: "c", VOID: "void"}
    spelt: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
        "index": (np.where(indices == VOID, 9, indices).astype(np.uint8), {"ignore_index": 9}),
        "colour": (
            np.array([[colours[row[int(i)]] for i in line] for line in indices], np.uint8),
            {"palette": colours},
        ),
        "values": (
            np.vectorize(lambda i: values[row[int(i)]])(indices).astype(np.uint8),
            {"values": {str(number): name for name, number in values.items()}},
        ),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, (stored, table) in spelt.items():
            keys: dict[str, Any] = {"classes": ["a", "b", "c"], **table}
            dataset = single_pair(Path(folder) / name, Image.new("L", (4, 3)), Image.fromarray(stored), **keys)
            assert np.array_equal(dataset.read_mask(dataset.train[0]), indices), name


def test_images_of_several_sizes(tmp_path: Path) -> None:
    dataset = require_sound(write_dataset(tmp_path / "d", size=[(64, 64), (48, 80)]))
    shapes = [dataset.read_image(sample).shape for sample in dataset.train[:2]]
    assert shapes == [(64, 64, 1), (48, 80, 1)]
    assert dataset.read_mask(dataset.train[1]).shape == (48, 80)


def test_channels_of_grey_and_colour(tmp_path: Path) -> None:
    grey = write_dataset(tmp_path / "grey", counts={"train": 2, "val": 1, "test": 1})
    colour = write_dataset(tmp_path / "colour", counts={"train": 2, "val": 1, "test": 1}, channels=3)
    assert open_dataset(grey).channels == require_sound(grey).channels == 1
    assert open_dataset(colour).channels == require_sound(colour).channels == 3
    forced = open_dataset(colour, channels=1)
    assert forced.read_image(forced.train[0]).shape == (64, 64, 1)
    assert require_sound(grey, 3).channels == 3


def test_grey_stored_as_rgb_counts_as_grey_until_one_pixel_has_colour(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "d", counts={"train": 2, "val": 1, "test": 1})
    image = path / "val/images/0002.png"
    pixels = decode(image, 3).copy()
    Image.fromarray(pixels).save(image)
    assert open_dataset(path).channels == require_sound(path).channels == 1
    pixels[10, 20, 2] ^= 1
    Image.fromarray(pixels).save(image)
    assert open_dataset(path).channels == require_sound(path).channels == 3


def test_opening_decodes_no_image_whose_header_says_grey(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "d", counts={"train": 2, "val": 1, "test": 1})
    image = path / "train/images/0000.png"
    image.write_bytes(image.read_bytes()[:200])
    assert open_dataset(path).channels == 1


def test_hidden_files_and_suffixes_in_capitals(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "d", counts={"train": 2, "val": 1, "test": 1})
    (path / "train/images/.DS_Store").write_bytes(b"\x00")
    shutil.move(path / "train/images/0000.png", path / "train/images/0000.PNG")
    assert [sample.image.name for sample in open_dataset(path).train] == ["0000.PNG", "0001.png"]


def test_a_link_to_what_was_not_fetched_is_a_problem(tmp_path: Path) -> None:
    """As git-annex and DVC leave it."""
    path = write_dataset(tmp_path / "d", counts={"train": 3, "val": 1, "test": 1})
    for name in ("train/masks/0000.png", "train/images/0001.png", "train/masks/0001.png"):
        (path / name).unlink()
        (path / name).symlink_to(tmp_path / "store" / name)
    with pytest.raises(DatasetError) as refused:
        require_sound(path)
    assert "0000.png" in str(refused.value)
    assert "train/images/0001.png" in str(refused.value)
    assert "a link to a file that is not there; fetch that" in str(refused.value)
    assert "not in a supported format" not in str(refused.value)


def test_datasets_need_no_torch() -> None:
    code = "import sys, compress.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2]).returncode == 0
