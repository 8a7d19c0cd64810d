"""Boundary F1 against distances that are measured one by one, and its values for shifted and for missing edges."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from export.boundaries import BoundaryScore, edges_of, near, tolerance
from export.errors import ShapeError

VOID = 255
CLASSES = ("a", "b", "c")
Masks = NDArray[np.uint8]


def masks(seed: int, *, void: bool = True) -> tuple[Masks, Masks]:
    """A truth and an answer of a few rectangles."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(2):
        mask = np.zeros((23, 31), dtype=np.uint8)
        for _ in range(4):
            top, left = rng.integers(0, 20, 2)
            mask[top : top + rng.integers(1, 12), left : left + rng.integers(1, 15)] = rng.integers(0, 3)
        made.append(mask)
    truth, answer = made
    if void:
        truth[rng.integers(0, 20) :, rng.integers(0, 28) :] = VOID
    return truth, answer


def edge_pixels(mask: Masks, label: int) -> list[tuple[int, int]]:
    height, width = mask.shape
    found = []
    for y in range(height):
        for x in range(width):
            beside = [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
            inside = [mask[place] for place in beside if 0 <= place[0] < height and 0 <= place[1] < width]
            if mask[y, x] == label and any(other not in (label, VOID) for other in inside):
                found.append((y, x))
    return found


def f1_by_hand(truth: Masks, answer: Masks, label: int, radius: int) -> float | None:
    answer = np.where(truth == VOID, VOID, answer).astype(np.uint8)
    there, drawn = edge_pixels(truth, label), edge_pixels(answer, label)
    if not there and not drawn:
        return None

    def share(mine: list[tuple[int, int]], theirs: list[tuple[int, int]]) -> float:
        hits = sum(any(math.dist(one, other) <= radius for other in theirs) for one in mine)
        return hits / len(mine) if mine else 0.0

    precision, recall = share(drawn, there), share(there, drawn)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.booleans())
def test_it_is_the_definition(seed: int, void: bool) -> None:
    truth, answer = masks(seed, void=void)
    score = BoundaryScore()
    score.update(truth, answer)
    for label, figure in enumerate(score.f1_per_class(CLASSES).values()):
        assert figure == pytest.approx(f1_by_hand(truth, answer, label, tolerance(*truth.shape)))


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 9))
def test_near_is_within_a_disc(seed: int, radius: int) -> None:
    points = np.random.default_rng(seed).random((17, 29)) < 0.01
    places = np.argwhere(points)
    expected = np.zeros_like(points)
    for y, x in np.ndindex(points.shape):
        expected[y, x] = bool(len(places)) and bool((((places - (y, x)) ** 2).sum(1) <= radius**2).any())
    np.testing.assert_array_equal(near(points, radius), expected)


def test_edges_may_be_apart_by_the_tolerance_and_no_more() -> None:
    truth = np.zeros((300, 400), dtype=np.uint8)
    truth[:, 200:] = 1
    assert tolerance(300, 400) == 4
    for shift, figure in ((0, 1.0), (4, 1.0), (5, 0.0)):
        answer = np.zeros_like(truth)
        answer[:, 200 + shift :] = 1
        score = BoundaryScore()
        score.update(truth, answer)
        assert score.f1_per_class("ab") == {"a": figure, "b": figure}
        assert score.f1("ab") == figure


def test_edges_of_void_are_none() -> None:
    mask = np.full((9, 9), VOID, dtype=np.uint8)
    mask[:4] = 1
    assert not edges_of(mask).any()


def test_images_are_counted_together_and_a_class_without_edges_has_no_figure() -> None:
    plain = np.zeros((30, 30), dtype=np.uint8)
    halves = plain.copy()
    halves[:, 15:] = 1
    score = BoundaryScore()
    assert score.f1(CLASSES) is None
    score.update(halves, halves)
    score.update(halves, plain)  # half of all edges are missed; those that are drawn are right
    assert score.f1_per_class(CLASSES) == {"a": pytest.approx(2 / 3), "b": pytest.approx(2 / 3), "c": None}
    assert score.f1(CLASSES) == pytest.approx(2 / 3)


def test_masks_of_two_sizes_are_refused() -> None:
    with pytest.raises(ShapeError):
        BoundaryScore().update(np.zeros((2, 3), dtype=np.uint8), np.zeros((3, 2), dtype=np.uint8))
