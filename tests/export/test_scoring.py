"""One confusion matrix over a split: against torchmetrics, and the properties that the figures rest on."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from export.errors import ShapeError
from export.images import U8
from export.metrics import iou_of, mean_iou
from export.scoring import VOID, ConfusionMatrix, Score, score

Pair = tuple[U8, U8]

CLASSES = st.integers(2, 6)


@st.composite
def pairs(draw: st.DrawFn, classes: int) -> list[Pair]:
    """Truth (with void) and prediction of one to four images of any size."""
    shapes = draw(st.lists(hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), min_size=1, max_size=4))
    labels = st.sampled_from([*range(classes), VOID])
    predictions = st.integers(0, classes - 1)
    return [
        (draw(hnp.arrays(np.uint8, shape, elements=labels)), draw(hnp.arrays(np.uint8, shape, elements=predictions)))
        for shape in shapes
    ]


def scored(images: list[Pair], classes: int) -> Score:
    """The score of `images` with the given predictions."""
    ready = iter([prediction for _, prediction in images])
    samples = [(f"image{i}", np.zeros((*truth.shape, 1), np.uint8), truth) for i, (truth, _) in enumerate(images)]
    return score(lambda _: next(ready), samples, tuple(f"class{k}" for k in range(classes)))


def random_score(images: int, *, seed: int, right: float = 0.8) -> Score:
    """A score over three classes, each image with its own hit rate around `right`."""
    rng = np.random.default_rng(seed)
    counts = np.zeros((images, 3, 3), np.int64)
    for image in range(images):
        rate = np.clip(right + rng.normal(0, 0.1), 0, 1)
        for k in range(3):
            counts[image, k] = rng.multinomial(400, np.where(np.arange(3) == k, rate, (1 - rate) / 2))
    return Score(("a", "b", "c"), tuple(f"image{i}" for i in range(images)), counts)


@settings(max_examples=60)
@given(CLASSES.flatmap(lambda classes: st.tuples(st.just(classes), pairs(classes))))
def test_torchmetrics_counts_and_averages_the_same(case: tuple[int, list[Pair]]) -> None:
    classes, images = case
    confusion = MulticlassConfusionMatrix(classes, ignore_index=VOID)
    jaccard = MulticlassJaccardIndex(classes, average="none", ignore_index=VOID)
    matrix = ConfusionMatrix(classes)
    for truth, prediction in images:
        target = torch.from_numpy(truth.astype(np.int64))[None]
        guess = torch.from_numpy(prediction.astype(np.int64))[None]
        confusion.update(guess, target)
        jaccard.update(guess, target)
        matrix.update(truth, prediction)

    np.testing.assert_array_equal(matrix.counts, confusion.compute().numpy())
    occurs = (matrix.counts.sum(0) + matrix.counts.sum(1)) > 0
    expected = jaccard.compute().numpy()
    iou = iou_of(matrix.counts)
    np.testing.assert_allclose(iou[occurs], expected[occurs], rtol=1e-6)
    assert np.isnan(iou[~occurs]).all()
    if occurs.any():
        assert matrix.miou == pytest.approx(expected[occurs].mean(), rel=1e-6)
    else:
        assert np.isnan(matrix.miou)


@given(CLASSES.flatmap(lambda classes: st.tuples(st.just(classes), pairs(classes))))
def test_images_may_come_in_any_order_and_in_any_parts(case: tuple[int, list[Pair]]) -> None:
    classes, images = case
    together = ConfusionMatrix(classes)
    for truth, prediction in images:
        together.update(truth, prediction)
    pixels = ConfusionMatrix(classes)
    pixels.update(
        np.concatenate([truth.ravel() for truth, _ in reversed(images)])[None],
        np.concatenate([prediction.ravel() for _, prediction in reversed(images)])[None],
    )
    np.testing.assert_array_equal(pixels.counts, together.counts)
    np.testing.assert_array_equal(scored(images, classes).counts.sum(axis=0), together.counts)


@given(CLASSES.flatmap(lambda c: st.tuples(st.just(c), pairs(c), st.permutations(range(c)))))
def test_renaming_the_classes_renames_the_figures(case: tuple[int, list[Pair], list[int]]) -> None:
    classes, images, order = case
    rename = np.arange(256, dtype=np.uint8)
    rename[:classes] = order
    plain, renamed = ConfusionMatrix(classes), ConfusionMatrix(classes)
    for truth, prediction in images:
        plain.update(truth, prediction)
        renamed.update(rename[truth], rename[prediction])
    np.testing.assert_array_equal(iou_of(renamed.counts)[order], iou_of(plain.counts))
    np.testing.assert_allclose(renamed.miou, plain.miou)


@given(CLASSES.flatmap(lambda c: st.tuples(st.just(c), pairs(c), st.integers(0, 2**32))))
def test_what_is_predicted_for_void_changes_nothing(case: tuple[int, list[Pair], int]) -> None:
    classes, images, seed = case
    rng = np.random.default_rng(seed)
    plain, other = ConfusionMatrix(classes), ConfusionMatrix(classes)
    for truth, prediction in images:
        plain.update(truth, prediction)
        # Also numbers that are no class: they are not looked at.
        noise = rng.integers(0, 256, truth.shape, dtype=np.uint8)
        other.update(truth, np.where(truth == VOID, noise, prediction))
    np.testing.assert_array_equal(other.counts, plain.counts)


def test_a_class_that_occurs_nowhere_is_null_and_left_out_of_the_mean() -> None:
    truth = np.array([[0, 0, 1, VOID]], np.uint8)
    result = scored([(truth, np.array([[0, 1, 1, 2]], np.uint8))], 4)
    assert result.iou_per_class == {"class0": 0.5, "class1": 0.5, "class2": None, "class3": None}
    assert result.miou == 0.5


def test_a_class_that_is_only_predicted_counts_as_wrong() -> None:
    result = scored([(np.array([[0, 0]], np.uint8), np.array([[0, 2]], np.uint8))], 3)
    assert result.iou_per_class == {"class0": 0.5, "class1": None, "class2": 0.0}
    assert result.miou == 0.25


def test_counts_do_not_overflow() -> None:
    big = np.array([[3 * 2**31, 2**31], [5 * 2**31, 7 * 2**31]], dtype=np.int64)
    assert ConfusionMatrix(2).counts.dtype == np.int64
    expected = [Fraction(3, 9), Fraction(7, 13)]
    np.testing.assert_allclose(iou_of(big), [float(x) for x in expected])
    result = Score(("a", "b"), ("x", "y"), np.stack([big, big]))
    assert result.miou == pytest.approx(float(sum(expected) / 2))
    low, high = result.interval()
    assert low == pytest.approx(result.miou)
    assert high == pytest.approx(result.miou)


def test_masks_that_do_not_go_together_are_refused() -> None:
    matrix = ConfusionMatrix(3)
    with pytest.raises(ShapeError, match=r"truth has shape \(2, 3\), prediction \(3, 2\)"):
        matrix.update(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8))
    for truth, prediction in ((3, 0), (0, 3), (0, VOID)):
        with pytest.raises(ShapeError, match=r"beyond the classes 0\.\.2"):
            matrix.update(np.full((2, 2), truth, np.uint8), np.full((2, 2), prediction, np.uint8))
    assert not matrix.counts.any()


@pytest.mark.parametrize("seed", range(5))
def test_the_interval_holds_the_estimate_and_narrows_with_more_images(seed: int) -> None:
    few, many = random_score(20, seed=seed), random_score(500, seed=seed)
    for result in (few, many):
        low, high = result.interval()
        assert low < result.miou < high
    assert np.diff(many.interval()) < np.diff(few.interval()) / 3
    assert few.interval() == few.interval()


def test_an_image_that_is_void_everywhere_is_no_image() -> None:
    """It tells nothing, so it neither narrows an interval nor counts towards enough images."""
    counted = random_score(6, seed=2)
    nothing = np.zeros((3, *counted.counts.shape[1:]), np.int64)
    names = (*counted.images, "a", "b", "c")
    padded = Score(counted.classes, names, np.concatenate([counted.counts, nothing]))
    assert (counted.images_counted, padded.images_counted) == (6, 6)
    assert padded.interval() == counted.interval()


def test_many_classes_are_drawn_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = random_score(50, seed=3)
    expected = whole.interval(), whole.interval_per_class()
    monkeypatch.setattr("export.scoring._AT_ONCE", 100)
    assert (whole.interval(), whole.interval_per_class()) == expected


def test_the_interval_is_as_wide_as_the_jackknife_says() -> None:
    result = random_score(200, seed=1)
    total, n = result.counts.sum(axis=0), len(result.images)
    without = mean_iou(total - result.counts)
    deviation = np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())
    low, high = result.interval()
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.15)


@pytest.mark.parametrize("seed", range(3))
def test_a_model_loses_nothing_to_itself(seed: int) -> None:
    result = random_score(30, seed=seed)
    assert result.drop_interval(result) == (0.0, 0.0)


def test_a_paired_interval_sees_what_two_intervals_cannot() -> None:
    parent = random_score(50, seed=2)
    # The child errs on the same images, and a little more on each.
    moved = parent.counts.copy()
    for k in range(3):
        lost = moved[:, k, k] // 50
        moved[:, k, k] -= lost
        moved[:, k, (k + 1) % 3] += lost
    child = Score(parent.classes, parent.images, moved)
    low, high = parent.drop_interval(child)
    drop = parent.miou - child.miou
    assert 0 < low < drop < high
    assert high - low < np.diff(parent.interval())[0] / 5
    assert child.drop_interval(parent) == pytest.approx((-high, -low))


def test_a_drop_compares_the_same_images() -> None:
    one, other = random_score(5, seed=0), random_score(6, seed=0)
    with pytest.raises(ShapeError, match="same images"):
        one.drop_interval(other)


def test_every_image_is_announced() -> None:
    told: list[int] = []
    samples = [(str(i), np.zeros((2, 2, 1), np.uint8), np.zeros((2, 2), np.uint8)) for i in range(3)]
    result = score(lambda image: image[..., 0], samples, ("a", "b"), on_image=lambda: told.append(1))
    assert len(told) == 3
    assert result.images == ("0", "1", "2")
    assert result.counts.shape == (3, 2, 2)


def test_the_interval_of_a_class_holds_its_estimate_and_is_none_where_it_never_occurs() -> None:
    rng = np.random.default_rng(3)
    counts = np.zeros((12, 3, 3), dtype=np.int64)
    counts[:, :2, :2] = rng.integers(1, 60, (12, 2, 2)) + 80 * np.eye(2, dtype=np.int64)
    result = Score(("a", "b", "absent"), tuple(map(str, range(12))), counts)
    intervals = result.interval_per_class()
    assert intervals["absent"] is None
    for name in ("a", "b"):
        low, high = intervals[name] or (1.0, 0.0)
        assert low < (result.iou_per_class[name] or 0.0) < high
