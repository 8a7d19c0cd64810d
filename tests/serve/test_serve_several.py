"""Several images in one request: one answer for each, in order, whatever happens to the others."""

import email
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco
from support.bundles import expected_mask
from support.oip import some_images
from support.servers import GatedPredictor, metric, serving, until

from export.bundle import Bundle
from export.images import decode_indices, encode_image
from serve.answers import Answer, to_mixed
from serve.settings import ServeSettings

SEGMENT = "/v1/models/tiny/segment"
JSON = {"Accept": "application/json"}
IMAGES = [some_images(1, *size, seed=seed)[0] for seed, size in enumerate([(20, 30), (1, 1), (20, 30), (50, 17)])]
LIMITS = ServeSettings(concurrency=2, max_pixels=128 * 128, max_body_bytes=2**20, max_images=6)


@pytest.fixture(scope="module")
def client(bundle: Bundle) -> Iterator[httpx.Client]:
    with serving([bundle.path], LIMITS) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


def form(files: Sequence[bytes], field: str = "images") -> list[tuple[str, tuple[str, bytes, str]]]:
    return [(field, (f"{index}.png", file, "image/png")) for index, file in enumerate(files)]


def parts_of(media_type: str, body: bytes) -> list[tuple[str, bytes]]:
    """(media type, content) of each part, as Python's standard library reads them."""
    message: Any = email.message_from_bytes(b"Content-Type: " + media_type.encode() + b"\r\n\r\n" + body)
    assert message.is_multipart()
    assert not message.defects
    return [(part.get_content_type(), part.get_payload(decode=True)) for part in message.get_payload()]


def test_each_has_its_mask_in_a_part_of_its_own(client: httpx.Client) -> None:
    answer = client.post(SEGMENT, files=form([encode_image(image) for image in IMAGES])).raise_for_status()
    parts = parts_of(answer.headers["content-type"], answer.content)
    assert [media_type for media_type, _ in parts] == ["image/png"] * len(IMAGES)
    for image, (_, mask) in zip(IMAGES, parts, strict=True):
        np.testing.assert_array_equal(decode_indices(mask), expected_mask(image, 4))
        single = client.post(SEGMENT, content=encode_image(image), headers={"Content-Type": "image/png"})
        assert mask == single.content
    stages = [entry.split(";")[0] for entry in answer.headers["server-timing"].split(", ")]
    assert stages == ["queue", "decode", "preprocess", "inference", "postprocess", "encode"]


def test_json_is_a_list_of_what_single_images_get(client: httpx.Client) -> None:
    files = [encode_image(image) for image in IMAGES]
    answer = client.post(SEGMENT, files=form(files), headers=JSON)
    alone = [client.post(SEGMENT, content=f, headers={**JSON, "Content-Type": "image/png"}).json() for f in files]
    assert answer.json() == alone
    areas = [[int(coco.area(area["rle"])) for area in item["classes"]] for item in answer.json()]
    assert areas == [np.bincount(expected_mask(image, 4).ravel(), minlength=4).tolist() for image in IMAGES]
    overlays = client.post(SEGMENT, files=form(files), params={"overlay": "true"})
    pictures = parts_of(overlays.headers["content-type"], overlays.content)
    assert decode_indices(pictures[0][1]).shape == IMAGES[0].shape


def test_the_field_says_that_a_list_is_wanted(client: httpx.Client) -> None:
    file = encode_image(IMAGES[0])
    [item] = client.post(SEGMENT, files=form([file]), headers=JSON).json()
    assert item == client.post(SEGMENT, files=form([file], "image"), headers=JSON).json()
    for fields in (["image", "image"], ["images", "image"]):
        files = [(field, ("a.png", file, "image/png")) for field in fields]
        refused = client.post(SEGMENT, files=files)
        assert (refused.status_code, refused.json()["reason"]) == (400, "multipart")
        assert "all called images" in refused.json()["detail"]


def test_what_is_wrong_with_one_stands_in_its_place(client: httpx.Client) -> None:
    good = encode_image(IMAGES[0])
    large = encode_image(np.zeros((129, 128, 3), np.uint8))
    files = [good, b"text", b"", good[:-60], large, good]
    reasons = [None, "unsupported", "empty", "malformed", "too_large", None]
    url = str(client.base_url)
    counted = 'segpress_errors_total{model="tiny",reason="unsupported"}'
    client.post(SEGMENT, content=b"text", headers={"Content-Type": "image/png"})  # so that the counter exists
    before = metric(url, counted)
    answer = client.post(SEGMENT, files=form(files), headers=JSON)
    assert (answer.status_code, [item.get("reason") for item in answer.json()]) == (200, reasons)
    assert [item.get("status") for item in answer.json()] == [None, 415, 400, 400, 413, None]
    assert {item["request_id"] for item in answer.json() if "reason" in item} == {answer.headers["x-request-id"]}
    assert metric(url, counted) == before + 1
    mixed = client.post(SEGMENT, files=form(files))
    parts = parts_of(mixed.headers["content-type"], mixed.content)
    told = [json.loads(content)["reason"] if kind != "image/png" else None for kind, content in parts]
    assert told == reasons
    assert {kind for kind, _ in parts} == {"image/png", "application/problem+json"}
    np.testing.assert_array_equal(decode_indices(parts[-1][1]), expected_mask(IMAGES[0], 4))


def test_what_is_wrong_with_the_request_is_its_answer(client: httpx.Client) -> None:
    file = encode_image(IMAGES[1])
    many = client.post(SEGMENT, files=form([file] * 7))
    assert (many.status_code, many.json()["reason"]) == (413, "too_many_images")
    for accept in ("image/png", "application/octet-stream"):
        unsent = client.post(SEGMENT, files=form([file] * 2), headers={"Accept": accept})
        assert (unsent.status_code, unsent.json()["reason"]) == (406, "not_acceptable")
        assert "multipart/mixed" in unsent.json()["detail"]


def test_no_more_are_taken_than_could_ever_wait(bundle: Bundle) -> None:
    with serving([bundle.path], ServeSettings(concurrency=1, queue_limit=2)) as url:
        file = encode_image(IMAGES[0])
        assert httpx.post(url + SEGMENT, files=form([file] * 3)).status_code == 200
        many = httpx.post(url + SEGMENT, files=form([file] * 4))
        assert (many.status_code, many.json()["reason"]) == (413, "too_many_images")


def test_they_are_run_together_where_batches_are_asked_for(bundle: Bundle) -> None:
    predictor = GatedPredictor(bundle)
    with serving([predictor], ServeSettings(concurrency=1, max_batch=8)) as url:
        predictor.seen.clear()
        answer = httpx.post(url + SEGMENT, files=form([encode_image(image) for image in IMAGES]), headers=JSON)
    assert len(answer.raise_for_status().json()) == len(IMAGES)
    assert sorted(batch.shape for batch in predictor.seen) == [(1, 16, 16, 3), (1, 64, 32, 3), (2, 32, 32, 3)]


@pytest.fixture
def held(bundle: Bundle) -> Iterator[tuple[GatedPredictor, str]]:
    """A server whose one worker waits in its first run until the gate opens; its queue holds three."""
    predictor = GatedPredictor(bundle)
    with serving([predictor], ServeSettings(concurrency=1, queue_limit=3)) as url:
        predictor.seen.clear()
        with predictor.closed():
            yield predictor, url


def test_all_of_them_wait_or_none(held: tuple[GatedPredictor, str]) -> None:
    predictor, url = held
    file = encode_image(IMAGES[0])
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(httpx.post, url + SEGMENT, files=form([file] * 2), headers=JSON)
        until(lambda: len(predictor.seen) == 1)
        refused = httpx.post(url + SEGMENT, files=form([file] * 3))
        assert (refused.status_code, refused.json()["reason"]) == (429, "queue_full")
        assert metric(url, "segpress_queue_depth") == 1
        second = pool.submit(httpx.post, url + SEGMENT, files=form([file] * 2), headers=JSON)
        until(lambda: metric(url, "segpress_queue_depth") == 3)
        predictor.gate.set()
        assert [len(answer.result().json()) for answer in (first, second)] == [2, 2]
    assert len(predictor.seen) == 4


def test_one_deadline_holds_for_all_of_them(held: tuple[GatedPredictor, str]) -> None:
    predictor, url = held
    with ThreadPoolExecutor(1) as pool:
        headers = {"X-Deadline-Ms": "1000"}
        late = pool.submit(httpx.post, url + SEGMENT, files=form([encode_image(IMAGES[0])] * 3), headers=headers)
        until(lambda: len(predictor.seen) == 1)
        until(lambda: metric(url, "segpress_queue_depth") == 0)
        predictor.gate.set()
        assert (late.result().status_code, late.result().json()["reason"]) == (504, "deadline")
        assert "1 of 3 images" in late.result().json()["detail"]
    assert len(predictor.seen) == 1


def test_a_client_that_leaves_takes_all_of_them_along(held: tuple[GatedPredictor, str]) -> None:
    predictor, url = held
    request = httpx.Request("POST", url + SEGMENT, files=form([encode_image(IMAGES[0])] * 3))
    connection = HTTPConnection(url.removeprefix("http://"))
    connection.request("POST", SEGMENT, request.read(), dict(request.headers))
    until(lambda: len(predictor.seen) == 1)
    connection.close()
    until(lambda: metric(url, 'segpress_requests_total{code="499",model="tiny"}') == 1)
    predictor.gate.set()
    until(lambda: metric(url, "segpress_workers_busy") == 0)
    assert len(predictor.seen) == 1


@settings(max_examples=100)
@given(st.lists(st.binary(max_size=40) | st.lists(st.sampled_from([b"\r\n", b"\n", b"\r", b"--"])).map(b"".join)))
def test_any_bytes_come_through_a_part_unchanged(contents: list[bytes]) -> None:
    """The line end before a boundary belongs to the boundary; those of the content are kept."""
    answer = to_mixed([Answer("image/png", content) for content in contents or [b""]])
    assert [content for _, content in parts_of(answer.media_type, answer.body)] == (contents or [b""])
