"""The learning rate and the momentum of every step that an optimizer takes, against torch's own schedulers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.fits import Pixelwise, Splits, before_each_step, fit
from support.fits import splits as small_splits
from torch import nn
from torch.optim import lr_scheduler

EPOCHS, TOTAL, PEAK = 10, 20, 0.4


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    return small_splits(tmp_path_factory.mktemp("data") / "discs")


def taken(splits: Splits, folder: Path, **settings: Any) -> list[tuple[float, float]]:
    """Learning rate and first beta of each step."""
    seen: list[tuple[float, float]] = []

    def look(optimizer: torch.optim.Optimizer) -> None:
        group = optimizer.param_groups[0]
        seen.append((group["lr"], group["betas"][0]))

    with before_each_step(look):
        fit(Pixelwise(), splits, folder, epochs=EPOCHS, learning_rate=PEAK, validate_every=EPOCHS, **settings)
    assert len(seen) == TOTAL
    return seen


def adamw() -> torch.optim.AdamW:
    return torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=PEAK)


def expected(optimizer: torch.optim.Optimizer, scheduler: lr_scheduler.LRScheduler, steps: int) -> list[Any]:
    """What torch gives, step by step."""
    seen = []
    for step in range(steps):
        group = optimizer.param_groups[0]
        seen.append((group["lr"], group["betas"][0]))
        optimizer.step()
        if step < steps - 1:
            scheduler.step()
    return seen


def assert_same(seen: list[tuple[float, float]], known: list[Any], *, within: float = 1e-9) -> None:
    assert seen == [pytest.approx(pair, abs=within) for pair in known]


@pytest.mark.parametrize("warmup", [0.0, 0.25, 1.0])
def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine(splits: Splits, tmp_path: Path, warmup: float) -> None:
    seen = taken(splits, tmp_path / "fit", warmup=warmup)
    rise = max(1, round(TOTAL * warmup))
    optimizer = adamw()
    rising = lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / rise)
    assert_same(seen[:rise], expected(optimizer, rising, rise))
    optimizer = adamw()
    falling = lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, TOTAL - rise))
    assert_same(seen[rise:], expected(optimizer, falling, TOTAL - rise))
    assert max(rate for rate, _ in seen) == pytest.approx(PEAK)
    assert seen[0][0] > 0


@pytest.mark.parametrize("warmup", [0.3, 0.5, 0.8])
def test_one_cycle_is_torchs_with_the_momentum(splits: Splits, tmp_path: Path, warmup: float) -> None:
    schedule = {"kind": "onecycle", "momentum": (0.8, 0.9)}
    seen = taken(splits, tmp_path / "fit", warmup=warmup, schedule=schedule)
    optimizer = adamw()
    known = lr_scheduler.OneCycleLR(
        optimizer, PEAK, total_steps=TOTAL, pct_start=warmup, base_momentum=0.8, max_momentum=0.9
    )
    assert_same(seen, expected(optimizer, known, TOTAL), within=1e-6)


def test_one_cycle_without_a_rise_begins_at_the_peak(splits: Splits, tmp_path: Path) -> None:
    seen = taken(splits, tmp_path / "fit", warmup=0.0, schedule={"kind": "onecycle"})
    assert seen[0] == pytest.approx((PEAK, 0.85))
    assert seen[-1] == pytest.approx((PEAK / 25e4, 0.95))
    assert seen == sorted(seen, key=lambda pair: -pair[0])


@pytest.mark.parametrize("factor", [1, 2])
def test_warm_restarts_are_torchs(splits: Splits, tmp_path: Path, factor: int) -> None:
    schedule = {"kind": "restarts", "restart_epochs": 2, "restart_factor": factor}
    seen = taken(splits, tmp_path / "fit", warmup=0.2, schedule=schedule)
    assert [rate for rate, _ in seen[:4]] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    optimizer = adamw()
    known = lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=4, T_mult=factor)
    assert_same(seen[4:], expected(optimizer, known, TOTAL - 4))


def test_poly_is_torchs(splits: Splits, tmp_path: Path) -> None:
    seen = taken(splits, tmp_path / "fit", warmup=0.2, schedule={"kind": "poly", "power": 2.0})
    optimizer = adamw()
    known = lr_scheduler.PolynomialLR(optimizer, total_iters=TOTAL - 4, power=2.0)
    assert_same(seen[4:], expected(optimizer, known, TOTAL - 4))


def test_while_weights_are_averaged_the_rate_stays(splits: Splits, tmp_path: Path) -> None:
    seen = taken(splits, tmp_path / "fit", swa={"start": 0.7, "rate": 0.5})
    plain = taken(splits, tmp_path / "plain")
    assert seen[:14] == plain[:14]
    assert [rate for rate, _ in seen[14:]] == pytest.approx([PEAK / 2] * 6)
