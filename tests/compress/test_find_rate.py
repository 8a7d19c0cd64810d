"""The learning-rate range test: what it reads from a curve of losses, and that it trains at the rates it reports."""

import json
import math
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from support.datasets import write_dataset
from support.fits import before_each_step

from benchmarks.report.rates import verdict
from compress.cli.main import main
from compress.rates import EXPLODED, RateTest, has_exploded, smoothed
from compress.recipe import Recipe
from compress.train import find_rate as module
from compress.train.find_rate import HIGHEST, LOWEST, STEPS, find_rate
from export.errors import WorkFailedError

SMALL = ["model.base=8", "model.depth=1", "train.batch_size=4", "train.precision=float32"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "discs", size=(24, 24))


def found(losses: list[float]) -> RateTest:
    return RateTest(data="", rates=tuple(10 ** (-6 + 0.1 * i) for i in range(len(losses))), losses=tuple(losses))


def test_the_rate_is_suggested_at_which_the_loss_falls_fastest() -> None:
    """The loss is a sigmoid of the logarithm of the rate, with its middle at 1e-3 and an explosion after it."""
    curve = [1 - 1 / (1 + math.exp(-(i - 30) / 2)) + (0.2 * (i - 50) if i > 50 else 0) for i in range(55)]
    test = found(curve)
    assert test.suggested is not None
    assert 1e-3 <= test.suggested < 5e-3  # smoothing lags by a few steps
    assert test.suggested < test.lowest <= test.rates[52]


def test_no_rate_is_suggested_at_which_training_is_unstable() -> None:
    """Beyond the lowest loss it jumps, and falls back faster than it ever fell before."""
    falling = [1 - 0.01 * i for i in range(40)]
    test = found([*falling, *[4.0] * 3, *[1.0] * 8])
    assert test.suggested is not None
    assert test.suggested < test.lowest <= test.rates[40]


@pytest.mark.parametrize("losses", [[1.0] * 40, [float(i) for i in range(40)], [3.0, 2.0, 1.0]])
def test_nothing_is_suggested_where_nothing_falls(losses: list[float]) -> None:
    assert found(losses).suggested is None


def test_smoothing_starts_at_the_first_loss_and_keeps_a_constant() -> None:
    assert smoothed([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
    assert smoothed([5.0])[0] == pytest.approx(5.0)


def test_an_explosion_is_seen_after_the_start() -> None:
    assert not has_exploded([1.0, 100.0])
    assert not has_exploded([1.0] * 30)
    assert has_exploded([*[1.0] * 20, *[EXPLODED * 50] * 3])


def test_it_trains_at_the_rates_that_it_names_until_the_loss_explodes(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    with before_each_step(lambda optimizer: rates.append(optimizer.param_groups[0]["lr"])):
        test = find_rate(data, Recipe.load(None, SMALL))
    assert rates == list(test.rates)
    assert rates[0] == LOWEST
    ratio = (HIGHEST / LOWEST) ** (1 / (STEPS - 1))
    assert [b / a for a, b in pairwise(rates)] == pytest.approx([ratio] * (len(rates) - 1))
    assert test.suggested is not None
    assert 1e-5 < test.suggested < test.lowest

    # A loss that is not finite ends it, too.
    monkeypatch.setattr(module, "LOWEST", 1e30)
    monkeypatch.setattr(module, "HIGHEST", 1e38)
    assert len(find_rate(data, Recipe.load(None, SMALL)).rates) < STEPS


def test_a_loss_that_is_no_number_from_the_start_is_told(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def part(logits, target): return logits.sum() * float('nan')\n")
    with pytest.raises(WorkFailedError, match=r"not finite at a learning rate of 1e-06, .* the rate is not the cause"):
        find_rate(data, Recipe.load(None, [*SMALL, f"train.loss.own={path}:part"]))


def test_beyond_the_last_rate_nothing_is_claimed() -> None:
    falls = [1 - 0.01 * i for i in range(60)]
    assert "no higher rate was tried" in verdict(found(falls))
    assert "beyond that it rises" in verdict(found([*falls, *[1.0] * 20]))


def test_the_command_writes_a_table_and_a_picture_and_no_network(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rates"
    arguments = ["compress", "train", "--data", str(data), "--out", str(out), "--find-lr", "--json"]
    monkeypatch.setattr(sys, "argv", [*arguments, *(word for setting in SMALL for word in ("--set", setting))])
    main_status = 0
    try:
        main()
    except SystemExit as left:
        main_status = int(left.code or 0)
    assert main_status == 0
    result = json.loads(capfd.readouterr().out)
    assert {path.name for path in out.iterdir()} == {"rates.json", "rates.md", "rates.png"}
    assert json.loads((out / "rates.json").read_text()) == result
    assert f"train.learning\\_rate={result['suggested']:g}" in (out / "rates.md").read_text()
    assert len(result["rates"]) == len(result["losses"])
