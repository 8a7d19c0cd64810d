"""Images of any number of channels in a dataset folder: what is read, what is noted, what is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.datasets import write_dataset

from compress.data import SPLITS, ChannelChoice, check, open_dataset, render, require_sound
from export.errors import DatasetError, ImageError
from export.images import decode, encode_image

COUNTS = {"train": 3, "val": 2, "test": 2}


def folder_of(channels: int, tmp_path: Path) -> Path:
    return write_dataset(tmp_path / f"of-{channels}", counts=COUNTS, size=(24, 32), channels=channels)


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_a_sound_folder_gives_its_bands_as_they_are(channels: int, tmp_path: Path) -> None:
    folder = folder_of(channels, tmp_path)
    dataset = require_sound(folder, channels)
    assert dataset.channels == channels
    assert dataset.fingerprint == open_dataset(folder, channels=channels).fingerprint
    for split in SPLITS:
        for sample in dataset.split(split):
            np.testing.assert_array_equal(dataset.read_image(sample), decode(sample.image, channels))
    assert f"channels: {channels} (bands)" in render(check(folder, channels)).splitlines()


@pytest.mark.parametrize(("channels", "guess"), [(2, 1), (4, 3), (5, 1)])
def test_auto_never_guesses_more_than_colour(channels: int, guess: int, tmp_path: Path) -> None:
    folder = folder_of(channels, tmp_path)
    assert check(folder).channels == open_dataset(folder).channels == guess


@pytest.mark.parametrize("channels", [1, 3, "auto"])
def test_pages_that_nobody_reads_are_noted(channels: ChannelChoice, tmp_path: Path) -> None:
    report = check(folder_of(5, tmp_path), channels)
    (note,) = [note for note in report.notes if "pages" in note]
    assert note.startswith("train/images/0000.tiff, train/images/0001.tiff")
    assert "set data.channels to their number" in note
    assert not any("pages" in note for note in check(tmp_path / "of-5", 5).notes)


def test_every_file_of_other_bands_is_named_under_its_kind(tmp_path: Path) -> None:
    folder = folder_of(5, tmp_path)
    images = folder / "train" / "images"
    size = decode(images / "0000.tiff", 1).shape[:2]
    for old, new, bands in (("0000.tiff", "0000.png", 3), ("0001.tiff", "0001.png", 3), ("0002.tiff", "0002.tiff", 6)):
        (images / old).unlink()
        (images / new).write_bytes(encode_image(np.zeros((*size, bands), np.uint8)))
    (folder / "val" / "images" / "0003.tiff").write_bytes(b"nothing")
    advice = "5 channels are asked for; give a TIFF with 5 grey pages of one size"
    problems = check(folder, 5).problems
    assert f"train/images/0000.png, train/images/0001.png: 3 channels, but {advice}" in problems
    assert f"train/images/0002.tiff: more than 5 pages, but {advice}" in problems
    assert any(problem.startswith("val/images/0003.tiff (not an image") for problem in problems)
    assert len(problems) == 3
    with pytest.raises(DatasetError, match="3 problems"):
        require_sound(folder, 5)
    dataset = open_dataset(folder, channels=5)
    with pytest.raises(ImageError, match=r"0000\.png: 3 channels, but 5"):
        dataset.read_image(dataset.train[0])


def test_a_picture_is_the_same_only_when_all_of_its_bands_are(tmp_path: Path) -> None:
    folder = folder_of(4, tmp_path)
    twin = Image.open(folder / "train" / "images" / "0000.png").copy()
    twin.save(folder / "val" / "images" / "0003.png")
    shutil.copy(folder / "train" / "masks" / "0000.png", folder / "val" / "masks" / "0003.png")
    (problem,) = check(folder, 4).problems
    assert "train/images/0000.png = val/images/0003.png: the same picture in several splits" in problem
    twin.putalpha(7)
    twin.save(folder / "val" / "images" / "0003.png")
    assert check(folder, 4).problems == ()
    assert len(check(folder).problems) == 1
