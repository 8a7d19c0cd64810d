"""The pictures: their sizes, their colours, and which images are shown."""

import numpy as np
import pytest
from support.reports import score_of

from benchmarks.report.strip import (
    CELL_WIDTH,
    DIFFERENCES,
    EVEN,
    GAP,
    HEADER_HEIGHT,
    VOID_COLOUR,
    WORST,
    Row,
    Strip,
    choose,
    strip_of,
)
from export.errors import ShapeError
from export.images import U8
from export.scoring import VOID, Score

COLOURS = ((0, 0, 0), (200, 10, 10), (10, 200, 10))


def masks(*rows: list[int]) -> U8:
    return np.array(rows, dtype=np.uint8)


def strip(*rows: Row) -> Strip:
    return Strip(rows, ("a", "b", "c"), COLOURS, "dense", "int8")


def blank(height: int, width: int, channels: int = 3) -> Row:
    mask = np.zeros((height, width), dtype=np.uint8)
    return Row("x", "why", np.zeros((height, width, channels), dtype=np.uint8), mask, mask, mask)


def test_pictures_have_the_colours_of_their_classes() -> None:
    row = Row(
        "x",
        "why",
        np.array([[[10], [20], [30]]], dtype=np.uint8),
        truth_HW=masks([0, 1, VOID]),
        reference_HW=masks([0, 1, 2]),
        compressed_HW=masks([1, 1, 2]),
    )
    image, truth, reference, compressed, _ = strip(row).pictures(row)
    assert image.tolist() == [[[10] * 3, [20] * 3, [30] * 3]]
    assert truth.tolist() == [[list(COLOURS[0]), list(COLOURS[1]), list(VOID_COLOUR)]]
    assert reference.tolist() == [[list(COLOURS[k]) for k in (0, 1, 2)]]
    assert compressed.tolist() == [[list(COLOURS[k]) for k in (1, 1, 2)]]


def test_of_many_bands_the_first_three_are_shown() -> None:
    row = blank(40, 60, channels=5)
    row.image_HWC[:] = (10, 20, 30, 40, 50)
    image, *_, difference = strip(row).pictures(row)
    assert np.unique(image.reshape(-1, 3), axis=0).tolist() == [[10, 20, 30]]
    assert np.unique(difference).tolist() == [8]
    corner = strip(row).montage()[HEADER_HEIGHT, GAP]
    assert corner.tolist() == [10, 20, 30]


def test_differences_say_who_is_right() -> None:
    row = Row(
        "x",
        "why",
        np.full((1, 5, 3), 100, dtype=np.uint8),
        truth_HW=masks([1, 1, 1, VOID, 1]),
        reference_HW=masks([0, 1, 0, 0, 2]),
        compressed_HW=masks([1, 0, 2, 1, 2]),
    )
    *_, differences = strip(row).pictures(row)
    assert [tuple(pixel) for pixel in differences[0].tolist()] == [
        *(colour for _, colour in DIFFERENCES),
        (40, 40, 40),
    ]
    assert row.differing == 0.8


def test_the_montage_has_a_cell_for_every_picture() -> None:
    rows = (blank(64, 64), blank(50, 100, channels=1), blank(700, 350))
    montage = strip(*rows).montage()
    heights = [CELL_WIDTH, CELL_WIDTH // 2, CELL_WIDTH * 2]
    assert montage.shape == (HEADER_HEIGHT + sum(heights) + 3 * GAP, 5 * (CELL_WIDTH + GAP) + GAP, 3)
    # The black of class 0 fills the cells, white lies between them.
    assert (montage[HEADER_HEIGHT + 5, GAP : GAP + CELL_WIDTH] == 0).all()
    assert (montage[HEADER_HEIGHT + 5, GAP + CELL_WIDTH : 2 * GAP + CELL_WIDTH] == 255).all()
    assert (montage[:HEADER_HEIGHT] < 128).any()


@pytest.mark.parametrize(("size", "shown"), [((480, 960), (240, 480)), ((100, 40), (100, 40)), ((2000, 3), (480, 1))])
def test_large_pictures_shrink_for_the_page(size: tuple[int, int], shown: tuple[int, int]) -> None:
    row = blank(*size).shrunk()
    assert row.image_HWC.shape == (*shown, 3)
    assert row.truth_HW.shape == shown


def test_masks_of_another_size_are_refused() -> None:
    mask = np.zeros((4, 5), dtype=np.uint8)
    with pytest.raises(ShapeError, match="x: masks of"):
        Row("x", "why", np.zeros((4, 5, 3), dtype=np.uint8), mask, mask, mask.T.copy())


def test_the_worst_image_is_always_among_those_shown() -> None:
    reference = score_of([90] * 20)
    hits = [90] * 20
    hits[13] = 40
    picks = choose(reference, score_of(hits), count=4)
    assert len(picks) == 4
    assert picks[-1] == ("image-13", WORST)
    assert {reason for _, reason in picks[:-1]} == {EVEN}
    assert len({name for name, _ in picks}) == 4


def test_where_nothing_was_lost_there_is_no_worst_image() -> None:
    picks = choose(score_of([80] * 9), score_of([90] * 9), count=4)
    assert [reason for _, reason in picks] == [EVEN] * 4


@pytest.mark.parametrize("images", [1, 2, 3])
def test_a_small_split_is_shown_whole(images: int) -> None:
    picks = choose(score_of([90] * images), score_of([80] * images), count=4)
    assert {name for name, _ in picks} == {f"image-{i}" for i in range(images)}


def test_an_image_that_is_void_all_over_is_not_the_worst() -> None:
    reference, compressed = score_of([90, 90, 90]), score_of([90, 80, 90])
    for score in (reference, compressed):
        score.counts[2] = 0
    assert dict(choose(reference, compressed, count=3))["image-1"] == WORST


def test_both_models_run_on_the_chosen_images() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    truth = masks([0, 1], [2, 0])

    def zeros(image_HWC: U8) -> U8:
        return np.zeros(image_HWC.shape[:2], dtype=np.uint8)

    def ones(image_HWC: U8) -> U8:
        return np.ones(image_HWC.shape[:2], dtype=np.uint8)

    shown = strip_of(
        [("n1", "because")],
        lambda name: (image, truth),
        [("dense", zeros), ("int8", ones)],
        classes=("a", "b", "c"),
        colours=COLOURS,
    )
    (row,) = shown.rows
    assert (row.name, row.reason) == ("n1", "because")
    assert (row.reference_HW == 0).all()
    assert (row.compressed_HW == 1).all()
    assert shown.columns == ("image", "truth", "dense", "int8", "where they differ")


def test_scores_without_images_show_nothing() -> None:
    empty = Score(("a", "b"), (), np.zeros((0, 2, 2), dtype=np.int64))
    assert choose(empty, empty) == ()
