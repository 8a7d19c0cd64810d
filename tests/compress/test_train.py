"""`train`: a dataset folder becomes a checkpoint, from scratch or from given weights."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import write_checkpoint
from support.datasets import write_dataset
from support.fits import before_each_step
from support.networks import random_unet
from torch import Tensor

from compress import checkpoint
from compress.anymodel import evaluate
from compress.checkpoint import Checkpoint
from compress.models.plan import GroupCut, PruningPlan
from compress.recipe import Recipe
from compress.steps import read_record
from compress.train import train
from compress.train.clock import Throughput
from export.errors import CheckpointError, DatasetError, ImageError, RecipeError, UsageError, WorkFailedError
from export.files import sha256_file
from export.images import encode_mask

TWO_CLASSES = ("background", "disc")
QUICK = ["model.base=8", "model.depth=2", "train.epochs=2", "train.batch_size=4", "train.precision=float32"]
# Steps so small that the weights stay as they were at the start, but for the last bits.
STANDING = [*QUICK, "train.epochs=1", "train.learning_rate=1e-12", "train.weight_decay=0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "discs", size=(24, 32))


def recipe(*settings: str) -> Recipe:
    return Recipe.load(None, [*QUICK, *settings])


def kernels(made: Checkpoint) -> dict[str, Tensor]:
    return {name: t for name, t in load_file(made.path / "weights.safetensors").items() if t.ndim == 4}


def test_a_checkpoint_says_what_it_is(data: Path, tmp_path: Path) -> None:
    made = train(data, tmp_path / "out", recipe("data.size=[24, 40]", "model.skip=add"))
    assert made.card.classes == TWO_CLASSES
    assert made.card.arguments == {
        "channels": 1,
        "classes": 2,
        "base": 8,
        "depth": 2,
        "upsampling": "nearest",
        "skip": "add",
        "block": "plain",
        "squeeze_excite": False,
        "dropout": 0.0,
        "stochastic_depth": 0.0,
        "bottleneck_attention": False,
    }
    assert (made.card.channels, made.card.size, made.card.size_multiple) == (1, (24, 40), 4)
    record = read_record(made.path)
    assert record is not None
    assert record["result"].keys() >= {"miou", "best_epoch"}
    assert record["result"]["miou"] == made.card.miou_val
    assert made.card.parents == record["inputs"]
    assert record["settings"]["train"]["epochs"] == 2
    assert "path" not in record["settings"]["data"]


def test_the_same_settings_give_the_same_bits_and_another_seed_does_not(data: Path, tmp_path: Path) -> None:
    one, same = (train(data, tmp_path / name, recipe()) for name in ("one", "same"))
    assert one.weights_sha256 == same.weights_sha256
    assert train(data, tmp_path / "other", recipe("train.seed=1")).weights_sha256 != one.weights_sha256


def test_what_is_up_to_date_is_not_trained_again(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = train(data, tmp_path / "out", recipe())
    before = made.path.stat().st_mtime_ns
    again = train(data, tmp_path / "out", recipe())
    assert again.weights_sha256 == made.weights_sha256
    assert again.path.stat().st_mtime_ns == before
    assert "is up to date" in capfd.readouterr().err
    assert train(data, tmp_path / "out", recipe("train.epochs=1")).path.stat().st_mtime_ns != before


def as_folder(state: dict[str, Tensor], path: Path) -> Path:
    network = random_unet(base=8, depth=2, classes=2)
    network.load_state_dict(state)
    return write_checkpoint(path / "ckpt", network, base=8, depth=2, classes=2).path


def as_safetensors(state: dict[str, Tensor], path: Path) -> Path:
    save_file(state, path / "w.safetensors")
    return path / "w.safetensors"


def as_pt(state: dict[str, Tensor], path: Path) -> Path:
    torch.save(state, path / "w.pt")
    return path / "w.pt"


def as_nested_pt(state: dict[str, Tensor], path: Path) -> Path:
    torch.save({"epoch": 3, "state_dict": state}, path / "w.pth")
    return path / "w.pth"


@pytest.mark.parametrize("write", [as_folder, as_safetensors, as_pt, as_nested_pt])
def test_training_starts_from_weights_that_are_given(
    data: Path, tmp_path: Path, write: Callable[[dict[str, Tensor], Path], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    start = random_unet(7, base=8, depth=2, classes=2).state_dict()
    init = write(start, tmp_path)
    made = train(data, tmp_path / "out", recipe(*STANDING), init=init)
    for name, tensor in kernels(made).items():
        torch.testing.assert_close(tensor, start[name], msg=name)
    assert f"starting from {init}\n" in capfd.readouterr().err
    assert made.card.parents["init"] == sha256_file(init / "weights.safetensors" if init.is_dir() else init)


def test_other_classes_start_with_a_fresh_head_that_is_named(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    start = random_unet(7, base=8, depth=2, classes=5)
    init = write_checkpoint(tmp_path / "five", start, base=8, depth=2, classes=5, class_names=tuple("abcd")).path
    made = train(data, tmp_path / "out", recipe(*STANDING), init=init)
    assert f"starting from {init}; fresh: head.bias, head.weight" in capfd.readouterr().err
    for name, tensor in kernels(made).items():
        if name == "head.weight":
            assert tensor.shape == (2, 8, 1, 1)
        else:
            torch.testing.assert_close(tensor, start.state_dict()[name])


def test_a_pruned_checkpoint_is_no_start_for_a_whole_network(data: Path, tmp_path: Path) -> None:
    """Otherwise most of its weights would be loaded, and the rest start fresh."""
    plan = PruningPlan(cuts=(GroupCut(layer="stem.0", width=8, remove=(3,)),))
    sizes: dict[str, Any] = {"channels": 1, "base": 8, "depth": 2, "classes": 2}
    network = plan.apply(random_unet(**sizes), channels=1)
    cut = write_checkpoint(tmp_path / "cut", network, pruning=(plan,), **sizes).path
    with pytest.raises(CheckpointError, match="it was pruned, and training needs a whole network"):
        train(data, tmp_path / "out", recipe(), init=cut)
    assert not (tmp_path / "out").exists()


class Malicious:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def a_pickle_that_runs_code(path: Path) -> None:
    path.write_bytes(pickle.dumps({"stem.0.weight": Malicious(path.with_name("executed"))}))


def a_saved_module(path: Path) -> None:
    torch.save(random_unet(), path)


def a_saved_module_that_runs_code(path: Path) -> None:
    torch.save({"state_dict": Malicious(path.with_name("executed"))}, path)


def noise(path: Path) -> None:
    path.write_bytes(os.urandom(300))


def nothing(path: Path) -> None:
    path.touch()


def a_list(path: Path) -> None:
    torch.save([torch.zeros(1)], path)


def a_dict_of_numbers(path: Path) -> None:
    torch.save({"epoch": 3}, path)


def a_folder_of_photographs(path: Path) -> None:
    path.mkdir()
    (path / "cat.jpg").touch()


def of_another_network(path: Path) -> None:
    torch.save({f"conv{i}.weight": torch.zeros(3, 3) for i in range(4)}, path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "make",
    [
        a_pickle_that_runs_code,
        a_saved_module,
        a_saved_module_that_runs_code,
        noise,
        nothing,
        a_list,
        a_dict_of_numbers,
        a_folder_of_photographs,
        of_another_network,
    ],
)
def test_weights_that_are_none_are_refused_and_never_unpickled(
    data: Path, tmp_path: Path, make: Callable[[Path], None], suffix: str
) -> None:
    init = tmp_path / f"weights{suffix}"
    make(init)
    with pytest.raises(CheckpointError) as caught:
        train(data, tmp_path / "out", recipe(), init=init)
    assert str(init) in str(caught.value)
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_there(data: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.pt: (.|\n)*no such checkpoint folder or weights file"):
        train(data, tmp_path / "out", recipe(), init=tmp_path / "gone.pt")


def test_a_teacher_is_followed_as_far_as_its_weight_says(data: Path, tmp_path: Path) -> None:
    # Deeper than the student: images are padded to fit both.
    network = random_unet(depth=3, channels=1, classes=2)
    teacher = write_checkpoint(
        tmp_path / "teacher", network, depth=3, channels=1, classes=2, class_names=TWO_CLASSES
    ).path
    alone = train(data, tmp_path / "alone", recipe())
    ignored = train(data, tmp_path / "ignored", recipe("train.teacher_weight=0"), teacher=teacher)
    followed = train(data, tmp_path / "followed", recipe("train.teacher_weight=1.0"), teacher=teacher)
    assert all(torch.equal(kernel, kernels(ignored)[name]) for name, kernel in kernels(alone).items())
    assert not all(torch.equal(kernel, kernels(followed)[name]) for name, kernel in kernels(alone).items())
    assert followed.card.parents["teacher"] == checkpoint.load(teacher).weights_sha256
    assert followed.card.size_multiple == 4


def test_beside_a_teacher_a_network_is_validated_as_it_is_evaluated(tmp_path: Path) -> None:
    """The teacher's larger multiple pads the images of training alone."""
    data = write_dataset(tmp_path / "data", size=(36, 44))
    network = random_unet(depth=4, channels=1, classes=2)
    teacher = write_checkpoint(tmp_path / "t", network, depth=4, channels=1, classes=2, class_names=TWO_CLASSES).path
    made = train(data, tmp_path / "out", recipe(), teacher=teacher)
    assert made.card.miou_val == evaluate(made.path, data, split="val").miou


def test_what_needs_a_teacher_or_an_encoder_is_told(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = ("train.temperature=3", "train.teacher_weight=0.2", "train.encoder_rate=0.5", "train.epochs=1")
    train(data, tmp_path / "out", recipe(*asked))
    said = capfd.readouterr().err
    for name in ("temperature", "teacher_weight"):
        assert f"train.{name} has no effect without a teacher (--teacher)" in said
    assert "train.encoder_rate has no effect without a pretrained encoder" in said


def test_a_teacher_of_something_else_is_refused(data: Path, tmp_path: Path) -> None:
    others = write_checkpoint(tmp_path / "others", random_unet(classes=3), classes=3).path
    with pytest.raises(DatasetError, match="its classes are"):
        train(data, tmp_path / "out", recipe(), teacher=others)
    colour = random_unet(channels=3, classes=2)
    coloured = write_checkpoint(tmp_path / "colour", colour, channels=3, classes=2, class_names=TWO_CLASSES).path
    with pytest.raises(CheckpointError, match="it needs images of 3 channels, and those of the data have 1"):
        train(data, tmp_path / "out", recipe(), teacher=coloured)
    assert not (tmp_path / ".out.partial").exists()


def test_a_checkpoint_is_not_trained_over_itself(data: Path, tmp_path: Path) -> None:
    made = train(data, tmp_path / "out", recipe())
    with pytest.raises(UsageError, match="would be replaced"):
        train(data, tmp_path / "out", recipe("train.epochs=1"), init=made.path)
    assert checkpoint.load(made.path).weights_sha256 == made.weights_sha256


def test_a_loss_that_explodes_is_told(data: Path, tmp_path: Path) -> None:
    with pytest.raises(WorkFailedError, match=r"not finite in 5 steps in a row, last for 000"):
        train(data, tmp_path / "out", recipe("train.loss.dice_weight=1e300", "train.epochs=20"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        (["data.crop=[2, 64]"], RecipeError, "is too small: the model reduces 4 pixels to one"),
        (["train.device=abacus"], UsageError, "train.device = 'abacus' is not available"),
        (["data.crop=[4, 4]"], RecipeError, "reduces 4 pixels to one"),
    ],
)
def test_settings_that_cannot_be_trained_with(
    data: Path, tmp_path: Path, settings: list[str], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        train(data, tmp_path / "out", recipe(*settings))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("size", "settings", "refused"),
    [
        ((8, 8), [], "[8, 8]"),
        ((24, 24), ["data.size=[4, 8]"], "[4, 8]"),
        ((8, 7), ["data.crop=[32, 32]"], "[8, 7]"),
        ([(24, 24), (6, 8)], ["train.batch_size=1"], "[6, 8]"),
        ([(24, 24), (6, 8)], [], None),
        ([(24, 24), (6, 8)], ["train.batch_size=2", "train.micro_batch=1"], "[6, 8]"),
        ([(24, 24), (6, 8)], ["train.batch_size=3", "train.micro_batch=2"], "[6, 8]"),
        ([(24, 24), (6, 8)], ["train.batch_size=8", "train.micro_batch=1"], None),
        ((8, 9), [], None),
    ],
)
def test_images_of_which_one_pixel_is_left_cannot_be_trained_with(
    tmp_path: Path, size: Any, settings: list[str], refused: str | None
) -> None:
    data = write_dataset(tmp_path / "data", size=size)
    chosen = recipe("model.depth=3", "train.epochs=1", *settings)
    if refused is None:
        train(data, tmp_path / "out", chosen)
        return
    with pytest.raises(RecipeError) as caught:
        train(data, tmp_path / "out", chosen)
    assert f"{refused} is too small: the model reduces 8 pixels to one" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_training_says_what_it_keeps_in_memory(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    kept = train(data, tmp_path / "kept", recipe())
    assert "training images: 8 of 8 images are kept decoded in memory\n" in capfd.readouterr().err
    read = train(data, tmp_path / "read", recipe("data.cache_gb=0"))
    said = capfd.readouterr().err
    assert "training images: 0 of 8 images are kept decoded in memory; the others are read" in said
    assert "validation images: 0 of 4 images are kept decoded in memory; the others are read" in said
    assert read.weights_sha256 == kept.weights_sha256


def test_a_file_that_goes_away_meanwhile_costs_no_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"SECONDS_BETWEEN_SAVES": 0.0, "SHARE_OF_THE_TIME": float("inf")}.items():
        monkeypatch.setattr(f"compress.train.state.{name}", value)
    images, away = data / "train" / "images", tmp_path / "away"
    steps: list[int] = []

    def take_away(_: torch.optim.Optimizer) -> None:
        steps.append(1)
        if len(steps) == 3:
            images.rename(away)

    read = recipe("data.cache_gb=0", "train.epochs=4")
    with before_each_step(take_away), pytest.raises(ImageError, match="no such file"):
        train(data, tmp_path / "out", read)
    taken = len(steps)
    away.rename(images)
    with before_each_step(lambda _: steps.append(1)):
        made = train(data, tmp_path / "out", read)
    assert len(steps) == 8  # none of them was taken twice
    assert 3 <= taken < 8
    assert made.weights_sha256 == train(data, tmp_path / "whole", read).weights_sha256


def mostly_void(path: Path, *, counted: int) -> Path:
    """A dataset in whose training masks all but `counted` pixels are void."""
    write_dataset(path, counts={"train": 4, "val": 1, "test": 1}, size=(96, 96), table={"ignore_index": 9})
    labels = np.full((96, 96), 9, np.uint8)
    labels[0, :counted] = 1
    for mask in (path / "train" / "masks").iterdir():
        mask.write_bytes(encode_mask(labels))
    return path


def test_a_training_that_sees_nothing_but_void_comes_to_its_end(tmp_path: Path) -> None:
    made = train(mostly_void(tmp_path / "data", counted=2), tmp_path / "out", recipe("data.crop=[16, 16]"))
    assert (read_record(made.path) or {})["result"]["miou_train"] is None


def test_images_of_which_nothing_counts_are_not_trained_on(tmp_path: Path) -> None:
    data = mostly_void(tmp_path / "data", counted=0)
    with pytest.raises(DatasetError, match="train: every mask is void everywhere; nothing can be learnt there"):
        train(data, tmp_path / "out", recipe())
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_dataset_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such folder"):
        train(tmp_path / "nowhere", tmp_path / "out", recipe())
    assert list(tmp_path.iterdir()) == []


def test_a_killed_training_goes_on_with_the_precision_that_it_chose(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe's result varies from moment to moment; a resumed run must keep the precision that it has."""
    from compress.train import precision

    times = {"float32": 30.0, "bfloat16": 1.0}
    monkeypatch.setattr(precision, "_timed_pass", lambda name: lambda: times[name])
    monkeypatch.setattr("compress.train.loop.Fit.run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "out", recipe("train.precision=auto"))
    monkeypatch.undo()
    monkeypatch.setattr(precision, "_timed_pass", lambda _: pytest.fail("it was probed again"))
    made = train(data, tmp_path / "out", recipe("train.precision=auto"))
    assert '"bfloat16"' in (made.path / "precision.json").read_text()


def test_a_training_says_why_it_has_its_precision_and_how_its_time_was_shared(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    times = {"float32": 10.0, "bfloat16": 30.0}
    monkeypatch.setattr("compress.train.precision._timed_pass", lambda name: lambda: times[name])
    made = train(data, tmp_path / "out", recipe("train.precision=auto", "train.device=cpu"))
    said = capfd.readouterr().err
    assert "training on cpu in float32 (probe: float32 10.0 ms, bfloat16 30.0 ms)\n" in said
    assert f"{Throughput(**(read_record(made.path) or {})['result']['throughput'])}\n" in said


def test_colour_and_mixed_sizes_train_alike(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "d", size=[(24, 32), (33, 17), (20, 50)], channels=3, classes=("a", "b", "c"))
    made = train(data, tmp_path / "out", recipe())
    assert made.card.channels == 3
    assert made.network()(torch.zeros(1, 3, 8, 8)).shape == (1, 3, 8, 8)
