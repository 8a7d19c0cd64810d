"""`compress bench peers`: our server for real; peers, which are not installed here, by stand-ins."""

import base64
import io
import json
import sys
from email.parser import BytesParser
from email.policy import default
from pathlib import Path
from unittest.mock import Mock

import pytest
from PIL import Image
from support.bundles import tiny_bundle

from benchmarks.load.client import Target
from benchmarks.load.drive import Outcome
from benchmarks.load.images import payload
from benchmarks.load.summary import pooled
from benchmarks.peers.behaviour import BEHAVIOURS
from benchmarks.peers.bench import _RoundRobin
from benchmarks.peers.servers import KINDS, OURS, Running, interpreters
from benchmarks.report.load.results import LoadSummary, Percentile
from benchmarks.report.peers.results import PeersReport
from benchmarks.report.peers.write import behaves, speeds, verdicts
from compress.cli.main import main
from export.errors import UsageError

FILE = b"\xff\xd8 as good as an image"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[PeersReport, str]:
    """The report on our server and on a peer whose environment lacks its package."""
    folder = tmp_path_factory.mktemp("peers")
    bundle, out = tiny_bundle(folder / "tiny").path, folder / "report"
    words = ["compress", "bench", "peers", str(bundle), "--peer", f"litserve={sys.executable}", "--out", str(out)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.argv", [*words, "--size", "32x48", "--seconds", "0.3", "--turns", "1"])
        with pytest.raises(SystemExit) as leaving:
            main()
    report = PeersReport.model_validate_json((out / "report.json").read_text())
    # On a busy machine any times are possible; the exit status must follow how our server behaves.
    assert (leaving.value.code or 0) == (0 if behaves(report).ok else 1)
    return report, (out / "report.md").read_text()


def test_ours_is_measured_and_what_does_not_start_is_named(run: tuple[PeersReport, str]) -> None:
    report, text = run
    [ours] = report.servers
    assert ours.name == OURS
    assert ours.capacity > 0
    # If the machine stalls under 1,500 requests a second, the server may refuse some, but not lose or spoil any.
    assert set(ours.opened.errors) <= {"429"}
    assert ours.opened.ok + sum(ours.opened.errors.values()) == ours.opened.sent
    [failure] = report.failures
    assert "litserve" in failure
    assert "No module named 'litserve'" in failure
    assert "did not become ready" in text


class Recorded(_RoundRobin):
    """Records which server is loaded when, and sends nothing."""

    def __init__(self, names: tuple[str, ...], seconds: float) -> None:
        nowhere = Target.of("http://127.0.0.1:9/")
        servers: dict[str, Running] = {
            name: Mock(spec=Running, target=nowhere, post=Mock(return_value=name.encode())) for name in names
        }
        super().__init__(servers, payload((16, 16), 3), 8, seconds)
        self.order: list[tuple[str, str, tuple[float, ...]]] = []

    def measured(self, turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
        async def closed(_: Target, requests: list[bytes], *, connections: int, **__: float) -> list[Outcome]:
            self.order.append((f"closed {connections}", requests[0].decode(), ()))
            return [Outcome(0.0, 0.0, 0.1, "ok")]

        async def opened(_: Target, requests: list[bytes], due: tuple[float, ...], **__: float) -> list[Outcome]:
            self.order.append(("open", requests[0].decode(), due))
            return [Outcome(0.0, 0.0, 0.1, "ok")]

        monkeypatch.setattr("benchmarks.peers.bench.closed_loop", closed)
        monkeypatch.setattr("benchmarks.peers.bench.open_loop", opened)
        self.measure(turns, Mock())

    def of(self, kind: str) -> list[str]:
        return [name for found, name, _ in self.order if found == kind]


NAMES = ("segpress", "litserve", "mosec", "mlserver")


@pytest.mark.parametrize("kind", ["closed 8", "open"])
def test_servers_take_turns_and_not_always_ours_first(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded(NAMES, seconds=4.0)
    recorded.measured(4, monkeypatch)
    order = recorded.of(kind)[-16:]
    turns = [order[start : start + 4] for start in range(0, 16, 4)]
    assert all(sorted(turn) == sorted(NAMES) for turn in turns)
    assert len({turn[0] for turn in turns}) > 1


def test_the_turns_of_the_open_loop_last_no_longer_together_and_are_the_same_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded = Recorded(NAMES, seconds=10.0)
    recorded.measured(2, monkeypatch)
    arrivals = {name: [due for kind, found, due in recorded.order if (kind, found) == ("open", name)] for name in NAMES}
    [first, *others] = arrivals.values()
    assert all(other == first for other in others)
    assert len(first) == 2
    assert first[0] != first[1]
    assert max(map(max, first)) < 5


def test_every_server_is_warmed_by_as_many_connections_as_it_is_measured_with(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded(NAMES, seconds=1.0)
    recorded.measured(1, monkeypatch)
    firsts = {name: next(kind for kind, found, _ in recorded.order if found == name) for name in NAMES}
    assert set(firsts.values()) == {"closed 8"}
    assert len(recorded.of("closed 8")) == 2 * len(NAMES)
    assert len(recorded.of("closed 1")) == len(NAMES)


def test_requests_of_all_turns_are_pooled() -> None:
    quick = [Outcome(0.0, 0.0, 0.01, "ok")] * 99
    slow = [Outcome(0.5, 0.5, 1.0, "ok"), Outcome(0.5, 0.5, 2.0, "503")]
    found = pooled([quick, slow])
    assert (found.sent, found.ok, found.errors, found.seconds) == (101, 100, {"503": 1}, 2.01)
    assert found.ms(50.0) == pytest.approx(10)
    assert found.ms(99.9) == pytest.approx(500)


def test_the_spread_over_turns_is_told(run: tuple[PeersReport, str]) -> None:
    [ours] = run[0].servers
    assert len(ours.opened_turns) == 1
    assert ours.opened.sent == sum(turn.sent for turn in ours.opened_turns)
    turns = (opened(10, {}, 101), opened(10, {}, 234))
    report = run[0].model_copy(update={"servers": (ours.model_copy(update={"opened_turns": turns}),)})
    [row] = speeds(report).rows
    assert "101 to 234" in row


def test_ours_behaves(run: tuple[PeersReport, str]) -> None:
    """However slow a busy machine is, garbage is refused and nothing is lost at the end."""
    cells = run[0].servers[0].behaviours
    assert list(cells) == list(BEHAVIOURS)
    assert cells["garbage"].text == "415"
    assert cells["decompression bomb"].text == "413"
    assert cells["40 MB body"].text == "413"
    assert cells["40 MB body of unannounced length"].text == "413"
    assert cells["SIGTERM under load"].text == "0 lost; exit status 0"
    assert all(cells[case].good for case in ("garbage", "decompression bomb", "40 MB body", "SIGTERM under load"))


def test_what_another_does_better_is_said(run: tuple[PeersReport, str]) -> None:
    [ours] = run[0].servers
    faster = ours.model_copy(update={"name": "mosec", "capacity": 1.1 * ours.capacity})
    report = run[0].model_copy(update={"servers": (ours, faster)})
    missed = [verdict for verdict in verdicts(report) if not verdict.ok]
    assert any("mosec" in verdict.detail and "images a second" in verdict.text for verdict in missed)
    slower = faster.model_copy(update={"capacity": 0.9 * ours.capacity})
    report = run[0].model_copy(update={"servers": (ours, slower)})
    assert not any("images a second" in verdict.text for verdict in verdicts(report) if not verdict.ok)


def opened(ok: int, errors: dict[str, int], p99_ms: float) -> LoadSummary:
    latency = (Percentile(percent=99, milliseconds=p99_ms, beyond=1),) if ok else ()
    sent = ok + sum(errors.values())
    return LoadSummary(sent=sent, ok=ok, errors=errors, seconds=10, throughput=ok / 10, latency=latency)


@pytest.mark.parametrize(
    ("ours", "theirs", "holds"),
    [
        (opened(300, {}, 100), opened(300, {}, 100), True),
        (opened(300, {}, 110), opened(300, {}, 100), False),
        (opened(10, {"429": 290}, 50), opened(300, {}, 100), False),
        (opened(0, {"500": 300}, 0), opened(300, {}, 100), False),
        (opened(300, {}, 110), opened(10, {"429": 290}, 100), True),
        (opened(299, {"503": 1}, 50), opened(10, {"429": 290}, 100), False),
    ],
    ids=["as fast", "slower", "refuses", "only errors", "theirs refuses", "both refuse"],
)
def test_a_tail_is_fast_only_without_errors(
    run: tuple[PeersReport, str], ours: LoadSummary, theirs: LoadSummary, holds: bool
) -> None:
    [server] = run[0].servers
    servers = (
        server.model_copy(update={"opened": ours}),
        server.model_copy(update={"name": "mosec", "opened": theirs}),
    )
    [tail] = [v for v in verdicts(run[0].model_copy(update={"servers": servers})) if "p99" in v.text]
    assert tail.ok == holds, tail.detail


def sent_by(name: str) -> tuple[dict[str, str], bytes]:
    """Headers and body of the request that is made for this kind of server."""
    request = KINDS[name].request(Target.of("http://127.0.0.1:80/path"), FILE, "image/jpeg")
    head, _, body = request.partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    assert int(headers["Content-Length"]) == len(body)
    return headers, body


@pytest.mark.parametrize("name", KINDS)
def test_every_server_gets_the_same_file_in_its_own_form(name: str) -> None:
    headers, body = sent_by(name)
    kind = headers["Content-Type"]
    if kind == "application/json":
        found = base64.b64decode(json.loads(body)["inputs"][0]["data"][0])
    elif kind.startswith("multipart/"):
        message = BytesParser(policy=default).parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + body)
        [part] = message.iter_parts()
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        found = content
    else:
        found = body
    assert found == FILE


def test_the_peers_own_code_gives_the_masks_that_ours_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np
    from support.bundles import expected_mask

    from benchmarks.peers.apps.model import MODEL, Model

    bundle = tiny_bundle(tmp_path / "tiny")
    monkeypatch.setenv(MODEL, str(bundle.model_path))
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    with Image.open(io.BytesIO(Model().segment(stream.getvalue()))) as mask:
        np.testing.assert_array_equal(np.asarray(mask), expected_mask(image, len(bundle.manifest.classes)))


@pytest.mark.parametrize(("name", "says"), [("triton", "there is no peer triton"), ("mosec", "is no environment")])
def test_what_is_no_peer_is_said(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        interpreters({name: tmp_path / "nowhere"})


def test_an_environment_may_be_named_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is resolved here, because the server is started in another folder."""
    (tmp_path / "mosec" / "bin").mkdir(parents=True)
    (tmp_path / "mosec" / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    assert interpreters({"mosec": Path("mosec")})["mosec"] == str(tmp_path / "mosec" / "bin" / "python")
