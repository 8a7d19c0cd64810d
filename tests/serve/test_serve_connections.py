"""Clients that dawdle, send no HTTP, read nothing or are too many: each loses its own connection and nobody else's."""

import asyncio
import contextlib
import functools
import json
import re
import select
import socket
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from support.servers import GatedPredictor, metric, serving, until

from export.bundle import Bundle
from export.images import encode_image
from serve.settings import ServeSettings

SEGMENT = "/v1/models/tiny/segment"
PNG = {"Content-Type": "image/png"}
IMAGE = encode_image(np.zeros((16, 16, 3), np.uint8))
LARGE = encode_image(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8))
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD = b"POST " + SEGMENT.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
ASK = HEAD + b"Content-Length: %d\r\n\r\n" % len(IMAGE) + IMAGE
LAST_ASK = ASK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
BAD_CHUNK = b"many\r\n"
PATIENCE = 0.4
HASTY = ServeSettings(concurrency=1, header_seconds=PATIENCE, send_seconds=PATIENCE)


@pytest.fixture(scope="module")
def hasty_url(bundle: Bundle) -> Iterator[str]:
    """A server that gives clients `PATIENCE` seconds for headers, and as long to take an answer."""
    with serving([bundle.path], HASTY) as url:
        yield url


@contextlib.contextmanager
def connection(url: str) -> Iterator[socket.socket]:
    where = httpx.URL(url)
    with socket.create_connection((where.host, where.port or 80), timeout=20) as opened:
        yield opened


def to_the_end(opened: socket.socket) -> bytes:
    """Everything received until the server closes the connection; the test fails if it does not."""
    return b"".join(iter(lambda: opened.recv(65536), b""))


def assert_live(opened: socket.socket) -> None:
    """Check that the connection still gets answers, and leave it open."""
    opened.sendall(LIVE)
    answer = b""
    while not answer.endswith(b"}"):
        answer += opened.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200 ")


def problem_in(answer: bytes) -> tuple[int, str]:
    """Status and reason of an answer, which must be one problem that closes the connection."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head.lower()
    assert b"connection: close" in head.lower()
    problem = json.loads(body)
    assert head.startswith(b"HTTP/1.1 %d " % problem["status"])
    assert f"x-request-id: {problem['request_id']}".encode() in head.lower()
    assert b"content-security-policy: " in head.lower()
    return problem["status"], problem["reason"]


@pytest.mark.parametrize(
    "begun",
    [b"G", LIVE[:-2], LIVE + LIVE[:20], b"POST " + SEGMENT.encode() + b" HTTP/1.1\r\nContent-Type: image/png\r\n"],
    ids=["a byte", "all but the end", "the second request", "a POST"],
)
def test_headers_that_never_end_are_answered_408(hasty_url: str, begun: bytes) -> None:
    with connection(hasty_url) as slow:
        slow.sendall(begun)
        answer = to_the_end(slow)
    assert problem_in(answer[answer.rindex(b"HTTP/1.1 ") :]) == (408, "slow_headers")
    assert metric(hasty_url, 'segpress_errors_total{model="",reason="slow_headers"}') >= 1


def test_who_asks_before_sending_too_much_is_told_at_once_and_not_to_send(hasty_url: str) -> None:
    """Clients that wait for 100 Continue send nothing before they have it."""
    with connection(hasty_url) as asking:
        asking.sendall(HEAD + b"Content-Length: 400000000\r\nExpect: 100-continue\r\n\r\n")
        assert problem_in(to_the_end(asking)) == (413, "body_too_large")


def test_headers_that_come_byte_by_byte_get_no_more_time(hasty_url: str) -> None:
    with connection(hasty_url) as slow:
        slow.settimeout(PATIENCE / 8)
        answer = b""
        for byte in b"GET / HTTP/1.1\r\nX-Long: " + b"x" * 1000:
            with contextlib.suppress(TimeoutError, BrokenPipeError):
                slow.sendall(bytes([byte]))
                answer = slow.recv(65536)
            if answer:
                break
        slow.settimeout(20)
        answer += to_the_end(slow)
    assert problem_in(answer) == (408, "slow_headers")


def test_a_connection_that_says_nothing_is_closed_without_a_word(hasty_url: str) -> None:
    with connection(hasty_url) as silent:
        assert to_the_end(silent) == b""


def wait_for_the_time_for_headers(url: str) -> None:
    """Return when the server has closed a connection that was opened now and says nothing."""
    with connection(url) as clock:
        to_the_end(clock)


def test_a_connection_between_requests_is_kept(hasty_url: str) -> None:
    with httpx.Client(base_url=hasty_url) as kept:
        first = kept.get("/v2/health/live").extensions["network_stream"].get_extra_info("client_addr")
        wait_for_the_time_for_headers(hasty_url)
        again = kept.get("/v2/health/live").extensions["network_stream"].get_extra_info("client_addr")
        assert first == again


def test_a_body_that_nobody_reads_is_not_waited_for(hasty_url: str) -> None:
    with connection(hasty_url) as slow:
        slow.sendall(b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf")
        assert to_the_end(slow).startswith(b"HTTP/1.1 404 ")


def test_the_time_for_headers_does_not_limit_how_long_a_body_or_its_computing_takes(gated: GatedPredictor) -> None:
    with serving([gated], HASTY) as url, connection(url) as opened:
        seen = len(gated.seen)
        opened.sendall(LAST_ASK[:-10])
        wait_for_the_time_for_headers(url)
        with gated.closed():
            opened.sendall(LAST_ASK[-10:])
            until(lambda: len(gated.seen) == seen + 1)
            wait_for_the_time_for_headers(url)
        assert to_the_end(opened).startswith(b"HTTP/1.1 200 ")


def test_who_does_not_read_is_cut_off(hasty_url: str) -> None:
    """The answers are more than the kernel buffers for a client that reads none of them."""
    with connection(hasty_url) as deaf:
        deaf.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
        hung_up = select.poll()
        hung_up.register(deaf, 0)  # POLLERR and POLLHUP alone, which are reported unasked
        assert hung_up.poll(20_000), "the connection is still open"


@pytest.mark.parametrize(
    "last",
    [b"Connection: close\r\n\r\n", b"\r\nsurplus\r\n\r\n", b"\r\n" + LIVE[:20], b"\r\n"],
    ids=["close", "bad bytes", "half a request", "the end"],
)
def test_who_does_not_read_is_cut_off_however_little_is_left(bundle: Bundle, last: bytes) -> None:
    """So little is left that writing never pauses: the server would wait for the client only on closing."""
    with serving([bundle.path], HASTY, kernel_holds=4096) as url, socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        where = httpx.URL(url)
        deaf.connect((where.host, where.port))
        deaf.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n" + last)
        until(lambda: bool(select.select([deaf], [], [], 0)[0]))
        if last == b"\r\n":
            deaf.shutdown(socket.SHUT_WR)
        hung_up = select.poll()
        hung_up.register(deaf, 0)
        assert hung_up.poll(20_000), "the connection is still open"


@contextlib.contextmanager
def slow_reader(url: str, *, more: bytes) -> Iterator[socket.socket]:
    """A client that has asked for a mask of 256 KiB, and whose kernel buffers little of it."""
    where = httpx.URL(url)
    image = encode_image(np.zeros((512, 512, 3), np.uint8))
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.settimeout(20)
        reader.connect((where.host, where.port))
        head = HEAD + b"Accept: application/octet-stream\r\n%bContent-Length: %d\r\n\r\n" % (more, len(image))
        reader.sendall(head + image)
        yield reader


def read_slowly(reader: socket.socket) -> int:
    """Bytes received until the connection ended or the mask was whole."""
    received = 0
    with contextlib.suppress(ConnectionError):
        while received < 512 * 512 and (piece := reader.recv(4096)):
            received += len(piece)
            time.sleep(0.05)
    return received


@pytest.mark.parametrize("more", [b"", b"Connection: close\r\n"], ids=["kept", "closing"])
def test_who_reads_slowly_and_steadily_gets_a_large_answer_whole(bundle: Bundle, more: bytes) -> None:
    """Reading it takes several times `send_seconds`."""
    settings = ServeSettings(concurrency=1, send_seconds=1)
    with serving([bundle.path], settings, kernel_holds=4096) as url, slow_reader(url, more=more) as reader:
        assert read_slowly(reader) >= 512 * 512


@pytest.mark.parametrize("more", [b"", b"Connection: close\r\n"], ids=["kept", "closing"])
def test_who_takes_next_to_nothing_is_cut_off(bundle: Bundle, more: bytes) -> None:
    settings = ServeSettings(concurrency=1, send_seconds=1)
    with serving([bundle.path], settings, kernel_holds=4096) as url, slow_reader(url, more=more) as reader:
        hung_up = select.poll()
        hung_up.register(reader, 0)
        until(lambda: bool(reader.recv(1)) and bool(hung_up.poll(50)))


def test_where_answers_take_all_memory_nobody_is_waited_for_any_longer(bundle: Bundle) -> None:
    settings = ServeSettings(concurrency=1, send_seconds=1, max_body_bytes=8192, max_buffered_bytes=8192)
    with serving([bundle.path], settings, kernel_holds=4096) as url, slow_reader(url, more=b"") as reader:
        assert read_slowly(reader) < 512 * 512


def test_while_answers_that_nobody_takes_fill_the_memory_no_more_are_made(bundle: Bundle) -> None:
    settings = ServeSettings(concurrency=1, max_body_bytes=2**17, max_buffered_bytes=2**17)
    with serving([bundle.path], settings, kernel_holds=4096) as url:
        ask = functools.partial(httpx.post, url + SEGMENT, content=IMAGE, headers=PNG)
        with slow_reader(url, more=b"") as reader:
            until(lambda: bool(select.select([reader], [], [], 0)[0]))
            refused = ask()
            assert (refused.status_code, refused.json()["reason"]) == (429, "memory")
            assert (refused.headers["connection"], refused.headers["retry-after"]) == ("close", "1")
            assert httpx.get(url + "/v2/health/ready").status_code == 200
        until(lambda: ask().status_code == 200)
        assert metric(url, 'segpress_errors_total{model="",reason="memory"}') >= 1


def test_who_does_not_read_is_cut_off_where_writelines_never_pauses(
    hasty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in Python 3.12.0 to 3.12.8, 3.13.0 and 3.13.1."""

    def writelines(transport: asyncio.Transport, parts: list[bytes]) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(transport, "_maybe_pause_protocol", lambda: None)
            transport.write(b"".join(parts))

    monkeypatch.setattr("asyncio.selector_events._SelectorSocketTransport.writelines", writelines)
    test_who_does_not_read_is_cut_off(hasty_url)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/one\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
        b"GET / HTTP/1.1\r\nX-Host: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.0\r\nHost: x\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Large: " + b"x" * 70_000,
        b"POST " + SEGMENT.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nmany\r\n",
    ],
    ids=[
        "TLS",
        "no path",
        "version",
        "no colon",
        "length",
        "no Host",
        "two Hosts",
        "two Hosts in HTTP/1.0",
        "large",
        "chunk",
    ],
)
def test_what_is_no_http_is_a_problem(hasty_url: str, sent: bytes) -> None:
    with connection(hasty_url) as opened:
        opened.sendall(sent)
        assert problem_in(to_the_end(opened)) == (400, "bad_http")
    assert httpx.get(hasty_url + "/v2/health/live").status_code == 200


@pytest.fixture(scope="module")
def gated(bundle: Bundle) -> GatedPredictor:
    return GatedPredictor(bundle)


@pytest.fixture(scope="module")
def gated_url(gated: GatedPredictor) -> Iterator[str]:
    with serving([gated], ServeSettings(concurrency=1)) as url:
        yield url


def answers_in(received: bytes) -> list[tuple[int, str, bytes]]:
    """Status, media type and body of each answer; `received` must hold whole answers and nothing else."""
    found = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        status = int(head.removeprefix(b"HTTP/1.1 ").split()[0])
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        length = int(fields[b"content-length"])
        assert len(rest) >= length, "cut off"
        found.append((status, fields[b"content-type"].decode(), rest[:length]))
        received = rest[length:]
    return found


@pytest.mark.parametrize("whole", [1, 3])
@pytest.mark.parametrize("at_once", [True, False], ids=["in one piece", "later"])
@pytest.mark.parametrize(
    "bad",
    [
        b"surplus\r\n\r\n",
        LIVE.replace(b"Host: x\r\n", b""),
        LIVE.replace(b"/v2", b"v2"),
        HEAD + CHUNKED + BAD_CHUNK,
        HEAD + b"Content-Length: many\r\n\r\n",
    ],
    ids=["surplus", "no Host", "path", "chunk", "length"],
)
def test_bad_bytes_behind_a_request_in_work_take_no_answer_but_their_own(
    gated: GatedPredictor, gated_url: str, bad: bytes, at_once: bool, whole: int
) -> None:
    seen = len(gated.seen)
    with connection(gated_url) as opened:
        with gated.closed():
            opened.sendall(ASK * whole + bad * at_once)
            until(lambda: len(gated.seen) == seen + 1)
            opened.sendall(bad * (not at_once) + b"and what follows")
            assert not select.select([opened], [], [], 0.2)[0], "an answer before its turn"
        *masks, refusal = answers_in(to_the_end(opened))
    assert [(status, form) for status, form, _ in masks] == [(200, "image/png")] * whole
    assert (refusal[0], json.loads(refusal[2])["reason"]) == (400, "bad_http")
    until(lambda: len(gated.seen) == seen + whole)


@pytest.mark.parametrize(
    "endless", [LIVE[:-2] + b"X-Large: ", HEAD + CHUNKED + b"0\r\nX-Trailer: "], ids=["headers", "a trailer"]
)
def test_what_never_ends_behind_a_request_in_work_takes_no_answer_but_its_own(
    gated: GatedPredictor, gated_url: str, endless: bytes
) -> None:
    seen = len(gated.seen)
    with connection(gated_url) as opened:
        with gated.closed():
            opened.sendall(ASK + endless)
            until(lambda: len(gated.seen) == seen + 1)
            opened.sendall(b"x" * 70_000)
            assert not select.select([opened], [], [], 0.2)[0], "an answer before its turn"
        assert [status for status, _, _ in answers_in(to_the_end(opened))] == [200, 400]


def test_a_bad_body_that_waits_behind_a_request_in_work_is_never_computed(
    gated: GatedPredictor, gated_url: str
) -> None:
    seen = len(gated.seen)
    with connection(gated_url) as opened:
        with gated.closed():
            opened.sendall(ASK + HEAD + CHUNKED)
            until(lambda: len(gated.seen) == seen + 1)
            opened.sendall(b"%x\r\n" % len(IMAGE) + IMAGE + b"\r\n" + BAD_CHUNK)
        assert [status for status, _, _ in answers_in(to_the_end(opened))] == [200, 400]
    assert len(gated.seen) == seen + 1


def test_a_bad_body_of_a_request_that_has_its_answer_gets_no_second_one(hasty_url: str) -> None:
    with connection(hasty_url) as opened:
        opened.sendall(HEAD.replace(b"tiny", b"none") + CHUNKED)
        until(lambda: bool(select.select([opened], [], [], 0)[0]))
        opened.sendall(BAD_CHUNK)
        assert [status for status, _, _ in answers_in(to_the_end(opened))] == [404]


def test_who_wants_to_close_after_a_request_is_told_nothing_of_what_follows(
    gated: GatedPredictor, gated_url: str
) -> None:
    seen = len(gated.seen)
    with connection(gated_url) as opened:
        with gated.closed():
            opened.sendall(LAST_ASK)
            until(lambda: len(gated.seen) == seen + 1)
            opened.sendall(b"surplus\r\n\r\n")
        assert [status for status, _, _ in answers_in(to_the_end(opened))] == [200]


def test_a_client_that_leaves_behind_bad_bytes_takes_its_request_along(gated: GatedPredictor, gated_url: str) -> None:
    seen = len(gated.seen)
    with gated.closed(), connection(gated_url) as busy, connection(gated_url) as leaving:
        busy.sendall(ASK)
        until(lambda: len(gated.seen) == seen + 1)
        leaving.sendall(ASK + HEAD + CHUNKED + BAD_CHUNK)
        until(lambda: metric(gated_url, "segpress_queue_depth") == 1)
        leaving.close()
        until(lambda: metric(gated_url, "segpress_queue_depth") == 0)


def test_every_answer_that_was_begun_is_ended_before_a_refusal(gated_url: str) -> None:
    """The answers are more than the kernel buffers: the server waits for the client to read when the bad bytes come."""
    with connection(gated_url) as opened:
        opened.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 150 + b"surplus\r\n\r\n")
        until(lambda: bool(select.select([opened], [], [], 0)[0]))
        assert [status for status, _, _ in answers_in(to_the_end(opened))] == [200] * 150 + [400]


def test_http_1_0_may_leave_host_out(hasty_url: str) -> None:
    with connection(hasty_url) as opened:
        opened.sendall(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
        assert to_the_end(opened).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
def test_who_asks_for_another_protocol_is_answered_in_this_one(hasty_url: str, protocol: str) -> None:
    asks = {"Connection": "Upgrade", "Upgrade": protocol}
    with httpx.Client(base_url=hasty_url) as kept:
        for _ in range(2):
            assert kept.get("/v2/health/live", headers=asks).status_code == 200
            assert kept.post(SEGMENT, content=IMAGE, headers={**PNG, **asks}).status_code == 200
            assert kept.post(SEGMENT, content=iter([IMAGE]), headers={**PNG, **asks}).status_code == 200


def test_what_comes_along_with_such_a_request_is_answered_too(hasty_url: str) -> None:
    asks = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
    head = f"POST {SEGMENT} HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(IMAGE)}\r\n"
    with connection(hasty_url) as opened:
        opened.sendall(LIVE[:-2] + asks + head.encode() + asks + IMAGE + LIVE[:-2] + b"Connection: close\r\n\r\n")
        assert re.findall(rb"HTTP/1.1 (\d+)", to_the_end(opened)) == [b"200"] * 3


@pytest.mark.parametrize(
    "endless",
    [b"0\r\nX-Trailer: " + b"x" * 66_000, b"0\r\n" + b"X-Trailer: x\r\n" * 4700, b"1;extension=" + b"x" * 66_000],
    ids=["a long trailer", "many trailers", "an extension of a chunk"],
)
def test_what_stands_around_chunks_is_bounded_as_headers_are(hasty_url: str, endless: bytes) -> None:
    head = f"POST {SEGMENT} HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n"
    with connection(hasty_url) as opened:
        opened.sendall(head.encode() + b"Expect: 100-continue\r\n\r\n")
        assert opened.recv(65536).startswith(b"HTTP/1.1 100 ")
        opened.sendall(endless)
        assert problem_in(to_the_end(opened)) == (400, "bad_http")


def test_chunks_of_any_number_are_no_headers(hasty_url: str) -> None:
    def in_crumbs() -> Iterator[bytes]:
        for byte in LARGE:
            yield bytes([byte])

    assert httpx.post(hasty_url + SEGMENT, content=in_crumbs(), headers=PNG).status_code == 200


def test_on_too_many_connections_health_alone_is_answered(bundle: Bundle) -> None:
    settings = ServeSettings(concurrency=1, max_connections=2)
    with serving([bundle.path], settings) as url, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connection(url)) for _ in range(2)]
        for opened in idle:
            assert_live(opened)
        refused = httpx.post(url + SEGMENT, content=IMAGE, headers=PNG)
        assert (refused.status_code, refused.json()["reason"]) == (503, "connections")
        assert (refused.headers["connection"], refused.headers["retry-after"]) == ("close", "1")
        for path in ("/v2/health/live", "/v2/health/ready"):
            health = httpx.get(url + path)
            assert (health.status_code, health.headers["connection"]) == (200, "close")
        # Beyond twice the limit, not even health.
        stack.enter_context(connection(url))
        stack.enter_context(connection(url))
        with connection(url) as fifth, contextlib.suppress(ConnectionError):
            fifth.sendall(LIVE)
            assert to_the_end(fifth) == b""
        # Earlier connections keep working, and closed ones make room again.
        assert_live(idle[0])
        stack.close()
        until(lambda: httpx.post(url + SEGMENT, content=IMAGE, headers=PNG).status_code == 200)
        assert metric(url, 'segpress_errors_total{model="",reason="connections"}') >= 1
