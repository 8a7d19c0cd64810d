"""ROC-AUC against torchmetrics, over several images, with void left out."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_auroc

from export.errors import ShapeError
from export.ranking import RankingScore

VOID = 255
CLASSES = ("a", "b", "c")


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([0.1, 1.0, 5.0]))
def test_it_is_torchmetrics(seed: int, sureness: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    score = RankingScore()
    truths, given = [], []
    for size in ((7, 9), (12, 5)):
        truth = torch.tensor([0, 1, 2, VOID])[torch.randint(4, size, generator=generator)]
        helped = torch.nn.functional.one_hot(truth.clamp(max=2), 3).permute(2, 0, 1)
        p = (sureness * (torch.randn(3, *size, generator=generator) + helped)).softmax(0)
        score.update(truth.to(torch.uint8).numpy(), p.numpy())
        truths.append(truth.flatten())
        given.append(p.flatten(1).T)
    expected = multiclass_auroc(torch.cat(given), torch.cat(truths), 3, average="none", ignore_index=VOID)
    assert list(score.auc_per_class(CLASSES).values()) == pytest.approx(expected.tolist(), abs=2e-3)
    assert score.auc(CLASSES) == pytest.approx(float(expected.mean()), abs=2e-3)


def test_equals_count_half_and_certainty_is_no_obstacle() -> None:
    truth = np.array([[0, 0, 1, 1]], dtype=np.uint8)
    for p, figure in (([0.5] * 4, 0.5), ([0.0, 0.0, 1.0, 1.0], 1.0), ([1.0, 1.0, 0.0, 0.0], 0.0)):
        one = np.array([p], dtype=np.float32)
        score = RankingScore()
        score.update(truth, np.stack([1 - one, one]))
        assert score.auc_per_class(("a", "b")) == {"a": figure, "b": figure}


def test_a_class_that_does_not_occur_has_no_figure() -> None:
    score = RankingScore()
    score.update(np.zeros((2, 2), dtype=np.uint8), np.full((2, 2, 2), 0.5, dtype=np.float32))
    assert score.auc_per_class(("a", "b")) == {"a": None, "b": None}
    assert score.auc(("a", "b")) is None


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ShapeError):
        RankingScore().update(np.zeros((2, 3), dtype=np.uint8), np.zeros((2, 3, 2), dtype=np.float32))
