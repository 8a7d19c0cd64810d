"""Measuring resumes where it stopped, keeps what other runs measured, and is not misled by a machine that drifts."""

import json
from pathlib import Path

import pytest
from support.latency import FakeMachine, conv, expected_microseconds

from export.errors import UsageError
from export.latency.kinds import LayerKey, LayerKind
from export.latency.measure import BATCH, cached_table, measure_table, reference_now
from export.latency.probes import REFERENCE
from export.latency.table import LatencyTable

KEYS = [conv(x, y) for x in range(16, 16 + 8) for y in range(16, 16 + 8)]
SIZE = (8, 8)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    return FakeMachine(monkeypatch)


def test_what_is_kept_is_the_ratio_to_the_reference(machine: FakeMachine, tmp_path: Path) -> None:
    def drift(done: int, total: int) -> None:
        machine.speed = 1.0 + done / total

    table = measure_table(KEYS, path=tmp_path / "t.json", precision="fp32", threads=3, size=SIZE, progress=drift)
    for key in KEYS:
        assert table.ratio(key) == pytest.approx(expected_microseconds(key) / expected_microseconds(REFERENCE))
    assert machine.threads == {3}
    assert (table.precision, table.threads, table.sizes) == ("fp32", 3, (SIZE,))
    assert LatencyTable.load(tmp_path / "t.json") == table


def test_the_reference_of_the_moment(machine: FakeMachine) -> None:
    machine.speed = 0.5
    assert reference_now("fp32", 1) == pytest.approx(2 * expected_microseconds(REFERENCE) / 1e3)


def test_only_what_is_missing_is_measured(machine: FakeMachine, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    def measure(keys: list[LayerKey]) -> LatencyTable:
        told.clear()
        return measure_table(
            keys, path=tmp_path / "t.json", precision="int8", threads=1, size=SIZE, progress=lambda *p: told.append(p)
        )

    measure(KEYS[:10] + KEYS[:10])
    assert machine.timed == 10
    assert told == [(done, 10) for done in range(11)]
    measure(KEYS[5:12])
    assert machine.timed == 12
    assert told == [(5, 7), (6, 7), (7, 7)]
    free = LayerKey(LayerKind("ToPlain", SIZE, SIZE), 16, 16)
    assert len(measure([*KEYS[:12], free])) == 12
    assert machine.timed == 12


def test_interrupted_it_goes_on(machine: FakeMachine, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == BATCH + 3 and machine.timed < len(KEYS):
            raise KeyboardInterrupt

    def measure() -> LatencyTable:
        return measure_table(KEYS, path=tmp_path / "t.json", precision="fp32", threads=1, size=SIZE, progress=interrupt)

    with pytest.raises(KeyboardInterrupt):
        measure()
    kept = LatencyTable.load(tmp_path / "t.json")
    assert len(kept) == BATCH
    assert kept.sizes == ()  # does not claim to be complete
    machine.timed = len(KEYS)
    assert len(measure()) == len(KEYS)
    assert machine.timed == 2 * len(KEYS) - BATCH


def test_two_at_once_keep_each_others_layers(machine: FakeMachine, tmp_path: Path) -> None:
    path = tmp_path / "t.json"

    def another(done: int, _: int) -> None:
        if done == 1:
            measure_table(KEYS[40:], path=path, precision="fp32", threads=1, size=(4, 4))

    table = measure_table(KEYS[:40], path=path, precision="fp32", threads=1, size=SIZE, progress=another)
    assert len(table) == len(KEYS)
    assert table.sizes == ((4, 4), SIZE)
    assert LatencyTable.load(path) == table


def test_the_cache_has_a_file_for_each_machine_precision_and_number_of_threads(
    machine: FakeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def files() -> list[str]:
        return sorted(path.name for path in (tmp_path / "cache" / "segpress" / "latency").glob("*.json"))

    first = cached_table(KEYS[:3], precision="fp32", threads=1, size=SIZE)
    assert cached_table(KEYS[:3], precision="fp32", threads=1, size=SIZE) == first
    assert machine.timed == 3
    cached_table(KEYS[:1], precision="int8", threads=1, size=SIZE)
    cached_table(KEYS[:1], precision="fp32", threads=2, size=SIZE)
    assert [name.rpartition("-")[0] for name in files()] == ["fp32-1-threads", "fp32-2-threads", "int8-1-threads"]
    monkeypatch.setattr("export.machine._cpu_name", lambda: "another processor")
    cached_table(KEYS[:1], precision="fp32", threads=1, size=SIZE)
    assert len(files()) == 4


def test_a_cache_that_cannot_be_written_is_told_with_the_way_out(
    machine: FakeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"latency cannot be written: Not a directory; .* XDG_CACHE_HOME"):
        cached_table(KEYS[:1], precision="fp32", threads=1, size=SIZE)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"precision": "int8"}, "precision int8, here fp32"),
        ({"threads": 7}, "threads 7, here 1"),
        ({"onnxruntime": "1.0.0"}, "onnxruntime 1.0.0, here"),
        ({"cpu": "abacus"}, "processor abacus, here"),
        ({"cpu_model": "cpu family 1"}, "processor's model cpu family 1, here"),
    ],
)
def test_a_table_of_something_else_is_not_gone_on_with(
    machine: FakeMachine, tmp_path: Path, changed: dict[str, object], says: str
) -> None:
    path = tmp_path / "t.json"
    measure_table(KEYS[:1], path=path, precision="fp32", threads=1, size=SIZE)
    content = json.loads(path.read_text())
    if changed.keys() & {"cpu", "cpu_model"}:
        content["machine"] |= changed
    else:
        content |= changed
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=says) as caught:
        measure_table(KEYS[:2], path=path, precision="fp32", threads=1, size=SIZE)
    assert str(path) in str(caught.value)
    assert "give another file" in str(caught.value)
    assert machine.timed == 1


def test_a_real_machine_gives_a_ratio_of_one_for_the_reference_itself(tmp_path: Path) -> None:
    table = measure_table([REFERENCE], path=tmp_path / "t.json", precision="fp32", threads=1, size=(32, 32))
    assert 0.1 < table.ratio(REFERENCE) < 10
    assert table.reference_ms > 0
