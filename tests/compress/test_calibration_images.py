"""INT8 calibration images: a named list from the training split, on which nothing is scored."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from support.quantizing import recipe

from compress.checkpoint import Checkpoint
from compress.data.evaluation import drawn_by_name
from compress.data.folder import open_dataset
from compress.quantize import quantize
from export.bundle import Bundle
from export.errors import DatasetError


def test_calibration_images_are_named_and_come_from_train(int8_bundle: Bundle, discs: Path) -> None:
    listed = json.loads((int8_bundle.path / "calibration.json").read_text())
    dataset = open_dataset(discs)
    assert listed["split"] == "train"
    assert listed["images"] == [sample.name for sample in drawn_by_name(dataset.train, 4)]
    assert set(listed["images"]) <= {sample.name for sample in dataset.train}
    assert not set(listed["images"]) & {sample.name for sample in (*dataset.val, *dataset.test)}
    golden = int8_bundle.manifest.golden.names
    assert [name.split("-", 1)[1] for name in golden] == listed["images"]


def test_what_is_drawn_by_name_does_not_depend_on_order_and_grows(discs: Path) -> None:
    train = open_dataset(discs).train
    assert drawn_by_name(train[::-1], 5) == drawn_by_name(train, 5)
    assert drawn_by_name(train, 6)[:5] == drawn_by_name(train, 5)
    assert len(drawn_by_name(train, 99)) == len(train)


def test_a_picture_that_is_scored_cannot_calibrate(trained: Checkpoint, discs: Path, tmp_path: Path) -> None:
    """Pictures are compared by their pixels: here name and file bytes differ."""
    shutil.copytree(discs, tmp_path / "data")
    dataset = open_dataset(tmp_path / "data")
    shown, scored = dataset.train[0], dataset.val[0]
    Image.open(scored.image).save(shown.image, compress_level=0)
    shutil.copy(scored.mask, shown.mask)
    assert shown.image.read_bytes() != scored.image.read_bytes()
    with pytest.raises(DatasetError, match="the same picture in several splits"):
        quantize(trained.path, tmp_path / "data", tmp_path / "out", recipe())
