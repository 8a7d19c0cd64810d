"""`compress prune --analyze`: each group is cut alone, saved as soon as it is scored, and reported."""

import json
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from support.recipes import TINY_SETTINGS

from benchmarks.report.pruning.write import write
from compress.checkpoint import Checkpoint
from compress.cli.main import main
from compress.data.folder import open_dataset
from compress.data.loader import TrainingImages, ValidationImages
from compress.models.plan import Dependencies
from compress.prune import analyze
from compress.prune.importance import scores_of
from compress.recipe import Recipe
from compress.sensitivity import Analysis
from compress.steps import read_record
from compress.train.batchnorm import reestimate
from compress.train.precision import pick_device
from compress.train.validation import validate
from export.errors import MissingExtraError

ANALYZE = import_module("compress.prune.analyze")
GROUPS = 10
WRITE = partial(write, command="compress prune it again")


def recipe(*settings: str) -> Recipe:
    return Recipe.load(None, [*TINY_SETTINGS, "prune.channel_multiple=4", *settings])


@pytest.fixture(scope="module")
def analyzed(trained: Checkpoint, discs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Analysis]:
    out = tmp_path_factory.mktemp("runs") / "analysis"
    return out, analyze(trained.path, discs, out, recipe(), write=WRITE)


def test_each_group_is_cut_alone(analyzed: tuple[Path, Analysis], trained: Checkpoint, discs: Path) -> None:
    out, analysis = analyzed
    network = trained.network()
    widths = Dependencies(network, 1).widths()
    assert {group.group: group.width for group in analysis.groups} == widths
    assert len(widths) == GROUPS
    for group in analysis.groups:
        assert [cut.kept for cut in group.cuts] == [round(share * group.width / 4) * 4 for share in (0.75, 0.5, 0.25)]
        assert [cut.share for cut in group.cuts] == [0.75, 0.5, 0.25]
    assert analysis.miou_parent == pytest.approx(trained.card.miou_val)
    assert analysis.images == 5

    # Recompute one of the figures by hand.
    group = analysis.groups[3]
    child = scores_of(network, channels=1).plan_of({group.group: group.cuts[-1].kept}).apply(network, channels=1)
    dataset = open_dataset(discs)
    reestimate(child, TrainingImages(dataset, size=None, crop=None, multiple=4))
    validation = ValidationImages(dataset, size=None, multiple=4)
    assert validate(child, validation, pick_device("cpu")).miou == pytest.approx(group.cuts[-1].miou)
    assert json.loads((out / "analysis.json").read_text()) == analysis.model_dump(mode="json")


def test_it_is_to_be_read(analyzed: tuple[Path, Analysis]) -> None:
    out, analysis = analyzed
    text = (out / "analysis.md").read_text()
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")][2:]
    assert [row.replace("\\", "") for row in rows] == [group.group for group in analysis.most_sensitive_first()]
    lost = [analysis.mean_lost(group) for group in analysis.most_sensitive_first()]
    assert lost == sorted(lost, reverse=True)
    assert (out / "analysis.png").read_bytes().startswith(b"\x89PNG")
    assert "![mIoU lost when a group alone is cut, 10 groups." in text
    assert "compress prune it again" in text


def test_without_matplotlib_the_picture_is_left_out_with_a_note(
    analyzed: tuple[Path, Analysis], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any) -> Any:
        raise MissingExtraError("it needs matplotlib, which is not installed")

    monkeypatch.setattr("benchmarks.report.plots._matplotlib", missing)
    WRITE(analyzed[1], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["analysis.md"]
    assert "No analysis.png: it needs matplotlib" in (tmp_path / "analysis.md").read_text().replace("\\", "")


def test_what_is_at_its_floor_is_named_and_not_cut(trained: Checkpoint, discs: Path, tmp_path: Path) -> None:
    settings = recipe("prune.channel_multiple=16", "prune.analysis_images=2")
    analysis = analyze(trained.path, discs, tmp_path / "out", settings, write=WRITE)
    floor = [group.group for group in analysis.at_their_floor()]
    assert floor == [group.group for group in analysis.groups if group.width == 16]
    assert {cut.kept % 16 for group in analysis.groups for cut in group.cuts} == {0}
    # Shares that round to the same width are tried once.
    assert all(len({cut.kept for cut in group.cuts}) == len(group.cuts) for group in analysis.groups)
    assert analysis.images == 2
    assert f"At their minimum width, and not cut: {floor[0]} (16)" in (tmp_path / "out" / "analysis.md").read_text()


def test_interrupted_it_goes_on_and_finished_it_is_up_to_date(
    analyzed: tuple[Path, Analysis],
    trained: Checkpoint,
    discs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out, scored = tmp_path / "out", 0

    def interrupted(*given: Any) -> Any:
        nonlocal scored
        scored += 1
        if scored == 6:
            raise KeyboardInterrupt
        return validate(*given)

    monkeypatch.setattr(ANALYZE, "validate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        analyze(trained.path, discs, out, recipe(), write=WRITE)
    assert not out.exists()
    again = analyze(trained.path, discs, out, recipe(), write=WRITE)
    # The parent and the first group were already scored.
    assert scored - 6 == 3 * (GROUPS - 1)
    assert again == analyzed[1]
    capfd.readouterr()
    assert analyze(trained.path, discs, out, recipe()) == again
    assert "is up to date" in capfd.readouterr().err
    assert (read_record(out) or {})["step"] == "analysis"


@pytest.mark.slow
def test_the_command(
    trained: Checkpoint, discs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["compress", "prune", trained.path, "--data", discs, "--out", tmp_path / "out", "--analyze"]

    def call(*more: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", [*map(str, words), "--set", "prune.channel_multiple=8", *more])
        with pytest.raises(SystemExit) as leaving:
            main()
        return int(leaving.value.code or 0), *capfd.readouterr()

    status, out, _ = call()
    assert status == 0
    assert "mean lost" in out
    assert f"analysis: {tmp_path / 'out' / 'analysis.md'}" in out
    status, out, err = call("--json")
    assert status == 0
    assert "is up to date" in err
    assert Analysis.model_validate_json(out).groups
    status, _, err = call("--ratio", "0.5")
    assert status == 2
    assert "--analyze keeps no pruned network; leave out --speedup" in err
