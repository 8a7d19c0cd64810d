"""A killed and resumed training ends, to the last bit, like an uninterrupted one, wherever the kill came."""

import copy
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fits import CPU, Killed, OnAnEncoder, Pixelwise, Splits, before_each_step, fit, kill_at, splits
from support.networks import random_network
from torch import nn

from compress.settings.augment import AugmentSettings
from compress.train import state
from compress.train.loop import Fitted

STEPS = 8
"""Four epochs of two steps."""
EVERYTHING = AugmentSettings(
    **{"flip_vertical": 0.5, "quarter_turn": 0.5, "rotate_degrees": 20, "shear_degrees": 5, "scale": (0.7, 1.5)},
    **{"brightness": 0.2, "contrast": 0.2, "gamma": 0.3, "noise": 0.1, "cutout": 0.5, "cutmix": 0.5, "mixup": 0.5},
    policy="trivial",
)


@pytest.fixture(scope="module")
def cropped(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    return splits(tmp_path_factory.mktemp("data") / "discs", crop=(16, 16))


@pytest.fixture(autouse=True)
def _saved_after_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "SECONDS_BETWEEN_SAVES", 0.0)
    monkeypatch.setattr(state, "SHARE_OF_THE_TIME", math.inf)


def network() -> nn.Module:
    """With dropout and stochastic depth, so that the network's own randomness is tested as well."""
    return random_network("unet", base=4, classes=2, dropout=0.3, block="residual", stochastic_depth=0.3)


Kill = Callable[[], AbstractContextManager[None]]


def killed_at(step: int) -> AbstractContextManager[None]:
    """Kill between the gradients of a step and the optimizer's update."""
    return before_each_step(kill_at(step))


@contextmanager
def killed_in_validation(forward: int) -> Iterator[None]:
    """Kill at the forward pass of this number through a UNet in eval mode."""
    passes = 0

    def hook(module: nn.Module, _: Any) -> None:
        nonlocal passes
        passes += module.__class__.__name__ == "UNet" and not module.training
        if passes == forward:
            raise Killed

    handle = nn.modules.module.register_module_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def killed_while_saving(save: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kill when half of the state is written, as in a power cut."""
    whole, saves = Path.replace, 0

    def replace(self: Path, target: Path) -> Path:
        nonlocal saves
        saves += target.name == state.STATE
        if saves == save:
            self.write_bytes(self.read_bytes()[: self.stat().st_size // 2])
            raise Killed
        return whole(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        yield


def everything(folder: Path, fitted: Fitted) -> dict[str, Any]:
    """All that a training leaves, as plain values and tensors."""
    saved = torch.load(folder / state.STATE, weights_only=True)
    return {"weights": fitted.weights, "history": fitted.history, "best": (fitted.miou, fitted.best_epoch), **saved}


def assert_same_bits(one: Any, other: Any, where: str = "") -> None:
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same_bits(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same_bits(*pair, f"{where}[{index}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "averaging": {"swa": {"start": 0.5}, "schedule": {"kind": "onecycle"}, "warmup": 0.3},
}


@pytest.mark.parametrize(
    ("precision", "recipe"),
    [("float32", "plain"), ("bfloat16", "plain"), ("float16", "plain"), ("float32", "averaging")],
)
def test_killed_at_any_moment_it_ends_with_the_same_bits(
    cropped: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Any, recipe: str
) -> None:
    start = network()

    def run(folder: str) -> Fitted:
        chosen: dict[str, Any] = {"learning_rate": 0.01, "save_every": 3, "augment": EVERYTHING, **RECIPES[recipe]}
        return fit(copy.deepcopy(start), cropped, tmp_path / folder, precision=precision, **chosen)

    def again_and_again(folder: str, kills: list[Kill]) -> Fitted:
        for kill in kills:
            with kill(), pytest.raises(Killed):
                run(folder)
        return run(folder)

    whole = everything(tmp_path / "whole", run("whole"))
    steps = random.Random(0).sample(range(1, STEPS), 3)  # in float16 the first step of all is skipped
    cases: dict[str, list[Kill]] = {
        **{f"step-{step}": [partial(killed_at, step)] for step in steps},
        "validation": [partial(killed_in_validation, 1), partial(killed_in_validation, 2)],
        "saving": [partial(killed_while_saving, 3, monkeypatch), partial(killed_at, 2)],
    }
    for name, kills in cases.items():
        resumed = again_and_again(name, kills)
        assert_same_bits(everything(tmp_path / name, resumed), whole, name)
        for checkpoint in ("last", "epoch-0003"):
            files = [(tmp_path / where / checkpoint / "weights.safetensors").read_bytes() for where in (name, "whole")]
            assert files[0] == files[1]


@pytest.mark.parametrize(("step", "learnt"), [(3, 1), (4, 2), (5, 2), (6, 3), (7, 3), (8, 4)])
def test_killed_while_an_encoder_wakes_it_ends_with_the_same_bits(
    cropped: Splits, tmp_path: Path, step: int, learnt: int
) -> None:
    """The head learns alone for an epoch, then one more of the three stages in each epoch. At the kill, and in what a
    resumed training finds, `learnt` of these four parts have learnt something."""
    torch.manual_seed(0)
    start = OnAnEncoder()

    def run(folder: str) -> Fitted:
        waking: dict[str, Any] = {"freeze": {"epochs": 1, "stage_epochs": 1}, "encoder_rate": 0.5, "layer_decay": 0.5}
        return fit(copy.deepcopy(start), cropped, tmp_path / folder, augment=EVERYTHING, **waking)

    whole = everything(tmp_path / "whole", run("whole"))
    with killed_at(step), pytest.raises(Killed):
        run("killed")
    saved = torch.load(tmp_path / "killed" / state.STATE, weights_only=True)
    assert len(saved["stepper"]["optimizer"]["state"]) == 2 + 4 * (learnt - 1)  # 2 of the head, 4 of each stage
    assert saved["progress"]["epoch"] == (step - 1) // 2
    assert_same_bits(everything(tmp_path / "killed", run("killed")), whole)


def test_a_run_that_goes_on_takes_only_the_steps_that_were_left(cropped: Splits, tmp_path: Path) -> None:
    steps: list[int] = []
    with before_each_step(kill_at(6)), pytest.raises(Killed):
        fit(network(), cropped, tmp_path / "fit")
    with before_each_step(lambda _: steps.append(1)):
        fit(network(), cropped, tmp_path / "fit")
    assert len(steps) == STEPS - 5


def test_a_finished_training_is_not_run_again(cropped: Splits, tmp_path: Path) -> None:
    first = fit(Pixelwise(), cropped, tmp_path / "fit")
    with before_each_step(kill_at(1)):
        again = fit(Pixelwise(), cropped, tmp_path / "fit")
    assert again.history == first.history
    assert_same_bits(again.weights, first.weights)


def test_the_state_is_plain_data(cropped: Splits, tmp_path: Path) -> None:
    fit(Pixelwise(), cropped, tmp_path / "fit", precision="float16")
    saved = torch.load(tmp_path / "fit" / state.STATE, map_location=CPU, weights_only=True)
    assert saved["progress"]["epoch"] == 4
    assert saved["stepper"]["scaler"]["scale"] > 0


def test_saving_takes_its_share_of_the_time_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: seconds[0])
    monkeypatch.setattr(state, "SHARE_OF_THE_TIME", 0.1)

    def slow(path: Path, content: bytes) -> None:
        seconds[0] += 3.0

    monkeypatch.setattr(state, "write_atomic", slow)
    file = state.StateFile(tmp_path)
    seconds[0] += 0.1
    assert file.is_due()
    file.save({})
    seconds[0] += 29.0
    assert not file.is_due()
    seconds[0] += 2.0
    assert file.is_due()
