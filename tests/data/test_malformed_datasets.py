"""Folders that must be refused: each message names the file and says what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.datasets import write_dataset

from compress.data import check, open_dataset, require_sound
from export.errors import DatasetError, UsageError
from export.images import decode, decode_indices, encode_mask

FIRST_IMAGE, FIRST_MASK = "train/images/0000.png", "train/masks/0000.png"


def set_table(path: Path, **keys: Any) -> None:
    table = json.loads((path / "classes.json").read_text())
    (path / "classes.json").write_text(json.dumps({**table, **keys}))


def set_mask(path: Path, change: Callable[[np.ndarray], np.ndarray], *names: str) -> None:
    for name in names or (FIRST_MASK,):
        (path / name).write_bytes(encode_mask(change(decode_indices(path / name))))


def all_masks(path: Path) -> list[str]:
    return [mask.relative_to(path).as_posix() for mask in path.glob("*/masks/*")]


def as_rgb(path: Path, name: str) -> None:
    """Redraw a mask as black and red."""
    mask = decode_indices(path / name)
    Image.fromarray(np.stack([mask * 255, mask * 0, mask * 0], axis=2)).save(path / name)


def no_classes_json(path: Path) -> None:
    (path / "classes.json").unlink()


def classes_json_is_not_json(path: Path) -> None:
    (path / "classes.json").write_text("{'classes': ['a', 'b']}")


def classes_json_is_not_text(path: Path) -> None:
    (path / "classes.json").write_bytes(b"\xff\xfe\x00{")


def nothing_there(path: Path) -> None:
    shutil.rmtree(path)


def a_file_instead(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("not a folder")


def no_form(path: Path) -> None:
    for split in ("train", "val", "test"):
        (path / split).rename(path / f"my_{split}")


def both_forms(path: Path) -> None:
    shutil.copytree(path / "train" / "images", path / "images")


def no_test_split(path: Path) -> None:
    (path / "test").rename(path / "testing")


def no_masks_folder(path: Path) -> None:
    (path / "val" / "masks").rename(path / "val" / "labels")


def empty_split(path: Path) -> None:
    for file in (path / "val").glob("*/*"):
        file.unlink()


def mask_missing(path: Path) -> None:
    (path / FIRST_MASK).unlink()


def image_missing(path: Path) -> None:
    (path / FIRST_IMAGE).unlink()


def mask_of_another_format(path: Path) -> None:
    Image.open(path / FIRST_MASK).save(path / "train/masks/0000.bmp")
    (path / FIRST_MASK).unlink()


def two_images_of_one_stem(path: Path) -> None:
    Image.open(path / FIRST_IMAGE).save(path / "train/images/0000.jpg")


def unprintable_name(path: Path) -> None:
    (path / FIRST_IMAGE).rename(path / "train/images/a\nb.png")


def image_of_zero_bytes(path: Path) -> None:
    (path / FIRST_IMAGE).write_bytes(b"")


def image_is_text(path: Path) -> None:
    (path / FIRST_IMAGE).write_text("<html>404</html>")


def image_cut_short(path: Path) -> None:
    content = (path / FIRST_IMAGE).read_bytes()
    (path / FIRST_IMAGE).write_bytes(content[: len(content) // 2])


def image_of_16_bits(path: Path) -> None:
    Image.fromarray(np.full((64, 64), 40_000, dtype=np.uint16)).save(path / FIRST_IMAGE)


def mask_of_16_bits(path: Path) -> None:
    Image.fromarray(np.zeros((64, 64), dtype=np.uint16)).save(path / FIRST_MASK)


def mask_of_another_size(path: Path) -> None:
    set_mask(path, lambda mask: mask[:, :32])


def mask_value_beyond_classes(path: Path) -> None:
    set_mask(path, lambda mask: np.where(mask == 1, 7, mask).astype(np.uint8))


def masks_of_0_and_255(path: Path) -> None:
    set_mask(path, lambda mask: mask * np.uint8(255), *all_masks(path))


def masks_counted_from_1(path: Path) -> None:
    set_mask(path, lambda mask: mask + np.uint8(1), *all_masks(path))


def value_outside_values(path: Path) -> None:
    set_table(path, values={"0": "background", "200": "disc"})


def colour_mask_without_palette(path: Path) -> None:
    as_rgb(path, FIRST_MASK)


def colour_not_in_palette(path: Path) -> None:
    set_table(path, palette={"background": [0, 0, 0], "disc": [0, 255, 0]})
    as_rgb(path, FIRST_MASK)


def jpeg_mask(path: Path) -> None:
    Image.open(path / FIRST_MASK).save(path / "train/masks/0000.jpg")
    (path / FIRST_MASK).unlink()


def jpeg_mask_named_png(path: Path) -> None:
    Image.open(path / FIRST_MASK).save(path / FIRST_MASK, format="JPEG")


def same_picture_in_two_splits(path: Path) -> None:
    shutil.copy(path / FIRST_IMAGE, path / "test/images/0099.png")
    shutil.copy(path / FIRST_MASK, path / "test/masks/0099.png")


def same_picture_in_another_format(path: Path) -> None:
    grey = decode(path / FIRST_IMAGE, 3)
    Image.fromarray(grey).save(path / "val/images/0099.webp", lossless=True)
    shutil.copy(path / FIRST_MASK, path / "val/masks/0099.png")


CASES: list[tuple[Callable[[Path], None], list[str]]] = [
    (no_classes_json, ["classes.json: missing; write one that names the classes"]),
    (classes_json_is_not_json, ["classes.json: not JSON", "line 1 column 2"]),
    (classes_json_is_not_text, ["classes.json: not JSON", "decode"]),
    (nothing_there, ["no such folder; check the path"]),
    (a_file_instead, ["not a folder; give the folder that holds classes.json"]),
    (no_form, ["neither the folders train, val, test nor the folders images, masks", "my_train/", "make one"]),
    (both_forms, ["images/: the split folders train, val, test exist, too", "move the pictures"]),
    (no_test_split, ["test/: no such folder", "testing/", "make all of train, val, test"]),
    (no_masks_folder, ["val/masks/: no such folder", "labels/", "their masks into masks"]),
    (empty_split, ["val/: holds no image with a mask; put some there"]),
    (mask_missing, [f"{FIRST_IMAGE}: no mask of the same name in train/masks; add it"]),
    (image_missing, [f"{FIRST_MASK}: no image of the same name in train/images; add it"]),
    (mask_of_another_format, [f"{FIRST_IMAGE}: its mask train/masks/0000.bmp", "convert it"]),
    (
        two_images_of_one_stem,
        [
            "train/images/0000.jpg and train/images/0000.png: two files whose names differ only in the suffix",
            "keep one",
        ],
    ),
    (unprintable_name, ["'a\\nb.png' in train/images", "rename it"]),
    (image_of_zero_bytes, [f"{FIRST_IMAGE} (not an image", "cannot be read; replace the file"]),
    (image_is_text, [f"{FIRST_IMAGE} (not an image", "cannot be read; replace the file"]),
    (image_cut_short, [f"{FIRST_IMAGE} (damaged image data", "cannot be read; replace the file"]),
    (
        image_of_16_bits,
        [f"{FIRST_IMAGE} (its channels have more than 8 bits (pixel mode 'I;16')", "convert it to 8 bits"],
    ),
    (
        mask_of_16_bits,
        [f"{FIRST_MASK} (its channels have more than 8 bits (pixel mode 'I;16')", "convert it to 8 bits"],
    ),
    (mask_of_another_size, [f"{FIRST_MASK} (32x64, image 64x64): mask and image differ in size; give the mask"]),
    (mask_value_beyond_classes, [f"{FIRST_MASK} (7): mask values", "not the classes 0..1", '"ignore_index": 7']),
    (
        masks_of_0_and_255,
        [
            "train/masks/0000.png (255)",
            'set "values": {"0": "background", "255": "disc"} in classes.json',
            'if 255 means void, set "ignore_index": 255 in classes.json',
        ],
    ),
    (masks_counted_from_1, ["(2)", 'set "values": {"1": "background", "2": "disc"} in classes.json']),
    (value_outside_values, [f"{FIRST_MASK} (1)", 'not among the "values"', "add each"]),
    (colour_mask_without_palette, [f"{FIRST_MASK} ([0, 0, 0], [255, 0, 0])", 'add "palette"']),
    (colour_not_in_palette, [f"{FIRST_MASK} ([255, 0, 0])", 'add them to "palette"']),
    (jpeg_mask, ["train/masks/0000.jpg: JPEG changes the values of a mask; save masks as PNG"]),
    (jpeg_mask_named_png, [f"{FIRST_MASK}: JPEG changes the values of a mask"]),
    (same_picture_in_two_splits, [f"{FIRST_IMAGE} = test/images/0099.png: the same picture", "keep one"]),
    (same_picture_in_another_format, [f"{FIRST_IMAGE} = val/images/0099.webp: the same picture"]),
]

STRUCTURAL = CASES[:15]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "discs", counts={"train": 4, "val": 2, "test": 2})


@pytest.mark.parametrize(("spoil", "expected"), CASES, ids=lambda case: getattr(case, "__name__", ""))
def test_refused_with_the_file_and_the_remedy(folder: Path, spoil: Callable[[Path], None], expected: list[str]) -> None:
    spoil(folder)
    with pytest.raises(DatasetError) as caught:
        require_sound(folder)
    assert isinstance(caught.value, UsageError)
    assert caught.value.exit_status == 2
    message = str(caught.value)
    assert str(folder) in message
    for fragment in expected:
        assert fragment in message


@pytest.mark.parametrize(("spoil", "expected"), STRUCTURAL, ids=lambda case: getattr(case, "__name__", ""))
def test_structure_is_refused_without_decoding(
    folder: Path, spoil: Callable[[Path], None], expected: list[str]
) -> None:
    spoil(folder)
    with pytest.raises(DatasetError) as caught:
        open_dataset(folder)
    for fragment in expected:
        assert fragment in str(caught.value)


def test_everything_at_once(folder: Path) -> None:
    """Faults of structure, of classes.json and of content are reported in one message."""
    set_table(folder, ignore_index=1)
    mask_of_another_size(folder)
    (folder / "val/masks/0004.png").unlink()
    (folder / "test/images/0006.png").write_text("no image")
    with pytest.raises(DatasetError) as caught:
        require_sound(folder)
    assert len(caught.value.problems) == 4
    message = str(caught.value)
    for fragment in ('"ignore_index" 1', f"{FIRST_MASK} (32x64", "val/images/0004.png", "test/images/0006.png"):
        assert fragment in message


def test_many_faults_of_one_kind_are_one_line_with_a_count(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "many", counts={"train": 50, "val": 1, "test": 1}, size=(8, 8))
    shutil.rmtree(folder / "train" / "masks")
    (folder / "train" / "masks").mkdir()
    problems = check(folder).problems
    lines = [line for line in problems if "no mask of the same name" in line]
    assert len(lines) == 1
    assert "train/images/0019.png" in lines[0]
    assert "train/images/0020.png" not in lines[0]
    assert "and 30 more (50 in all)" in lines[0]


def test_what_the_message_advises_mends_0_255_masks(folder: Path) -> None:
    masks_of_0_and_255(folder)
    set_table(folder, values={"0": "background", "255": "disc"})
    dataset = require_sound(folder)
    assert set(np.unique(dataset.read_mask(dataset.train[0]))) == {0, 1}


def test_reading_an_undeclared_value_names_the_file(folder: Path) -> None:
    mask_value_beyond_classes(folder)
    dataset = open_dataset(folder)
    with pytest.raises(DatasetError, match=r"train/masks/0000.png: 7 are not declared"):
        dataset.read_mask(dataset.train[0])


def test_a_split_of_another_name_is_refused(folder: Path) -> None:
    dataset = open_dataset(folder)
    with pytest.raises(DatasetError, match="no split 'valid'; choose one of train, val, test"):
        dataset.split("valid")  # type: ignore[arg-type]
