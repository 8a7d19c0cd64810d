"""Overload: honest refusals, deadlines, and no work for clients that have left."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import httpx
import numpy as np
import pytest
from support.bundles import expected_mask
from support.servers import GatedPredictor, metric, serving, until

from export.bundle import Bundle
from export.images import U8, decode_indices, encode_image
from serve.settings import ServeSettings

SEGMENT = "/v1/models/tiny/segment"
PNG = {"Content-Type": "image/png"}
HALF_SENT = f"POST {SEGMENT} HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 99\r\n\r\nhalf".encode()
HEALTH = ("/v2/health/live", "/v2/health/ready", "/v2/health/startup")


def shade(value: int) -> U8:
    return np.full((16, 16, 3), value, dtype=np.uint8)


@pytest.fixture
def predictor(bundle: Bundle) -> GatedPredictor:
    return GatedPredictor(bundle)


class Clients:
    """Requests that are under way at the same time."""

    def __init__(self, base_url: str, pool: ThreadPoolExecutor) -> None:
        self.base_url = base_url
        self._pool = pool

    def send(self, image: U8) -> "Future[httpx.Response]":
        return self._pool.submit(
            httpx.post, self.base_url + SEGMENT, content=encode_image(image), headers=PNG, timeout=30
        )

    def until_waiting(self, count: int) -> None:
        until(lambda: metric(self.base_url, "segpress_queue_depth") == count)

    def until_busy(self, count: int) -> None:
        until(lambda: metric(self.base_url, "segpress_workers_busy") == count)


@contextmanager
def overloaded(
    predictor: GatedPredictor, settings: ServeSettings
) -> Iterator[tuple[Clients, list["Future[httpx.Response]"]]]:
    """A server whose workers are held up and whose queue is full, and the requests that it holds."""
    with serving([predictor], settings) as url, ThreadPoolExecutor(16) as pool, predictor.closed():
        predictor.seen.clear()
        clients = Clients(url, pool)
        held = [clients.send(shade(0)) for _ in range(settings.concurrency)]
        clients.until_busy(settings.concurrency)
        for index in range(settings.queue_limit):
            held.append(clients.send(shade(10 * (index + 1))))
            clients.until_waiting(index + 1)
        yield clients, held


def test_what_the_queue_cannot_hold_is_refused_with_the_time_to_come_back(predictor: GatedPredictor) -> None:
    with overloaded(predictor, ServeSettings(concurrency=1, queue_limit=3)) as (clients, held):
        refused = [clients.send(shade(200)).result() for _ in range(5)]
        for response in refused:
            assert response.status_code == 429
            assert response.json()["reason"] == "queue_full"
            assert int(response.headers["retry-after"]) >= 1
        predictor.gate.set()
        for index, future in enumerate(held):
            mask = decode_indices(future.result().raise_for_status().content)
            np.testing.assert_array_equal(mask, expected_mask(shade(10 * index), 4))
        assert metric(clients.base_url, 'segpress_errors_total{model="tiny",reason="queue_full"}') == 5
    assert len(predictor.seen) == 4


def test_what_will_be_refused_need_not_be_uploaded(predictor: GatedPredictor) -> None:
    with overloaded(predictor, ServeSettings(concurrency=1, queue_limit=0)) as (clients, _):
        url = httpx.URL(clients.base_url)
        head = f"POST {SEGMENT} HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 100000\r\n\r\n"
        with socket.create_connection((url.host, url.port or 80), timeout=10) as connection:
            connection.sendall(head.encode())
            assert connection.recv(4096).startswith(b"HTTP/1.1 429 ")


def test_retry_after_grows_with_the_service_time_and_the_queue(predictor: GatedPredictor) -> None:
    settings = ServeSettings(concurrency=1, queue_limit=8)
    with serving([predictor], settings) as url, ThreadPoolExecutor(16) as pool:
        clients = Clients(url, pool)
        begun = time.perf_counter()
        with predictor.closed():
            slow = clients.send(shade(1))
            clients.until_busy(1)
            time.sleep(1.0)
        slow.result()
        seconds = time.perf_counter() - begun
        with predictor.closed():
            held = [clients.send(shade(0))]
            clients.until_busy(1)
            for index in range(8):
                held.append(clients.send(shade(0)))
                clients.until_waiting(index + 1)
            # The slow run of one second weighs a fifth: about 0.2 s for each of the nine ahead. On a busy machine
            # everything is slower, the warm-up included.
            assert 2 <= int(clients.send(shade(0)).result().headers["retry-after"]) <= 6 * seconds
            assert 1.5 <= metric(url, "segpress_queue_wait_estimate_seconds") <= 6 * seconds
        assert {future.result().status_code for future in held} == {200}


def test_a_deadline_passed_in_the_queue_is_504_at_once_and_costs_no_prediction(predictor: GatedPredictor) -> None:
    settings = ServeSettings(concurrency=1, queue_limit=2, deadline_seconds=1.0)
    with overloaded(predictor, settings) as (_, held):
        # The worker is still held up: late requests are refused without waiting for it.
        for future in held[1:]:
            response = future.result(timeout=10)
            assert (response.status_code, response.json()["reason"]) == (504, "deadline")
        assert not held[0].done()
        predictor.gate.set()
        assert held[0].result().status_code == 200
    assert len(predictor.seen) == 1


def test_health_metadata_and_metrics_answer_while_the_queue_is_full(predictor: GatedPredictor) -> None:
    with overloaded(predictor, ServeSettings(concurrency=1, queue_limit=2)) as (clients, _):
        for path in (*HEALTH, "/v2/models/tiny", "/metrics"):
            assert httpx.get(clients.base_url + path, timeout=5).status_code == 200


def test_health_answers_while_every_worker_is_held_and_more_comes_in(predictor: GatedPredictor) -> None:
    """Every worker computes, the queue is full, and more clients have begun to upload."""
    settings = ServeSettings(concurrency=3, queue_limit=3)
    with overloaded(predictor, settings) as (clients, _), ExitStack() as stack:
        url = httpx.URL(clients.base_url)
        for _ in range(settings.concurrency):
            connection = stack.enter_context(socket.create_connection((url.host, url.port or 80)))
            connection.sendall(HALF_SENT)
        for path in HEALTH * 3:
            response = httpx.get(clients.base_url + path, timeout=5)
            assert response.status_code == 200
            assert list(response.json().values()) == [True]
        assert metric(clients.base_url, "segpress_workers_busy") == settings.concurrency


def send_and_hang_up(base_url: str, clients: Clients, *, waiting: int) -> None:
    """Send a whole request, see it in the queue, close the connection."""
    url, body = httpx.URL(base_url), encode_image(shade(250))
    head = f"POST {SEGMENT} HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((url.host, url.port or 80)) as connection:
        connection.sendall(head.encode() + body)
        clients.until_waiting(waiting)


def test_a_client_that_leaves_the_queue_is_never_computed(predictor: GatedPredictor) -> None:
    with overloaded(predictor, ServeSettings(concurrency=1, queue_limit=1)) as (clients, held):
        predictor.gate.set()
        [future.result() for future in held]
        predictor.gate.clear()
        predictor.seen.clear()
        first = clients.send(shade(30))
        clients.until_busy(1)
        send_and_hang_up(clients.base_url, clients, waiting=1)
        clients.until_waiting(0)
        after = clients.send(shade(60))
        clients.until_waiting(1)
        predictor.gate.set()
        assert {first.result().status_code, after.result().status_code} == {200}
        assert metric(clients.base_url, 'segpress_errors_total{model="tiny",reason="disconnected"}') == 1
        assert metric(clients.base_url, 'segpress_requests_total{code="499",model="tiny"}') == 1
    assert [int(images.flat[0]) for images in predictor.seen] == [30, 60]


def test_a_client_that_leaves_while_it_is_computed_harms_nobody(predictor: GatedPredictor) -> None:
    with serving([predictor], ServeSettings(concurrency=1)) as url, ThreadPoolExecutor(2) as pool:
        clients = Clients(url, pool)
        with predictor.closed():
            connection = socket.create_connection((httpx.URL(url).host, httpx.URL(url).port or 80))
            body = encode_image(shade(250))
            head = (
                f"POST {SEGMENT} HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            connection.sendall(head.encode() + body)
            clients.until_busy(1)
            connection.close()
            until(lambda: metric(url, "segpress_requests_in_flight") == 0)
        assert clients.send(shade(70)).result().status_code == 200


def test_an_upload_that_never_ends_is_cut_off(bundle: Bundle) -> None:
    with serving([bundle.path], ServeSettings(upload_seconds=0.3)) as url:
        head = f"POST {SEGMENT} HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\n"
        with socket.create_connection((httpx.URL(url).host, httpx.URL(url).port or 80)) as connection:
            connection.sendall(head.encode() + bytes(10))
            answer = b"".join(iter(lambda: connection.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"reason":"slow_upload"' in answer


def test_memory_for_bodies_is_bounded_over_all_requests(predictor: GatedPredictor) -> None:
    body = encode_image(np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8))
    settings = ServeSettings(concurrency=1, max_body_bytes=len(body), max_buffered_bytes=len(body) * 2)
    with serving([predictor], settings) as url, ThreadPoolExecutor(4) as pool:
        with predictor.closed():
            held = [pool.submit(httpx.post, url + SEGMENT, content=body, headers=PNG, timeout=30) for _ in range(2)]
            until(lambda: metric(url, "segpress_body_bytes") == 2 * len(body))
            refused = httpx.post(url + SEGMENT, content=body, headers=PNG)
            assert (refused.status_code, refused.json()["reason"]) == (429, "memory")
            assert refused.headers["retry-after"] == "1"
        assert {future.result().status_code for future in held} == {200}
        until(lambda: metric(url, "segpress_body_bytes") == 0)
        assert httpx.post(url + SEGMENT, content=body, headers=PNG).status_code == 200


def test_a_bug_in_a_predictor_is_a_500_for_its_request_alone(predictor: GatedPredictor) -> None:
    class Faulty(GatedPredictor):
        def predict(self, images_NHWC: U8) -> U8:
            if images_NHWC.flat[0] == 13:
                raise RuntimeError("a secret path")
            return super().predict(images_NHWC)

    predictor.__class__ = Faulty
    with serving([predictor], ServeSettings(concurrency=2)) as url, ThreadPoolExecutor(8) as pool:
        clients = Clients(url, pool)
        answers = [clients.send(shade(value)) for value in (13, 40, 13, 80)]
        assert [future.result().status_code for future in answers] == [500, 200, 500, 200]
        problem = answers[0].result()
        assert problem.headers["content-type"] == "application/problem+json"
        assert problem.json()["request_id"] == problem.headers["x-request-id"]
        assert "secret" not in problem.text
        assert metric(url, 'segpress_errors_total{model="tiny",reason="internal"}') == 2
