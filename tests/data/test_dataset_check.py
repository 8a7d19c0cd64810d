"""The check of a dataset folder: what it counts and notes, and how its report reads."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.datasets import write_dataset

from compress.data import SPLITS, DatasetReport, check, open_dataset, render, require_sound
from export.images import decode, decode_indices, encode_image, encode_mask


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    counts = {"train": 5, "val": 3, "test": 2}
    return write_dataset(tmp_path / "discs", counts=counts, size=[(32, 48), (32, 48), (40, 40)])


def notes(path: Path) -> str:
    report = check(path)
    assert report.problems == ()
    return "\n".join(report.notes)


def test_counts_sizes_and_pixels(folder: Path) -> None:
    report = check(folder)
    assert report.problems == ()
    assert report.classes == ("background", "disc")
    assert report.channels == 1
    assert report.images == {"train": 5, "val": 3, "test": 2}
    assert [(size.width, size.height, size.images) for size in report.sizes] == [(48, 32, 7), (40, 40, 3)]
    for split in SPLITS:
        masks = [decode_indices(path) for path in sorted((folder / split / "masks").iterdir())]
        counts = np.bincount(np.concatenate([mask.ravel() for mask in masks]), minlength=2)
        assert report.pixels[split] == {"background": int(counts[0]), "disc": int(counts[1]), "void": 0}
        assert report.share(split, "disc") == pytest.approx(counts[1] / sum(mask.size for mask in masks))
    assert report.fingerprint == open_dataset(folder).fingerprint


def test_the_report_goes_through_json(folder: Path) -> None:
    report = check(folder)
    assert DatasetReport.model_validate_json(json.dumps(report.model_dump(mode="json"))) == report


def test_progress_counts_every_pair_once(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    require_sound(folder, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 10) for done in range(1, 11)]


def test_an_unsound_folder_is_reported_not_raised(folder: Path, tmp_path: Path) -> None:
    (folder / "val/images/0005.png").write_bytes(b"")
    report = check(folder)
    assert len(report.problems) == 1
    assert report.fingerprint is None
    assert report.images == {"train": 5, "val": 3, "test": 2}
    assert check(tmp_path / "absent").problems


def test_void_is_counted_apart(folder: Path) -> None:
    mask = decode_indices(folder / "test/masks/0008.png").copy()
    mask[:10] = 200
    (folder / "test/masks/0008.png").write_bytes(encode_mask(mask))
    (folder / "classes.json").write_text(json.dumps({"classes": ["background", "disc"], "ignore_index": 200}))
    report = check(folder)
    assert report.problems == ()
    assert report.pixels["test"]["void"] == 10 * mask.shape[1]
    assert report.pixels["train"]["void"] == 0


def test_notes_a_class_that_never_occurs(folder: Path) -> None:
    (folder / "classes.json").write_text(json.dumps({"classes": ["background", "disc", "ring"]}))
    text = notes(folder)
    assert 'class "ring": never occurs in train; it cannot be learnt' in text
    assert 'class "ring": never occurs in test; it cannot be scored there' in text
    assert '"disc"' not in text


def test_notes_small_splits_only(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "d", counts={"train": 2, "val": 20, "test": 19}, size=(16, 16))
    text = notes(folder)
    assert "test (19): fewer than 20 images" in text
    assert "val (20)" not in text
    assert "train" not in text


def test_notes_files_that_are_passed_over(folder: Path) -> None:
    (folder / "train/images/notes.txt").write_text("x")
    (folder / "train/images/more").mkdir()
    assert "train/images/more/, train/images/notes.txt: passed over" in notes(folder)


def test_notes_a_picture_twice_in_one_split(folder: Path) -> None:
    for part in ("images", "masks"):
        shutil.copy(folder / f"train/{part}/0000.png", folder / f"train/{part}/9999.png")
    assert "train/images/0000.png = train/images/9999.png: the same picture more than once in a split" in notes(folder)


def test_blank_pictures_are_no_duplicates(folder: Path) -> None:
    for split, name in (("train", "0000"), ("test", "0008")):
        shape = decode(folder / f"{split}/images/{name}.png", 1).shape
        (folder / f"{split}/images/{name}.png").write_bytes(encode_image(np.zeros(shape, np.uint8)))
    assert check(folder).problems == ()


def test_notes_groups_that_the_folders_tear_apart(folder: Path) -> None:
    (folder / "classes.json").write_text(json.dumps({"classes": ["background", "disc"], "group": r"^(\d\d\d)"}))
    assert "000 (train, val, test): groups that the folders put into several splits" in notes(folder)


def test_notes_masks_that_are_void_everywhere(folder: Path) -> None:
    (folder / "train/masks/0000.png").write_bytes(encode_mask(np.full((32, 48), 9, np.uint8)))
    (folder / "classes.json").write_text(json.dumps({"classes": ["background", "disc"], "ignore_index": 9}))
    assert "train/masks/0000.png: masks that are void everywhere" in notes(folder)


def test_colour_masks_of_a_photograph_are_named_briefly(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "train/masks/0000.png")
    (problem,) = check(folder).problems
    assert problem.startswith("train/masks/0000.png ([")
    assert len(problem) < 1000


def test_rendered_for_people(folder: Path) -> None:
    text = render(check(folder))
    lines = text.splitlines()
    assert lines[0] == "# Dataset discs"
    assert "channels: 1 (grey)" in lines
    assert "| images          |      5 |      3 |      2 |" in lines
    assert any(line.startswith("| disc ") and line.count("%") == 3 for line in lines)
    assert "| 48x32          |      7 |" in lines
    assert "void" not in text
    assert "No problems found." in lines
    tables = [line for line in lines if line.startswith("|")]
    assert len({len(line) for line in tables if line.count("|") == 5}) == 1


def test_rendered_with_problems(folder: Path) -> None:
    (folder / "val/masks/0005.png").unlink()
    text = render(check(folder))
    assert "## Problems\n\n- val/images/0005.png: no mask" in text
    assert "fingerprint: none while there are problems" in text
    assert "No problems found." not in text


def test_rendered_with_many_sizes(tmp_path: Path) -> None:
    sizes = [(16, 16 + index) for index in range(15)]
    text = render(check(write_dataset(tmp_path / "d", counts={"train": 28, "val": 1, "test": 1}, size=sizes)))
    assert "| 3 other sizes  |      6 |" in text.splitlines()
