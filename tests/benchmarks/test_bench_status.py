"""The exit status of `compress bench load`, `soak` and `peers` follows from their reports. Nothing is measured."""

import json
from pathlib import Path

import pytest

from benchmarks.report.load.results import LoadReport, SoakReport
from benchmarks.report.peers.results import Cell, PeersReport
from benchmarks.report.results import Verdict
from compress.cli.main import main

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
MISSED = Verdict(ok=False, text="it does what it should", detail="3 of 4")


def earlier(kind: str) -> str:
    [found] = RESULTS.glob(f"{kind}-camvid-unet16_epyc-avx2-2-cores_2026-11-29/report.json")
    return found.read_text()


def ended(
    command: str, report: LoadReport | SoakReport | PeersReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> int:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("report.json", "report.md"):
        (out / name).write_text("written")
    measured = {"load": "load.bench.bench", "soak": "load.soak.soak", "peers": "peers.bench.bench"}[command]
    monkeypatch.setattr(f"benchmarks.{measured}", lambda *_, **__: report)
    monkeypatch.setattr("sys.argv", ["compress", "bench", command, "bundle", "--out", str(out), "--json"])
    with pytest.raises(SystemExit) as leaving:
        main()
    return int(leaving.value.code or 0)


@pytest.mark.parametrize("command", ["load", "soak"])
@pytest.mark.parametrize("holds", [True, False])
def test_what_is_not_ok_is_status_1_after_the_result(
    command: str,
    holds: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kind = LoadReport if command == "load" else SoakReport
    verdicts = (Verdict(ok=True, text="health answers", detail="all"), MISSED.model_copy(update={"ok": holds}))
    report = kind.model_validate_json(earlier(command)).model_copy(update={"verdicts": verdicts})
    assert ended(command, report, tmp_path, monkeypatch) == (0 if holds else 1)
    printed = capsys.readouterr()
    assert json.loads(printed.out)["verdicts"][1]["ok"] == holds
    assert ("it does what it should: 3 of 4" in printed.err) != holds
    assert "Traceback" not in printed.err


@pytest.mark.parametrize(("behaves", "status"), [(True, 0), (False, 1)])
def test_to_be_slower_than_a_peer_is_a_result_and_to_misbehave_is_not(
    behaves: bool,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = PeersReport.model_validate_json(earlier("peers"))
    ours, *peers = report.servers
    cells = ours.behaviours | {"garbage": Cell(good=behaves, text="500")}
    report = report.model_copy(
        update={"servers": (ours.model_copy(update={"behaviours": cells}), *peers), "verdicts": (MISSED,)}
    )
    assert ended("peers", report, tmp_path, monkeypatch) == status
    assert ("garbage: 500" in capsys.readouterr().err) != behaves
