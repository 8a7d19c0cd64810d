"""Every `compress bench` checks its --out before it measures for minutes."""

from pathlib import Path

import pytest
from support.bundles import tiny_bundle
from support.reports import make_report

from benchmarks.report.folder import report_folder, to_open, write_report
from compress.cli.main import main
from export.errors import UsageError


def started(*_: object) -> None:
    raise AssertionError("a server was started before --out was looked at")


@pytest.mark.parametrize("command", ["load", "soak", "peers"])
def test_a_file_as_out_is_said_before_anything_starts(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for starts in ("load.bench.serving", "load.soak.serving", "peers.bench.running"):
        monkeypatch.setattr(f"benchmarks.{starts}", started)
    bundle, out = tiny_bundle(tmp_path / "tiny").path, tmp_path / "a-file"
    out.write_text("kept")
    size = [] if command == "soak" else ["--size", "16x16"]
    monkeypatch.setattr("sys.argv", ["compress", "bench", command, str(bundle), "--out", str(out), *size])
    with pytest.raises(SystemExit) as leaving:
        main()
    assert leaving.value.code == 2
    assert "a-file cannot be written" in capsys.readouterr().err
    assert out.read_text() == "kept"


TINY_RECIPE = ["--recipe", "demo", "--set", "model.base=4", "--set", "model.depth=1", "--set", "train.epochs=1"]
GRID = ["--part", "grid", "--no-compile", "--base", "4", "--batch", "1", "--steps", "1"]


@pytest.mark.parametrize("command", ["latency", "ops", "amp", "ablation"])
def test_what_would_be_overwritten_or_spoilt_is_said_before_anything_is_measured(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tiny_bundle(tmp_path / "tiny").path
    mine, file = tmp_path / "mine", tmp_path / "a-file"
    mine.mkdir()
    for path in (mine / "report.md", mine / "widths.png", file):
        path.write_text("kept")
    refused = {
        mine: "mine holds report.md, widths.png but no report.json",
        file: "a-file cannot be written",
        bundle / "report": "lies in the bundle",
        bundle: "lies in the bundle",
    }
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for out, says in refused.items():
        words = {"amp": [*GRID, "--size", "16x16"], "ablation": TINY_RECIPE}.get(
            command, [str(bundle), "--size", "16x16"]
        )
        monkeypatch.setattr("sys.argv", ["compress", "bench", command, *words, "--out", str(out)])
        with pytest.raises(SystemExit) as leaving:
            main()
        assert leaving.value.code == 2
        assert says in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_report_leaves_no_page_of_another(tmp_path: Path) -> None:
    report = make_report(tmp_path)
    write_report(tmp_path / "out", report, {"report.md": "", "report.html": ""})
    assert to_open(tmp_path / "out") == tmp_path / "out" / "report.html"
    write_report(tmp_path / "out", report, {"report.md": ""})
    assert to_open(tmp_path / "out") == tmp_path / "out" / "report.md"


def test_a_folder_that_takes_no_files_is_said() -> None:
    with pytest.raises(UsageError, match="/proc cannot be written"), report_folder(Path("/proc")):
        raise AssertionError("its block was entered")


def test_what_fails_leaves_no_folder_and_takes_none_that_was_there(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    for out in (tmp_path / "new" / "report", tmp_path / "old"):
        with pytest.raises(RuntimeError), report_folder(out):
            raise RuntimeError
    assert list(tmp_path.iterdir()) == [tmp_path / "old"]


def test_what_succeeds_keeps_its_folder(tmp_path: Path) -> None:
    with report_folder(tmp_path / "new" / "report"):
        pass
    assert (tmp_path / "new" / "report").is_dir()
