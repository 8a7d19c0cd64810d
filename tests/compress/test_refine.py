"""More than one look at an image: what is averaged, where windows lie, and which models cannot be refined."""

import contextlib
import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.checkpoints import write_checkpoint
from support.networks import random_unet

from compress.anymodel import evaluate, load_model
from compress.checkpoint import Checkpoint
from compress.cli.main import main
from compress.export_fp32 import export
from compress.recipe import Recipe
from export.bundle import Bundle
from export.errors import UsageError
from export.images import U8, Geometry
from export.ranking import RankingScore
from export.refine import LEAST_OVERLAP, Refinement, best_of, mirrored, places, windowed

Figures = NDArray[np.float32]


def by_pixel(image_HWC: U8) -> Figures:
    """Probabilities of a network that sees single pixels."""
    bright = image_HWC[..., 0].astype(np.float32) / 255
    return np.stack([1 - bright, bright])


def by_place(image_HWC: U8) -> Figures:
    """Probabilities of a network that is wrong at the edge of its input, and right everywhere else."""
    inside = np.zeros(image_HWC.shape[:2], dtype=np.float32)
    inside[2:-2, 2:-2] = 1
    return np.stack([1 - inside, inside])


def picture(height: int, width: int, seed: int = 0) -> U8:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 1), dtype=np.uint8)


@settings(max_examples=60)
@given(*[st.integers(1, 70)] * 4)
def test_windows_give_what_the_whole_gives_where_nothing_depends_on_them(h: int, w: int, high: int, wide: int) -> None:
    image = picture(h, w)
    np.testing.assert_allclose(windowed(by_pixel, (high, wide))(image), by_pixel(image), atol=1e-5)


@settings(max_examples=100)
@given(st.integers(1, 300), st.integers(1, 100))
def test_windows_cover_everything_and_overlap(length: int, window: int) -> None:
    found = list(places(length, window))
    assert (found[0].start, found[-1].stop) == (0, length)
    assert all(place.stop - place.start == min(length, window) for place in found)
    for before, after in pairwise(found):
        assert before.start < after.start
        assert before.stop - after.start >= int(LEAST_OVERLAP * window)


def test_what_a_window_does_not_know_at_its_edge_another_one_does() -> None:
    mask = best_of(Refinement(window=(32, 32)).refined(by_place))(picture(90, 70))
    expected = np.zeros((90, 70), dtype=np.uint8)
    expected[2:-2, 2:-2] = 1
    np.testing.assert_array_equal(mask, expected)
    seen: list[tuple[int, ...]] = []
    windowed(lambda image: seen.append(image.shape) or by_place(image), (32, 32))(picture(90, 70))  # type: ignore[func-returns-value]
    assert set(seen) == {(32, 32, 1)}
    assert len(seen) == 4 * 3


def leaning(image_HWC: U8) -> Figures:
    """Figures of a network that weights the left of its input more."""
    trust = np.linspace(1, 0, image_HWC.shape[1], dtype=np.float32)
    return by_pixel(image_HWC) * trust


def test_two_looks_are_the_mean_and_know_no_side() -> None:
    image = picture(9, 8)
    found = mirrored(leaning)(image)
    np.testing.assert_allclose(found, by_pixel(image) / 2, atol=1e-6)
    np.testing.assert_allclose(mirrored(leaning)(image[:, ::-1]), found[..., ::-1], atol=1e-6)


def test_figures_come_back_to_the_image_as_masks_do() -> None:
    geometry = Geometry.plan(20, 30, size=(10, 15), multiple=8)
    figures = np.zeros((2, 16, 16), dtype=np.float32)
    figures[1, :10, :15] = 1
    restored = geometry.restore_figures(figures)
    assert restored.shape == (2, 20, 30)
    np.testing.assert_allclose(restored[1], 1, atol=1e-6)


@pytest.fixture(scope="module")
def talkative(trained: Checkpoint, discs: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that gives masks and logits."""
    recipe = Recipe.load(None, ["export.outputs=both"])
    return export(trained.path, tmp_path_factory.mktemp("runs") / "both", recipe, data=discs)


@pytest.mark.parametrize("refine", [Refinement(mirrored=True), Refinement(window=(32, 32)), Refinement(True, (32, 48))])
def test_checkpoint_and_bundle_look_alike(
    trained: Checkpoint, talkative: Bundle, discs: Path, refine: Refinement
) -> None:
    one, other = (evaluate(path, discs, refine=refine) for path in (trained.path, talkative.path))
    assert one.miou == pytest.approx(other.miou, abs=1e-3)
    assert one.miou > 0.85
    assert not np.array_equal(one.counts, evaluate(trained.path, discs).counts)


def test_a_bundle_of_masks_alone_cannot_be_refined(float_bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=r"gives masks alone.*--outputs both"):
        load_model(float_bundle.path, refine=Refinement(mirrored=True))


def test_the_command_looks_as_it_is_told(
    trained: Checkpoint, discs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    found = []
    for options in ([], ["--mirror"], ["--window", "32x32"]):
        line = ["compress", "evaluate", str(trained.path), "--data", str(discs), "--json", *options]
        monkeypatch.setattr(sys, "argv", line)
        with contextlib.suppress(SystemExit):
            main()
        found.append(json.dumps(json.loads(capfd.readouterr().out)["confusion"]))
    assert len(set(found)) == 3


@pytest.mark.parametrize("kind", ["checkpoint", "bundle"])
def test_ranking_changes_no_mask(kind: str, discs: Path, tmp_path: Path) -> None:
    """Where images are resized, a mask is not the argmax of the probabilities as they come back."""
    made = write_checkpoint(
        tmp_path / "ckpt", random_unet(classes=2), size=(16, 32), class_names=("background", "disc"), classes=2
    )
    if kind == "bundle":
        settings = ["export.outputs=both", "export.golden=synthetic"]
        path = export(made.path, tmp_path / "out", Recipe.load(None, settings)).path
    else:
        path = made.path
    plain, ranked = evaluate(path, discs), evaluate(path, discs, ranking=RankingScore())
    np.testing.assert_array_equal(plain.counts, ranked.counts)


def test_the_command_ranks_by_probabilities(
    trained: Checkpoint,
    talkative: Bundle,
    discs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    found = []
    for model in (trained.path, talkative.path):
        line = ["compress", "evaluate", str(model), "--data", str(discs), "--json", "--auc"]
        monkeypatch.setattr(sys, "argv", line)
        with contextlib.suppress(SystemExit):
            main()
        found.append(json.loads(capfd.readouterr().out))
    assert 0.9 < found[0]["auc"] <= 1
    assert found[0]["auc"] == pytest.approx(found[1]["auc"], abs=1e-3)
    assert set(found[0]["auc_per_class"]) == {"background", "disc"}
    monkeypatch.setattr(sys, "argv", [word for word in line if word != "--json"])
    with contextlib.suppress(SystemExit):
        main()
    assert "ROC-AUC" in capfd.readouterr().out
