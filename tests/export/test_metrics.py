"""The figures of a confusion matrix against torchmetrics, with missing classes, too."""

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_jaccard_index,
    multiclass_precision,
    multiclass_recall,
)

from export.images import U8
from export.metrics import Metrics, accuracy_of, dice_of, iou_of, mean_iou, precision_of, recall_of
from export.scoring import VOID, ConfusionMatrix

Figure = Callable[[NDArray[np.int64]], NDArray[np.float64]]

FIGURES: dict[str, tuple[Figure, Callable[..., torch.Tensor]]] = {
    "iou": (iou_of, multiclass_jaccard_index),
    "dice": (dice_of, multiclass_f1_score),
    "precision": (precision_of, multiclass_precision),
    "recall": (recall_of, multiclass_recall),
}
MEANS = {"iou": "miou", "dice": "f1", "precision": "precision", "recall": "recall"}


@st.composite
def masks(draw: st.DrawFn) -> tuple[int, U8, U8]:
    """Number of classes, truth with void, prediction; often some classes are missing from one mask or from both."""
    classes = draw(st.integers(2, 6))
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=9))
    some = st.sets(st.integers(0, classes - 1), min_size=1)
    truth = draw(hnp.arrays(np.uint8, shape, elements=st.sampled_from([*sorted(draw(some)), VOID])))
    return classes, truth, draw(hnp.arrays(np.uint8, shape, elements=st.sampled_from(sorted(draw(some)))))


def metrics_of(classes: int, truth: U8, prediction: U8) -> Metrics:
    matrix = ConfusionMatrix(classes)
    matrix.update(truth, prediction)
    return Metrics(tuple(f"class{k}" for k in range(classes)), matrix.counts)


@settings(max_examples=80)
@given(masks())
def test_every_figure_is_torchmetrics(case: tuple[int, U8, U8]) -> None:
    classes, truth, prediction = case
    metrics = metrics_of(*case)
    tree = metrics.as_tree()
    guess, target = (torch.from_numpy(mask.astype(np.int64)) for mask in (prediction, truth))
    confusion = multiclass_confusion_matrix(guess, target, classes, ignore_index=VOID).numpy()
    np.testing.assert_array_equal(tree["confusion"], confusion)
    occurs = confusion.sum(0) + confusion.sum(1) > 0
    if not occurs.any():
        assert {tree[key] for key in ("miou", "accuracy", "precision", "recall", "f1")} == {None}
        return
    accuracy = multiclass_accuracy(guess, target, classes, average="micro", ignore_index=VOID)
    assert tree["accuracy"] == pytest.approx(float(accuracy), rel=1e-6)
    for name, (figure, oracle) in FIGURES.items():
        expected = oracle(guess, target, classes, average="none", ignore_index=VOID).numpy()
        np.testing.assert_allclose(figure(metrics.confusion)[occurs], expected[occurs], rtol=1e-6, err_msg=name)
        named = tree[f"{name}_per_class"]
        assert list(named) == list(metrics.classes)
        assert [named[f"class{k}"] is not None for k in range(classes)] == occurs.tolist()
        mean = oracle(guess, target, classes, average="macro", ignore_index=VOID)
        assert tree[MEANS[name]] == pytest.approx(float(mean), rel=1e-6), name


def test_missing_classes_follow_one_rule() -> None:
    """Class 1 is never predicted, class 2 is only predicted, class 3 is predicted only for void."""
    tree = metrics_of(4, np.array([[0, 0, 1, VOID]], np.uint8), np.array([[0, 2, 0, 3]], np.uint8)).as_tree()
    half, third = 0.5, pytest.approx(1 / 3)
    assert tree["iou_per_class"] == {"class0": third, "class1": 0, "class2": 0, "class3": None}
    for name in ("dice", "precision", "recall"):
        assert tree[f"{name}_per_class"] == {"class0": half, "class1": 0, "class2": 0, "class3": None}
    assert tree["miou"] == pytest.approx(1 / 9)
    assert tree["accuracy"] == third


@given(masks())
def test_figures_are_plain_json(case: tuple[int, U8, U8]) -> None:
    tree = metrics_of(*case).as_tree()
    assert json.loads(json.dumps(tree, allow_nan=False)) == tree


@pytest.mark.parametrize("figure", [iou_of, dice_of, precision_of, recall_of, accuracy_of, mean_iou])
@settings(max_examples=30)
@given(counts=hnp.arrays(np.int64, (3, 4, 4), elements=st.sampled_from([0, 0, 1, 7, 2**40])))
def test_many_matrices_at_once_are_each_alone(figure: Figure, counts: NDArray[np.int64]) -> None:
    np.testing.assert_array_equal(figure(counts), [figure(one) for one in counts])
