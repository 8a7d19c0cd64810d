"""A batch that does not fit into memory is taken in parts, and the parts add up to it."""

import copy
import math
from pathlib import Path

import pytest
import torch
from support.fits import Killed, Splits, before_each_step, fit, kill_at
from support.fits import splits as small_splits
from torch import Tensor, nn

from compress.settings.fit import LossSettings
from compress.train import state
from compress.train.batchnorm import reestimate
from compress.train.objective import Teacher
from export.errors import UsageError, WorkFailedError

PIXELS = LossSettings(dice_weight=0.0)


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    """Images of several sizes, so that those of a batch have different shares of void."""
    return small_splits(tmp_path_factory.mktemp("data") / "discs", size=[(24, 24), (9, 20), (16, 10)])


class Hungry(nn.Module):
    """Allocates more memory than any machine has when it sees more than `most` images at once, or more than
    `most_validated` in validation."""

    def __init__(self, most: int, *, most_validated: int = 8, norm: bool = False, words: str | None = None) -> None:
        """`words` is the error message of an allocator other than the CPU's."""
        super().__init__()
        self.words = words
        self.most = most
        self.most_validated = most_validated
        self.norm = nn.BatchNorm2d(1) if norm else nn.Identity()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 2, 1))

    def forward(self, image: Tensor) -> Tensor:
        image = self.norm(image)
        if len(image) > (self.most if self.training else self.most_validated):
            if self.words is not None:
                raise RuntimeError(self.words)
            torch.empty(2**55, dtype=torch.uint8)
        logits: Tensor = self.body(image)
        return logits


class Pooled(nn.Module):
    """A BatchNorm behind a global pooling, as in the image branch of an ASPP."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(1))
        self.body = nn.Conv2d(1, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.body(image + self.pool(image))
        return logits


def test_a_pooled_batchnorm_takes_two_images_at_once(splits: Splits, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"sees a single value of each channel.*batch_size, micro_batch"):
        fit(Pooled(), splits, tmp_path / "one", micro_batch=1)
    with pytest.raises(UsageError, match="sees a single value of each channel"):
        reestimate(Pooled(), splits[0], batches=1, batch_size=1)
    fit(Pooled(), splits, tmp_path / "two", micro_batch=2)


def first_gradient(
    start: nn.Module, splits: Splits, folder: Path, most: int, loss: LossSettings, micro_batch: int | None = None
) -> Tensor:
    """The gradient of the first step, as the optimizer gets it."""
    network = copy.deepcopy(start)
    network.most = most  # type: ignore[assignment]
    gradients: list[Tensor] = []

    def look(optimizer: torch.optim.Optimizer) -> None:
        gradients.append(torch.cat([p.grad.flatten() for g in optimizer.param_groups for p in g["params"]]))

    teacher = Teacher(copy.deepcopy(start).eval(), 0.3, 2.0)
    with before_each_step(look):
        fit(
            network,
            splits,
            folder,
            epochs=1,
            batch_size=7,
            micro_batch=micro_batch,
            clip_norm=1e9,
            loss=loss,
            teacher=teacher,
        )
    return gradients[0]


@pytest.mark.parametrize("weights", ["equal", "balanced", (0.0, 3.0)])
@pytest.mark.parametrize("most", [1, 2, 3])
def test_the_gradients_of_the_parts_add_up_to_that_of_the_batch(
    splits: Splits, tmp_path: Path, most: int, weights: str | tuple[float, ...]
) -> None:
    torch.manual_seed(0)
    start = Hungry(7)
    loss = PIXELS.model_validate({**PIXELS.model_dump(), "class_weights": weights})
    whole = first_gradient(start, splits, tmp_path / "whole", 7, loss)
    parts = first_gradient(start, splits, tmp_path / "parts", most, loss)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-7)
    assert whole.abs().max() > 1e-3


@pytest.mark.parametrize("micro_batch", [1, 3, 7])
def test_a_batch_may_be_taken_in_parts_from_the_start(
    splits: Splits, tmp_path: Path, micro_batch: int, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    start = Hungry(7)
    whole = first_gradient(start, splits, tmp_path / "whole", 7, PIXELS)
    seen: list[int] = []
    start.register_forward_pre_hook(lambda module, images: seen.append(len(images[0])) if module.training else None)
    # It would run out of memory if it ever saw more.
    parts = first_gradient(start, splits, tmp_path / "parts", micro_batch, PIXELS, micro_batch)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-7)
    assert max(seen) == micro_batch
    assert "out of memory" not in capfd.readouterr().err


def test_memory_that_is_short_is_said_once_and_remembered(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(state, "SECONDS_BETWEEN_SAVES", 0.0)
    monkeypatch.setattr(state, "SHARE_OF_THE_TIME", float("inf"))
    with before_each_step(kill_at(3)), pytest.raises(Killed):
        fit(Hungry(1), splits, tmp_path / "fit")
    said = [line for line in capfd.readouterr().err.splitlines() if "out of memory" in line]
    assert [line.split(" at once")[0].split("with ")[1].split(" of ")[0] for line in said] == ["4 images", "2 images"]
    assert "1 at a time, the gradients of 4 passes added up" in said[1]
    fitted = fit(Hungry(1), splits, tmp_path / "fit")
    assert "out of memory" not in capfd.readouterr().err
    assert len(fitted.history) == 4


@pytest.mark.parametrize(
    "words",
    [
        "MPS backend out of memory (MPS allocated: 17.98 GB, other allocations: 1.02 GB, max allowed: 18.13 GB)",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "std::bad_alloc",
    ],
)
def test_a_lack_of_memory_is_known_by_the_words_of_whoever_lacks_it(
    splits: Splits, tmp_path: Path, capfd: pytest.CaptureFixture[str], words: str
) -> None:
    fitted = fit(Hungry(2, words=words), splits, tmp_path / "fit", epochs=1)
    assert "from here on 2 at a time" in capfd.readouterr().err
    assert math.isfinite(fitted.history[0]["loss"])


def test_a_pass_that_failed_leaves_no_statistics(splits: Splits, tmp_path: Path) -> None:
    network = Hungry(2, norm=True)
    with before_each_step(kill_at(1)), pytest.raises(Killed):
        fit(network, splits, tmp_path / "fit")
    assert network.get_buffer("norm.num_batches_tracked") == 2


def test_one_image_that_does_not_fit_ends_the_run(splits: Splits, tmp_path: Path) -> None:
    with pytest.raises(WorkFailedError, match=r"single image of \d+x\d+; set a smaller data\.crop"):
        fit(Hungry(0), splits, tmp_path / "fit")


def test_validation_takes_fewer_images_at_once_and_finds_the_same(splits: Splits, tmp_path: Path) -> None:
    start = Hungry(7)
    whole, parts = copy.deepcopy(start), copy.deepcopy(start)
    parts.most_validated = 1
    histories = [fit(each, splits, tmp_path / name).history for each, name in ((whole, "whole"), (parts, "parts"))]
    assert histories[0] == histories[1]
    with pytest.raises(WorkFailedError, match=r"validating a single image of \d+x\d+, .* smaller data\.size"):
        fit(Hungry(7, most_validated=0), splits, tmp_path / "none")


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_statistics_of_averaged_weights_are_taken_with_as_few_images_as_the_steps(
    splits: Splits, tmp_path: Path, micro_batch: int | None
) -> None:
    """This comes at the very end, when all of the training is done."""
    network = Hungry(2, norm=True)
    seen: list[int] = []
    # The average is a copy, which is in training mode only while its statistics are taken.
    network.register_forward_pre_hook(
        lambda module, given: seen.append(len(given[0])) if module.training and module is not network else None
    )
    fit(network, splits, tmp_path / "fit", swa={"start": 0.5}, micro_batch=micro_batch)
    assert set(seen) == {2}


def test_statistics_are_taken_with_as_many_images_at_once_as_fit(splits: Splits) -> None:
    roomy, short = Hungry(8, norm=True), Hungry(2, norm=True)
    reestimate(roomy, splits[0], at_once=2)
    reestimate(short, splits[0])
    found, expected = (dict(network.norm.named_buffers()) for network in (short, roomy))
    torch.testing.assert_close(found, expected)
    with pytest.raises(WorkFailedError, match=r"single image while recomputing BatchNorm's .* smaller data\.crop"):
        reestimate(Hungry(0, norm=True), splits[0])


def test_an_optimizer_without_memory_ends_the_run(splits: Splits, tmp_path: Path) -> None:
    def hungry(_: torch.optim.Optimizer) -> None:
        torch.empty(2**55, dtype=torch.uint8)

    with before_each_step(hungry), pytest.raises(WorkFailedError, match=r"in the optimizer, .* smaller model\.base"):
        fit(Hungry(7), splits, tmp_path / "fit")


def test_other_errors_are_not_taken_for_a_lack_of_memory(splits: Splits, tmp_path: Path) -> None:
    network = Hungry(8)
    network.body = nn.Conv2d(3, 2, 1)  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="expected input"):
        fit(network, splits, tmp_path / "fit")
