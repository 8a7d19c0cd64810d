"""The look-up table by grey value: what it can know, and that no change to one of its entries improves it."""

from itertools import product
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from support.datasets import write_dataset

from compress.data import VOID, lookup_table_miou, open_dataset
from compress.data.lookup import fit_lookup_table
from export.images import decode, decode_indices, encode_mask
from export.metrics import mean_iou
from export.scoring import ConfusionMatrix


def score(table: tuple[int, ...], counts: np.ndarray) -> float:
    confusion = np.zeros((counts.shape[1],) * 2, np.int64)
    for value, index in enumerate(table):
        confusion[:, index] += counts[value]
    return float(mean_iou(confusion))


@settings(max_examples=100)
@given(arrays.arrays(np.int64, (4, 3), elements=st.integers(0, 50)))
def test_never_worse_than_the_majority_and_no_single_change_betters_it(counts: np.ndarray) -> None:
    table = tuple(fit_lookup_table(counts).tolist())
    if not counts.any():
        return
    best = score(table, counts)
    assert best >= score(tuple(counts.argmax(axis=1)), counts) - 1e-12
    for value, index in product(range(4), range(3)):
        assert score((*table[:value], index, *table[value + 1 :]), counts) <= best + 1e-12


def test_betters_the_majority_where_a_class_is_rare() -> None:
    """Value 0 is mostly class 0, but is the only value at which class 1 occurs."""
    counts = np.array([[60, 50], [900, 0]])
    assert fit_lookup_table(counts).tolist() == [1, 0]


def test_grey_that_tells_all_scores_one(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "d", counts={"train": 3, "val": 1, "test": 2})
    for image in path.glob("*/images/*.png"):
        mask = decode_indices(image.parents[1] / "masks" / image.name)
        image.write_bytes(encode_mask(mask * np.uint8(90) + np.uint8(40)))
    assert lookup_table_miou(open_dataset(path)) == 1.0


def test_void_counts_nowhere(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "d", counts={"train": 3, "val": 1, "test": 2}, table={"ignore_index": 7})
    for mask_path in path.glob("*/masks/*.png"):
        image = decode(path / mask_path.parents[1].name / "images" / mask_path.name, 1)[..., 0]
        # What grey alone cannot tell apart becomes void.
        mask_path.write_bytes(encode_mask(np.select([image < 90, image > 170], [0, 1], 7).astype(np.uint8)))
    dataset = open_dataset(path)
    assert VOID in dataset.read_mask(dataset.train[0])
    assert lookup_table_miou(dataset) == 1.0


def test_one_matrix_over_the_split_and_luminance_for_colour(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "d", counts={"train": 6, "val": 1, "test": 4}, channels=3, classes=["a", "b", "c"])
    dataset = open_dataset(path)
    assert dataset.channels == 3
    counts = np.zeros((256, 3), np.int64)
    for sample in dataset.train:
        np.add.at(counts, (decode(sample.image, 1)[..., 0], dataset.read_mask(sample)), 1)
    table, matrix = fit_lookup_table(counts), ConfusionMatrix(3)
    for sample in dataset.test:
        matrix.update(dataset.read_mask(sample), table[decode(sample.image, 1)[..., 0]])
    assert lookup_table_miou(dataset) == matrix.miou
    assert 0.2 < matrix.miou < 1.0
