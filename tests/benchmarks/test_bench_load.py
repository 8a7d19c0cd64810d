"""`compress bench load`: a real server under a real load, seen from both sides, beside the same work without HTTP."""

import io
import json
import multiprocessing
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from support.bundles import tiny_bundle
from support.datasets import write_dataset

from benchmarks.load.bench import bench
from benchmarks.load.images import payload
from benchmarks.load.server import serving
from benchmarks.report.load.results import LoadReport, Pair
from benchmarks.report.load.table import STAGES
from benchmarks.report.load.verdicts import verdicts
from compress.cli.main import main
from export.errors import WorkFailedError
from export.images import decode
from serve.settings import ServeSettings

ROOT = Path(__file__).resolve().parents[2]
OVERLOAD = 8.0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadReport, Path]:
    folder = tmp_path_factory.mktemp("load")
    path = tiny_bundle(folder / "tiny").path
    report = bench(
        path,
        out=folder / "report",
        size=(32, 48),
        settings=ServeSettings(concurrency=1, queue_limit=1),
        connections=2,
        loads=(0.2, OVERLOAD),
        seconds=0.3,
        turns=2,
        command="compress bench load tiny",
    )
    return report, folder / "report"


def test_every_request_is_counted_once_on_both_sides(run: tuple[LoadReport, Path]) -> None:
    report, _ = run
    assert [found.kind for found in report.runs] == ["closed"] * 2 + ["open"] * 2
    for found in report.runs:
        assert found.server is not None
        assert found.client.sent == found.client.ok + sum(found.client.errors.values())
        assert sum(found.server.answers.values()) == found.client.sent
        assert found.server.answers.get("200", 0) == found.client.ok
    assert report.runs[0].client.errors == {}


def test_more_than_it_bears_is_refused_and_health_is_asked_all_the_while(run: tuple[LoadReport, Path]) -> None:
    overloaded = run[0].runs[-1]
    assert overloaded.load == OVERLOAD
    assert set(overloaded.client.errors) == {"429"}
    assert overloaded.health is not None
    assert overloaded.health.asked > 0
    assert overloaded.health.failed == 0


def test_the_servers_stages_stand_beside_the_clients_view(run: tuple[LoadReport, Path]) -> None:
    for found in run[0].runs:
        assert found.server is not None
        assert set(found.server.stages_ms) == set(STAGES)
        *parts, whole = (found.server.stages_ms[stage] for stage in STAGES)
        assert all(part >= 0 for part in parts)
        assert whole > 0
        assert found.server.resident_mib > 10


def test_the_same_work_is_done_without_http(run: tuple[LoadReport, Path]) -> None:
    ceiling = run[0].ceiling
    assert ceiling is not None
    assert len(ceiling.throughput) == len(ceiling.latency_ms) == 2
    closed = [found.client.throughput for found in run[0].runs[:2]]
    assert [pair.over_http for pair in ceiling.throughput] == closed
    assert ceiling.kept == pytest.approx(sum(pair.over_http / pair.direct for pair in ceiling.throughput) / 2)
    assert run[0].capacity == pytest.approx(sum(closed) / 2)


def test_the_aims_tell_the_images_and_the_models_own_time(run: tuple[LoadReport, Path]) -> None:
    report, folder = run
    assert report.ceiling is not None
    assert report.ceiling.model_ms is not None
    assert 0 < report.ceiling.model_ms < max(pair.direct for pair in report.ceiling.latency_ms)
    told = verdicts(changed(report, model_ms=20.12))
    for aim in ("the server keeps", "HTTP adds"):
        [verdict] = [verdict for verdict in told if aim in verdict.text]
        assert "image/jpeg of 32x48 in, PNG out; the model's own run takes 20.1 ms" in verdict.detail
    assert "- Model: " in (folder / "report.md").read_text()


def test_the_files_hold_the_report(run: tuple[LoadReport, Path]) -> None:
    report, folder = run
    assert LoadReport.model_validate_json((folder / "report.json").read_text()) == report
    text = (folder / "report.md").read_text()
    assert "429" in text
    assert "compress bench load tiny" in text
    assert "open, 20%" in (folder / "report.html").read_text()
    assert (folder / "latency.png").read_bytes().startswith(b"\x89PNG")


def changed(report: LoadReport, **figures: object) -> LoadReport:
    assert report.ceiling is not None
    return report.model_copy(update={"ceiling": report.ceiling.model_copy(update=figures)})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda report: changed(report, kept=0.91), "the server keeps"),
        (lambda report: changed(report, added_ms=3.1), "HTTP adds"),
        (lambda report: with_first(report, health={"p99_ms": 50.1}), "health answers"),
        (lambda report: with_first(report, health={"failed": 1}), "health answers"),
        (lambda report: with_first(report, health={"p99_ms": None, "failed": 9}, everywhere=True), "health answers"),
        (lambda report: with_first(report, client={"errors": {"500": 1}}), "no request failed"),
        (lambda report: with_first(report, client={"ok": 1}), "exactly one answer"),
    ],
)
def test_what_is_missed_is_said(
    run: tuple[LoadReport, Path], change: Callable[[LoadReport], LoadReport], says: str
) -> None:
    good = changed(run[0], kept=0.93, added_ms=2.9, throughput=(Pair(direct=1, over_http=0.93),))
    good = with_first(good, health={"p99_ms": 1.0}, everywhere=True)
    assert all(verdict.ok for verdict in verdicts(good))
    missed = [verdict.text for verdict in verdicts(change(good)) if not verdict.ok]
    assert any(text.count(says) for text in missed)


def with_first(report: LoadReport, *, everywhere: bool = False, **parts: dict[str, object]) -> LoadReport:
    """`report` with other figures in parts of its first run, or of every run."""
    runs = [
        run.model_copy(update={name: getattr(run, name).model_copy(update=part) for name, part in parts.items()})
        if everywhere or index == 0
        else run
        for index, run in enumerate(report.runs)
    ]
    return report.model_copy(update={"runs": tuple(runs)})


@pytest.mark.parametrize(("channels", "mode", "kind"), [(1, "L", "JPEG"), (3, "RGB", "JPEG"), (4, "RGBA", "PNG")])
def test_what_is_sent_are_pictures_of_the_size_that_was_asked_for(channels: int, mode: str, kind: str) -> None:
    sent = payload((40, 56), channels)
    for file in sent.files:
        with Image.open(io.BytesIO(file)) as image:
            assert (image.format, image.mode, image.size) == (kind, mode, (56, 40))
    assert len(set(sent.files)) == len(sent.files)
    assert sent.media_type == f"image/{kind.lower()}"


def test_images_of_a_dataset_are_brought_to_the_size_that_was_asked_for(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data", size=((32, 32), (48, 40)), channels=3)
    for file in payload((360, 480), 3, dataset).files:
        with Image.open(io.BytesIO(file)) as image:
            assert (image.format, image.size) == ("JPEG", (480, 360))


@pytest.mark.parametrize(("stored", "taken", "kind"), [(1, 3, "jpeg"), (3, 1, "jpeg"), (4, 4, "png"), (6, 6, "tiff")])
def test_images_of_a_dataset_are_read_with_the_channels_of_the_model(
    stored: int, taken: int, kind: str, tmp_path: Path
) -> None:
    sent = payload((24, 32), taken, write_dataset(tmp_path / "data", size=(32, 32), channels=stored))
    assert sent.media_type == f"image/{kind}"
    for file in sent.files:
        with Image.open(io.BytesIO(file)) as image:
            assert (image.format, image.size) == (kind.upper(), (32, 24))
        assert decode(file, taken).shape == (24, 32, taken)


def test_sigterm_ends_the_server_too(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "tiny").path
    words = [
        "bench",
        "load",
        bundle,
        "--size",
        "16x16",
        "--seconds",
        "0.1",
        "--turns",
        "9999",
        "--out",
        tmp_path / "new",
    ]
    command = [sys.executable, "-m", "compress.cli.main", *map(str, words)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as bench:
        assert bench.stderr is not None
        assert next((line for line in bench.stderr if line.startswith("load: ")), None)
        children = Path(f"/proc/{bench.pid}/task/{bench.pid}/children").read_text().split()
        bench.terminate()
        assert bench.wait(60) == 128 + signal.SIGTERM
    assert len(children) >= 2  # the server, and what does the same work without HTTP
    while any(Path(f"/proc/{child}").exists() for child in children):  # the test's time limit bounds this
        time.sleep(0.05)
    assert not (tmp_path / "new").exists()


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "tiny").path
    keys = tmp_path / "no-keys"
    with pytest.raises(WorkFailedError, match=r"the server did not start: .*no-keys"):
        bench(bundle, out=tmp_path / "report", settings=ServeSettings(api_keys=keys), command="")
    assert not (tmp_path / "report").exists()


def test_a_server_that_a_signal_ends_while_it_starts_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_: str) -> bool:
        for process in multiprocessing.active_children():
            process.kill()
            process.join()
        return False

    monkeypatch.setattr("benchmarks.load.server._is_ready", killed)
    bundle = tiny_bundle(tmp_path / "tiny").path
    with (
        pytest.raises(WorkFailedError, match="the server did not start: it was ended by SIGKILL"),
        serving(bundle, ServeSettings()),
    ):
        raise AssertionError("it is ready")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, out = tiny_bundle(tmp_path / "tiny").path, tmp_path / "report"
    given = ["--size", "16x16", "--seconds", "0.1", "--turns", "1", "--load", "0.5", "--set", "concurrency=1", "--json"]
    monkeypatch.setattr("sys.argv", ["compress", "bench", "load", str(bundle), "--out", str(out), *given])
    with pytest.raises(SystemExit) as leaving:
        main()
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((out / "report.json").read_text())
    # On a busy machine any times are possible; the exit status must follow the verdicts.
    assert (leaving.value.code or 0) == (0 if all(verdict["ok"] for verdict in printed["verdicts"]) else 1)
    assert (printed["settings"]["concurrency"], printed["requests"]["height"]) == ("1", 16)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["nowhere"], "nowhere"),
        (["{bundle}", "--set", "concurency=2"], "concurrency"),
        (["{bundle}", "--load", "0"], "load"),
        (["{bundle}", "--set", "port=8000"], "port: the bench takes a free one"),
        (["{bundle}", "--set", "tls_cert=a.pem", "--set", "tls_key=b.pem"], "tls_key: the load is sent over HTTP"),
        (["{bundle}", "--set", "api_keys=keys"], "api_keys: the load is sent without a key"),
        (["{bundle}", "--set", "host=::1"], "host=::1: the load is sent over IPv4"),
    ],
)
def test_a_mistake_is_one_message(
    given: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tiny_bundle(tmp_path / "tiny").path
    words = [word.format(bundle=bundle) for word in given]
    monkeypatch.setattr("sys.argv", ["compress", "bench", "load", *words, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as leaving:
        main()
    assert leaving.value.code == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
