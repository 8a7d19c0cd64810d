"""Training on a GPU: in every precision, killed and resumed, short of memory. What it leaves runs on a CPU."""

from pathlib import Path

import pytest
import torch
from support.fits import Killed, Splits, before_each_step, fit, kill_at, splits
from support.networks import random_network
from torch import Tensor, nn

from compress.settings.augment import AugmentSettings
from compress.train import state
from compress.train.objective import Teacher
from compress.train.precision import Precision

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CUDA = torch.device("cuda")
EVERYTHING = AugmentSettings(
    flip_vertical=0.5, quarter_turn=0.5, rotate_degrees=20, scale=(0.7, 1.5), brightness=0.2, contrast=0.2, gamma=0.3
)


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    return splits(tmp_path_factory.mktemp("data") / "discs", crop=(16, 16), device=CUDA)


def network() -> nn.Module:
    return random_network("unet", base=4, classes=2, dropout=0.1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_the_weights_that_are_kept_run_on_a_cpu(discs: Splits, tmp_path: Path, precision: Precision) -> None:
    trained = network()
    fitted = fit(
        trained, discs, tmp_path / "fit", precision=precision, device=CUDA, augment=EVERYTHING, epochs=30, ema_decay=0.8
    )
    assert {tensor.device.type for tensor in fitted.weights.values()} == {"cpu"}
    assert fitted.miou > 0.6
    assert fitted.throughput is not None
    trained.cpu().load_state_dict(fitted.weights)
    assert trained.eval()(torch.zeros(1, 1, 16, 16)).isfinite().all()


def test_a_killed_training_goes_on_where_it_was(
    discs: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(state, "SECONDS_BETWEEN_SAVES", 0.0)
    with before_each_step(kill_at(6)), pytest.raises(Killed):
        fit(network(), discs, tmp_path / "fit", precision="float16", device=CUDA)
    fitted = fit(network(), discs, tmp_path / "fit", precision="float16", device=CUDA)
    assert len(fitted.history) == 4
    assert "continuing after epoch" in capsys.readouterr().err


class Hungry(nn.Module):
    """Asks for more memory than any GPU has when it sees more than two images at once."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        if len(image) > 2:
            torch.empty(2**55, dtype=torch.uint8, device=image.device)
        logits: Tensor = self.body(image)
        return logits


def test_what_does_not_fit_into_its_memory_is_taken_in_parts(
    discs: Splits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = Teacher(network().eval(), weight=0.5, temperature=2.0)
    fitted = fit(Hungry(), discs, tmp_path / "fit", precision="bfloat16", device=CUDA, teacher=teacher)
    assert len(fitted.history) == 4
    assert "out of memory with 4 images of 16x16 at once; from here on 2 at a time" in capsys.readouterr().err
