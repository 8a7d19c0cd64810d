"""Single weights set to zero: how many, which, that they stay zero while the others learn, and what is reported."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.networks import random_unet
from support.recipes import TINY_SETTINGS

from compress.checkpoint import Checkpoint
from compress.cli.main import main
from compress.prune import prune
from compress.prune.recover import Recovery
from compress.prune.weights import smallest_weights
from compress.recipe import Recipe
from compress.steps import read_record
from compress.train.sparsity import hold_at_zero, kernels, share_of_zeros
from export.errors import UsageError
from export.scoring import Score

WITHOUT_A_GOAL = [setting for setting in TINY_SETTINGS if not setting.startswith("prune.ratio")]


def recipe(sparsity: float) -> Recipe:
    return Recipe.load(None, [*WITHOUT_A_GOAL, "prune.finetune.epochs=2", f"prune.sparsity={sparsity}"])


@pytest.fixture(scope="module")
def sparse(trained: Checkpoint, discs: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return prune(trained.path, discs, tmp_path_factory.mktemp("runs") / "sparse", recipe(0.8))


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.93])
def test_the_smallest_weights_of_the_whole_network_go(sparsity: float) -> None:
    network = random_unet()
    masks = smallest_weights(network, sparsity)
    assert masks.keys() == {name for name, p in network.named_parameters() if p.ndim == 4}
    found = kernels(network)
    gone = torch.cat([found[name].detach()[mask].abs() for name, mask in masks.items()])
    kept = torch.cat([found[name].detach()[~mask].abs() for name, mask in masks.items()])
    assert len(gone) == round(sparsity * (len(gone) + len(kept)))
    assert gone.max() <= kept.min()
    # Not the same share of every layer: those with large weights keep more.
    shares = [float(mask.float().mean()) for mask in masks.values()]
    assert max(shares) - min(shares) > 0.05


def test_held_weights_do_not_move_and_the_others_do() -> None:
    network = random_unet().train()
    before = {name: kernel.detach().clone() for name, kernel in kernels(network).items()}
    masks = smallest_weights(network, 0.6)
    hold_at_zero(network, masks)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        network(torch.randn(2, 1, 16, 16)).square().mean().backward()
        optimizer.step()
    for name, kernel in kernels(network).items():
        assert (kernel[masks[name]] == 0).all()
        assert (kernel[~masks[name]] != before[name][~masks[name]]).all()


def test_the_checkpoint_keeps_its_shapes_and_its_zeros(sparse: Checkpoint, trained: Checkpoint) -> None:
    child, parent = sparse.network(), trained.network()
    assert share_of_zeros(child) == pytest.approx(0.8, abs=1e-4)
    masks, before, after = smallest_weights(parent, 0.8), kernels(parent), kernels(child)
    assert after.keys() == masks.keys()
    for name, kernel in after.items():
        assert kernel.shape == masks[name].shape
        assert (kernel[masks[name]] == 0).all()
    assert sparse.card.pruning == trained.card.pruning == ()
    assert sparse.card.recipe["prune"]["sparsity"] == 0.8
    assert sparse.card.parents["parent"] == trained.weights_sha256
    # The other weights have learned since.
    assert any(not torch.equal(after[name][~mask], before[name][~mask]) for name, mask in masks.items())


def test_a_floor_that_no_image_can_show_is_refused_before_the_fine_tuning(
    trained: Checkpoint, discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[[Recovery], Score] = Recovery.__dict__["parent_score"].func

    def without_discs(recovery: Recovery) -> Score:
        found = real(recovery)
        return Score(found.classes, found.images, found.counts * np.array([[1, 0], [0, 0]]))

    monkeypatch.setattr(Recovery, "parent_score", property(without_discs))
    monkeypatch.setattr(Recovery, "run", lambda *_: pytest.fail("it was fine-tuned"))
    asked = ["prune.sparsity=0.5", "prune.min_iou.disc=0.5"]
    with pytest.raises(UsageError, match=r"no validation image shows disc, so its floor of 0\.5 cannot be judged"):
        prune(trained.path, discs, tmp_path / "out", Recipe.load(None, [*WITHOUT_A_GOAL, *asked]))


def test_what_it_saves_is_told(sparse: Checkpoint, trained: Checkpoint) -> None:
    result: dict[str, Any] = (read_record(sparse.path) or {})["result"]
    assert result["sparsity"] == pytest.approx(0.8, abs=1e-4)
    for key, made in (("gzip_bytes", sparse), ("gzip_bytes_parent", trained)):
        assert result[key] == len(gzip.compress((made.path / "weights.safetensors").read_bytes(), mtime=0))
    assert result["gzip_bytes"] < 0.5 * result["gzip_bytes_parent"]
    assert result["speedup"] > 0
    assert result["miou"] == sparse.card.miou_val
    assert result.keys() >= {"miou_parent", "miou_before_finetune", "best_epoch"}


@pytest.mark.slow
def test_the_command_says_that_no_time_is_gained(
    trained: Checkpoint, discs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [word for setting in [*TINY_SETTINGS, "prune.finetune.epochs=1"] for word in ("--set", setting)]
    words = ["compress", "prune", trained.path, "--data", discs, "--out", tmp_path / "out", "--unstructured", "0.9"]
    # The goal on the command line replaces the recipe's.
    monkeypatch.setattr("sys.argv", [*map(str, words), *settings])
    with pytest.raises(SystemExit) as leaving:
        main()
    assert not leaving.value.code
    out, err = capfd.readouterr()
    assert "they save bytes and no time" in err
    assert "90% of the weights zero" in out
    assert "by gzip" in out


def test_a_kernel_that_does_not_learn_is_cut_like_the_others() -> None:
    network = random_unet()
    frozen = network.get_parameter("stem.0.weight").requires_grad_(False)
    masks = smallest_weights(network, 0.6)
    hold_at_zero(network, masks)
    assert (frozen == 0).sum() == masks["stem.0.weight"].sum() > 0


def test_a_sparse_network_whose_channels_are_cut_stays_sparse(sparse: Checkpoint, discs: Path, tmp_path: Path) -> None:
    made = prune(sparse.path, discs, tmp_path / "out", Recipe.load(None, [*WITHOUT_A_GOAL, "prune.ratio=0.3"]))
    before, after = sparse.network(), made.network()
    assert sum(kernel.numel() for kernel in kernels(after).values()) < sum(k.numel() for k in kernels(before).values())
    # The channels that go are those with the most zeros.
    assert 0.4 < share_of_zeros(after) <= share_of_zeros(before)
    assert made.card.parents["ancestor"] == sparse.card.parents["parent"]
