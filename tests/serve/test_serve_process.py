"""The server as a process: it opens its port when it is ready, and exits without losing what it accepted."""

import os
import shutil
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest
from support.bundles import expected_mask, tiny_bundle
from support.servers import ServerProcess, until

from export.bundle import Bundle
from export.images import decode_indices, encode_image
from serve.settings import ServeSettings

SEGMENT = "/v1/models/tiny/segment"
PNG = {"Content-Type": "image/png"}
IMAGE = np.arange(64 * 48 * 3, dtype=np.uint32).reshape(64, 48, 3).astype(np.uint8)


class HalfSent:
    """A request whose headers and half of whose body have arrived, as the `number`th in flight."""

    def __init__(self, base_url: str, number: int = 1) -> None:
        url, self._body = httpx.URL(base_url), encode_image(IMAGE)
        self._connection = socket.create_connection((url.host, url.port or 80), timeout=20)
        length = len(self._body)
        head = f"POST {SEGMENT} HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {length}\r\n\r\n"
        self._connection.sendall(head.encode() + self._body[: length // 2])
        until(lambda: _in_flight(base_url) == number)

    def __enter__(self) -> "HalfSent":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def finish(self) -> bytes:
        """Send the rest; returns the whole answer, up to the end of the connection."""
        self._connection.sendall(self._body[len(self._body) // 2 :])
        return self.answer()

    def answer(self) -> bytes:
        return b"".join(iter(lambda: self._connection.recv(65536), b""))


def settings(**values: float | Path) -> ServeSettings:
    return ServeSettings.model_validate({"port": 0, "concurrency": 1, "grace_seconds": 0, **values})


def test_a_ready_server_says_what_it_chose_and_answers(bundle: Bundle) -> None:
    with ServerProcess([bundle.path], settings()) as server:
        response = httpx.post(server.base_url + SEGMENT, content=encode_image(IMAGE), headers=PNG)
        np.testing.assert_array_equal(decode_indices(response.content), expected_mask(IMAGE, 4))
        assert "server" not in response.headers
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    assert "usable cores: 1 requests computed at once on 1 threads each, 64 more may wait" in server.log
    assert f"tiny version 1, fp32, digest {bundle.manifest.digest}" in server.log
    assert "POST /v1/models/{name}/segment 200" in server.log
    assert "Traceback" not in server.log


def test_after_sigterm_it_says_not_ready_and_serves_for_the_grace(bundle: Bundle) -> None:
    with ServerProcess([bundle.path], settings(grace_seconds=60, drain_seconds=5)) as server:
        url = server.base_url
        server.signal(signal.SIGTERM)
        until(lambda: httpx.get(url + "/v2/health/ready").status_code == 503)
        for _ in range(3):
            answer = httpx.post(url + SEGMENT, content=encode_image(IMAGE), headers=PNG)
            np.testing.assert_array_equal(decode_indices(answer.content), expected_mask(IMAGE, 4))
            assert answer.headers["connection"] == "close"
        tensor = {"name": "image", "datatype": "UINT8", "shape": [1, *IMAGE.shape], "data": IMAGE.ravel().tolist()}
        assert httpx.post(url + "/v2/models/tiny/infer", json={"inputs": [tensor]}).status_code == 200
        assert "draining" not in server.log
        # A second signal does not wait for the grace period.
        server.signal(signal.SIGTERM)
        assert server.wait() == -signal.SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize(("number", "grace_seconds"), [(signal.SIGTERM, 1.0), (signal.SIGINT, 60.0)])
def test_after_the_grace_it_drains_and_ends_well(bundle: Bundle, number: signal.Signals, grace_seconds: float) -> None:
    """SIGINT, which people send from a terminal, skips the grace period."""
    with ServerProcess([bundle.path], settings(grace_seconds=grace_seconds)) as server:
        with HalfSent(server.base_url) as accepted:
            server.signal(number)
            until(lambda: "draining: 1 requests in flight" in server.log)
            assert accepted.finish().startswith(b"HTTP/1.1 200 ")
        assert server.wait() == 0
    assert ("no longer ready" in server.log) == (number == signal.SIGTERM)


def test_while_it_drains_it_finishes_what_it_accepted_and_takes_nothing_new(bundle: Bundle) -> None:
    with ServerProcess([bundle.path], settings()) as server:
        url = server.base_url
        with HalfSent(url) as accepted, httpx.Client(base_url=url) as kept:
            assert "connection" not in kept.get("/v2/health/ready").headers
            server.signal(signal.SIGTERM)
            until(lambda: httpx.get(url + "/v2/health/ready").status_code == 503)
            # On a connection that was open before, and on a new one.
            for post in (kept.post, httpx.post):
                refused = post(url + SEGMENT, content=encode_image(IMAGE), headers=PNG)
                assert (refused.status_code, refused.json()["reason"]) == (503, "draining")
                assert int(refused.headers["retry-after"]) >= 1
                assert refused.headers["connection"] == "close"
            assert httpx.get(url + "/v2/health/startup").json() == {"started": True}
            live = httpx.get(url + "/v2/health/live")
            assert (live.status_code, live.headers["connection"]) == (200, "close")
            head, _, body = accepted.finish().partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert b"connection: close" in head.lower()
            np.testing.assert_array_equal(decode_indices(body), expected_mask(IMAGE, 4))
        assert server.wait() == 0
    assert "every accepted request is answered" in server.log


@pytest.mark.slow
def test_a_refusal_during_the_drain_is_not_lost_under_a_large_upload(bundle: Bundle) -> None:
    """Closing a connection with unread bytes resets it, and the client never sees why."""
    length = 12 * 2**20
    with ServerProcess([bundle.path], settings()) as server, HalfSent(server.base_url) as accepted:
        url = httpx.URL(server.base_url)
        server.signal(signal.SIGTERM)
        until(lambda: "draining" in server.log)
        with socket.create_connection((url.host, url.port or 80), timeout=20) as connection:
            head = f"POST {SEGMENT} HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {length}\r\n\r\n"
            connection.sendall(head.encode())
            connection.sendall(bytes(length))
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 503 ")
        accepted.finish()
        assert server.wait() == 0


@pytest.mark.slow
def test_every_accepted_request_gets_its_one_answer_after_the_signal(bundle: Bundle) -> None:
    with ServerProcess([bundle.path], settings()) as server, ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        accepted = [stack.enter_context(HalfSent(server.base_url, number)) for number in range(1, 9)]
        server.signal(signal.SIGTERM)
        until(lambda: "draining: 8 requests in flight" in server.log)
        answers = list(pool.map(HalfSent.finish, accepted))
        assert server.wait() == 0
    for answer in answers:
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        np.testing.assert_array_equal(decode_indices(body), expected_mask(IMAGE, 4))


def _in_flight(url: str) -> int:
    text = httpx.get(url + "/metrics").text
    return int(float(next(line.split()[1] for line in text.splitlines() if line.startswith("segpress_requests_in_f"))))


@pytest.mark.slow
def test_what_was_on_its_way_when_the_signal_came_is_answered(bundle: Bundle) -> None:
    with ServerProcess([bundle.path], settings()) as server:
        url = server.base_url
        server.signal(signal.SIGTERM)
        until(lambda: "draining: 0 requests in flight" in server.log)
        time.sleep(0.15)
        assert httpx.post(url + SEGMENT, content=encode_image(IMAGE), headers=PNG).status_code == 503
        assert server.wait() == 0


def test_a_second_signal_ends_it_at_once(bundle: Bundle) -> None:
    with ServerProcess([bundle.path], settings(drain_seconds=60)) as server, HalfSent(server.base_url):
        server.signal(signal.SIGTERM)
        until(lambda: "draining" in server.log)
        begun = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait() == -signal.SIGTERM
        assert time.monotonic() - begun < 5


@pytest.mark.slow
def test_a_drain_that_takes_too_long_ends_with_the_work_failed(bundle: Bundle) -> None:
    with ServerProcess([bundle.path], settings(drain_seconds=0.5)) as server, HalfSent(server.base_url) as stuck:
        server.signal(signal.SIGTERM)
        assert server.wait() == 1
        assert stuck.answer().startswith(b"HTTP/1.1 503 ")
    assert "1 accepted requests were cut off after draining for 0.5 s; raise drain_seconds" in server.log
    assert "Traceback" not in server.log


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_idle_server_stops_promptly_with_clients_connected(bundle: Bundle, number: signal.Signals) -> None:
    with ServerProcess([bundle.path], settings()) as server, httpx.Client(base_url=server.base_url) as idle:
        assert idle.get("/v2/health/live").status_code == 200
        server.signal(number)
        assert server.wait(seconds=10) == 0


def test_a_signal_ends_the_start_at_once_and_well(bundle: Bundle, tmp_path: Path) -> None:
    """A handler ends it, never the default action, which the kernel does not apply to a container's first process."""
    keys = tmp_path / "keys"
    os.mkfifo(keys)
    # Opening the FIFO blocks until the server reads it.
    with ServerProcess([bundle.path], settings(api_keys=keys)) as server, keys.open("wb"):
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    assert "before the server was ready" in server.log
    assert "Traceback" not in server.log


@pytest.mark.slow
def test_a_signal_does_not_wait_for_the_warm_up(tmp_path: Path) -> None:
    slow = tiny_bundle(tmp_path / "slow", size=(1536, 1536))
    with ServerProcess([slow.path], settings(grace_seconds=60)) as server:
        until(lambda: "usable cores" in server.log)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    assert "ready on" not in server.log


def test_a_damaged_bundle_stops_the_server_with_its_message(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.path, tmp_path / "damaged")
    (tmp_path / "damaged" / "parity.json").unlink()
    with ServerProcess([tmp_path / "damaged"], settings()) as server:
        assert server.wait() == 2
    assert "parity.json is missing" in server.log
    assert "Traceback" not in server.log


def test_a_port_that_is_taken_is_said(bundle: Bundle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with ServerProcess([bundle.path], settings(port=port)) as server:
            assert server.wait() == 2
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in server.log


@pytest.mark.slow
@pytest.mark.parametrize("door", ["port", "grpc_port"])
def test_a_port_that_another_server_takes_during_the_start_is_said(tmp_path: Path, door: str) -> None:
    # Large images make the warm-up long, and the other server takes the port during it.
    slow = tiny_bundle(tmp_path / "slow", size=(1536, 1536))
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with ServerProcess([slow.path], settings(**{door: port})) as server:
            until(lambda: "usable cores" in server.log)
            taken.listen()
            assert server.wait() == 2
    assert "cannot listen " in server.log
    assert f"on 127.0.0.1:{port}" in server.log
    assert "Traceback" not in server.log
