"""`compress bench soak`: a real server, good and hostile clients, and what grew."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.bundles import tiny_bundle

from benchmarks.load.client import Target
from benchmarks.load.hostile import CLOSED, KINDS, SILENT, attack
from benchmarks.report.load.growth import ratio, slope
from benchmarks.report.load.results import SoakReport, SoakSample, is_accepted
from benchmarks.report.load.soak import verdicts
from compress.cli.main import main


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[SoakReport, Path]:
    folder = tmp_path_factory.mktemp("soak")
    bundle, out = tiny_bundle(folder / "tiny").path, folder / "report"
    words = ["compress", "bench", "soak", str(bundle), "--out", str(out)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.argv", [*words, "--minutes", "0.06", "--load", "0.2", "--hostile", "0.5"])
        with pytest.raises(SystemExit) as leaving:
            main()
    report = SoakReport.model_validate_json((out / "report.json").read_text())
    # On a busy machine any times are possible; the exit status must follow the verdicts.
    assert (leaving.value.code or 0) == (0 if all(verdict.ok for verdict in report.verdicts) else 1)
    return report, out


def test_good_and_hostile_clients_are_all_accounted_for(run: tuple[SoakReport, Path]) -> None:
    report, _ = run
    assert report.client.sent > 0
    assert report.client.sent == report.client.ok + sum(report.client.errors.values())
    assert {traffic.kind for traffic in report.hostile} == set(KINDS)
    assert all(is_accepted(found, traffic.accepted) for traffic in report.hostile for found in traffic.outcomes)
    assert not [code for code in report.answers if code.startswith("5")]


def test_the_process_is_looked_at(run: tuple[SoakReport, Path]) -> None:
    samples = run[0].samples
    assert len(samples) > 3
    assert [sample.seconds for sample in samples] == sorted(sample.seconds for sample in samples)
    assert [sample.answered for sample in samples] == sorted(sample.answered for sample in samples)
    assert all(sample.resident_mib > 10 and sample.threads > 1 and sample.own_descriptors > 3 for sample in samples)
    assert any(sample.connections > 0 for sample in samples)


def test_the_files_show_it(run: tuple[SoakReport, Path]) -> None:
    text = (run[1] / "report.md").read_text()
    assert all(kind in text for kind in KINDS)
    assert (run[1] / "memory.png").exists()


def test_a_server_that_is_gone_is_closed_to_all() -> None:
    nobody = Target.of("http://127.0.0.1:9/segment")
    good = nobody.post(b"image", "image/png")
    assert {asyncio.run(attack(kind, nobody, good)) for kind in KINDS} == {CLOSED}


@pytest.mark.parametrize("kind", ["40 MB body", "40 MB body of unannounced length"])
@pytest.mark.parametrize(
    ("outcome", "good"),
    [("413", True), ("400", True), ("422", True), (CLOSED, True), ("200", False), ("500", False), (SILENT, False)],
)
def test_whoever_calls_40_mb_of_zeros_no_image_is_right(kind: str, outcome: str, good: bool) -> None:
    assert is_accepted(outcome, KINDS[kind].accepted) == good


def test_only_the_large_bodies_may_meet_any_refusal() -> None:
    assert not is_accepted("404", KINDS["garbage"].accepted)


def samples(memory: list[float], *, every: float = 60.0, requests: int = 100) -> tuple[SoakSample, ...]:
    return tuple(
        SoakSample(seconds=every * i, answered=requests * i, resident_mib=mib, descriptors=12, connections=2, threads=5)
        for i, mib in enumerate(memory)
    )


def test_the_slope_is_that_of_least_squares() -> None:
    random = np.random.default_rng(0)
    memory = 200 + 3 * np.arange(80) / 60 + random.normal(size=80)
    found = slope(samples(list(memory)))
    assert found is not None
    hours = np.arange(20, 80) / 60
    (expected, _), covariance = np.polyfit(hours, memory[20:], 1, cov=True)
    assert found.per_hour == pytest.approx(expected)
    assert found.error == pytest.approx(covariance[0, 0] ** 0.5)


def test_the_first_quarter_settles() -> None:
    found = slope(samples([100.0, 150.0, 180.0] + [200.0] * 9))
    assert found is not None
    assert found.per_hour == pytest.approx(0)
    assert slope(samples([1.0, 2.0])) is None


def test_memory_by_sizes_is_compared_where_there_were_enough(run: tuple[SoakReport, Path]) -> None:
    report = run[0].model_copy(update={"samples": samples([100.0] * 6 + [150.0] * 60)})
    assert ratio(report) == 1.5
    assert ratio(report.model_copy(update={"samples": samples([100.0] * 20)})) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"samples": samples([200.0 + i for i in range(60)])}, "memory grows"),
        ({"samples": samples([100.0] * 6 + [150.0] * 60)}, "5,000 sizes"),
        ({"answers": {"200": 5, "500": 1}}, "5xx"),
    ],
)
def test_what_is_missed_is_said(run: tuple[SoakReport, Path], change: dict[str, object], says: str) -> None:
    client = run[0].client.model_copy(update={"sent": 1000, "ok": 990, "errors": {"429": 10}})
    good = run[0].model_copy(update={"samples": samples([200.0] * 60), "client": client})
    assert all(verdict.ok for verdict in verdicts(good))
    missed = [verdict.text for verdict in verdicts(good.model_copy(update=change)) if not verdict.ok]
    assert any(says in text for text in missed)


@pytest.mark.parametrize(
    ("load", "refused", "holds"),
    [(0.8, 0, True), (0.8, 10, True), (0.8, 11, False), (0.8, 500, False), (0.2, 11, False), (2.0, 500, True)],
)
def test_what_the_server_should_bear_is_answered(
    run: tuple[SoakReport, Path], load: float, refused: int, holds: bool
) -> None:
    client = run[0].client.model_copy(update={"sent": 1000, "ok": 1000 - refused, "errors": {"429": refused}})
    [found] = [
        verdict
        for verdict in verdicts(run[0].model_copy(update={"client": client, "load": load}))
        if "every good request" in verdict.text
    ]
    assert found.ok == holds
    assert ("99%" in found.text) == (load <= 0.8)


def test_a_lost_answer_is_said(run: tuple[SoakReport, Path]) -> None:
    client = run[0].client.model_copy(update={"errors": {"429": 1, "connection": 1}})
    missed = [verdict.text for verdict in verdicts(run[0].model_copy(update={"client": client})) if not verdict.ok]
    assert any("every good request was answered" in text for text in missed)


def missed_by(run: SoakReport, changed: Callable[[int], dict[str, int]]) -> list[str]:
    """The checks that fail with samples that are `changed`, by their number."""
    made = tuple(sample.model_copy(update=changed(i)) for i, sample in enumerate(samples([200.0] * 60)))
    return [verdict.text for verdict in verdicts(run.model_copy(update={"samples": made})) if not verdict.ok]


def test_a_crowd_of_connections_is_no_leak(run: tuple[SoakReport, Path]) -> None:
    missed = missed_by(run[0], lambda i: {"descriptors": 90, "connections": 80} if i > 40 else {})
    assert not any("file descriptors" in text for text in missed)


def test_descriptors_that_grow_are_said(run: tuple[SoakReport, Path]) -> None:
    missed = missed_by(run[0], lambda i: {"descriptors": 12 + i // 10})
    assert any("file descriptors" in text for text in missed)


def test_connections_that_only_the_server_has_are_a_leak(run: tuple[SoakReport, Path]) -> None:
    missed = missed_by(run[0], lambda i: {"descriptors": 90, "connections": 79} if i > 30 else {})
    assert any("file descriptors" in text for text in missed)


def test_settings_that_cannot_be_measured_are_refused_all_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bundle, out = tiny_bundle(tmp_path / "tiny").path, tmp_path / "o"
    given = ["--set", "port=9000", "--set", "host=::1", "--set", "api_keys=keys"]
    monkeypatch.setattr("sys.argv", ["compress", "bench", "soak", str(bundle), "--out", str(out), *given])
    with pytest.raises(SystemExit) as leaving:
        main()
    assert leaving.value.code == 2
    said = capsys.readouterr().err
    assert all(name in said for name in ("port:", "host=::1:", "api_keys:"))
    assert not out.exists()


def test_a_mistake_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["compress", "bench", "soak", str(tmp_path / "nowhere"), "--out", str(tmp_path / "o")]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as leaving:
        main()
    assert leaving.value.code == 2
    assert "nowhere" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
