"""Valid files and forms with a few bytes changed: each is answered as documented, and leaves nothing behind."""

import functools
import gzip
import io
import json
import random
import signal
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis import APIOperation
from schemathesis.core.failures import FailureGroup
from support.bundles import expected_mask
from support.described import CHECKS, document_of, schema_of
from support.servers import ServerProcess, metric_lines, serving

from export.bundle import Bundle
from export.images import U8, decode, decode_indices, encode_image
from serve.settings import ServeSettings

SEGMENT = "/v1/models/{name}/segment"
INFER = "/v2/models/{name}/infer"
Operation = APIOperation[Any, Any, Any, Any]
IMAGE = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
FORM = "multipart/form-data; boundary=cut"

several = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def saved(form: str, mode: str = "RGB", *, image_HWC: U8 = IMAGE, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).convert(mode).save(buffer, format=form, **options)
    return buffer.getvalue()


def as_form(file: bytes) -> bytes:
    head = b'--cut\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    return head + file + b"\r\n--cut--\r\n"


def bodies_of(image_HWC: U8) -> dict[str, tuple[bytes, str]]:
    """The image in every form that is taken, with the Content-Type."""
    save = functools.partial(saved, image_HWC=image_HWC)
    return {
        "PNG": (save("PNG"), "image/png"),
        "PNG with a palette": (save("PNG", "P"), "image/png"),
        "PNG with two levels": (save("PNG", "1"), "image/png"),
        "JPEG": (save("JPEG"), "image/jpeg"),
        "progressive JPEG": (save("JPEG", progressive=True), "image/jpeg"),
        "WebP": (save("WEBP", lossless=True), "image/webp"),
        "TIFF": (save("TIFF"), "image/tiff"),
        "LZW TIFF": (save("TIFF", compression="tiff_lzw"), "image/tiff"),
        "form": (as_form(save("PNG")), FORM),
    }


VALID = bodies_of(IMAGE)


def protocol_request(content: bytes, shape: list[int], datatype: str) -> tuple[bytes, dict[str, str]]:
    """A request of the Open Inference Protocol in its binary form."""
    tensor = {
        "name": "image",
        "datatype": datatype,
        "shape": shape,
        "parameters": {"binary_data_size": len(content)},
    }
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return head + content, {"Inference-Header-Content-Length": str(len(head))}


def in_json(content: bytes, shape: list[int]) -> bytes:
    tensor = {"name": "image", "datatype": "UINT8", "shape": shape, "data": list(content)}
    return json.dumps({"inputs": [tensor]}).encode()


_SMALL = [1, 2, 3, 3]
_FILE = saved("PNG")
PROTOCOL: dict[str, tuple[bytes, dict[str, str]]] = {
    "JSON": (in_json(bytes(18), _SMALL), {"Content-Type": "application/json"}),
    "binary": protocol_request(bytes(18), _SMALL, "UINT8"),
    "a file": protocol_request(struct.pack("<I", len(_FILE)) + _FILE, [1], "BYTES"),
    "gzip": (gzip.compress(in_json(bytes(18), _SMALL)), {"Content-Encoding": "gzip"}),
}


def mutated(body: bytes, choose: random.Random) -> bytes:
    """A few changes: a byte replaced; a run removed, doubled or copied in; a number made huge or 0; the end cut."""
    for _ in range(choose.randint(1, 4)):
        at, elsewhere, run = choose.randrange(len(body)), choose.randrange(len(body)), choose.randint(1, 8)
        number = choose.choice([b"\xff" * 4, b"\x7f\xff\xff\xff", bytes(4)])
        # Where the change begins and ends, and the new bytes.
        start, stop, new = choose.choice(
            [
                (at, at + 1, choose.randbytes(1)),
                (at, at + run, b""),
                (at, at, body[at : at + run]),
                (at, at, body[elsewhere : elsewhere + run]),
                (at, at + 4, number),
                (at, len(body), b""),
            ]
        )
        body = (body[:start] + new + body[stop:]) or b"\0"
    return body


@pytest.fixture(scope="module")
def keyless_url(bundle: Bundle) -> Iterator[str]:
    """A server on which anybody may load models."""
    with serving([bundle.path], ServeSettings(concurrency=1, allow_load=True)) as url:
        yield url


@pytest.fixture(scope="module")
def infer_operation(base_url: str) -> Operation:
    return schema_of(document_of(base_url), base_url)[INFER]["POST"]


@pytest.fixture(scope="module")
def operation(base_url: str) -> Operation:
    return schema_of(document_of(base_url), base_url)[SEGMENT]["POST"]


@several
@given(
    kind=st.sampled_from(sorted(VALID)), accept=st.sampled_from(["image/png", "application/json"]), seed=st.integers()
)
def test_whatever_is_changed_the_answer_is_described(
    client: httpx.Client, operation: Operation, kind: str, accept: str, seed: int
) -> None:
    body, content_type = VALID[kind]
    sent = mutated(body, random.Random(seed))
    response = client.post(
        SEGMENT.format(name="tiny"), content=sent, headers={"Content-Type": content_type, "Accept": accept}
    )
    assert response.status_code < 500, response.text
    operation.Case(path_parameters={"name": "tiny"}).validate_response(response, checks=CHECKS)
    if response.status_code != 200:
        assert response.headers["content-type"] == "application/problem+json"


def test_an_answer_that_is_not_described_is_found(client: httpx.Client, base_url: str) -> None:
    response = client.post(SEGMENT.format(name="tiny"), content=b"text", headers={"Content-Type": "image/png"})
    for forget in ("status", "content type"):
        document = document_of(base_url)
        responses = document["paths"][SEGMENT]["post"]["responses"]
        if forget == "status":
            del responses["415"]
        else:
            responses["415"]["content"] = {"text/plain": {}}
        operation = schema_of(document, base_url)[SEGMENT]["POST"]
        with pytest.raises(FailureGroup):
            operation.Case(path_parameters={"name": "tiny"}).validate_response(response, checks=CHECKS)


@several
@given(kind=st.sampled_from(sorted(PROTOCOL)), seed=st.integers())
def test_whatever_is_changed_in_a_request_of_the_protocol_the_answer_is_described(
    client: httpx.Client, infer_operation: Operation, kind: str, seed: int
) -> None:
    body, headers = PROTOCOL[kind]
    response = client.post(INFER.format(name="tiny"), content=mutated(body, random.Random(seed)), headers=headers)
    assert response.status_code < 500, response.text
    infer_operation.Case(path_parameters={"name": "tiny"}).validate_response(response, checks=CHECKS)


@pytest.mark.parametrize("kind", PROTOCOL)
def test_unchanged_requests_of_the_protocol_are_answered(client: httpx.Client, kind: str) -> None:
    body, headers = PROTOCOL[kind]
    assert client.post(INFER.format(name="tiny"), content=body, headers=headers).status_code == 200


@pytest.mark.parametrize("opening", ["[", '{"inputs":', '{"inputs":[{"data":' + "[" * 50], ids=lambda text: text[:12])
@pytest.mark.parametrize("path", [INFER, "/v2/repository/index", "/v2/repository/models/{name}/load"])
def test_json_that_is_nested_without_end_is_refused(keyless_url: str, path: str, opening: str) -> None:
    response = httpx.post(
        keyless_url + path.format(name="tiny"),
        content=opening.encode() * 3000,
        headers={"Content-Type": "application/json"},
    )
    assert 400 <= response.status_code < 500
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("kind", VALID)
def test_unchanged_they_are_answered(client: httpx.Client, kind: str) -> None:
    body, content_type = VALID[kind]
    response = client.post(SEGMENT.format(name="tiny"), content=body, headers={"Content-Type": content_type})
    assert response.status_code == 200
    if kind != "form":
        np.testing.assert_array_equal(decode_indices(response.content), expected_mask(decode(body, 3), 4))


@pytest.mark.slow
def test_a_thousand_damaged_bodies_leave_nothing_behind(bundle: Bundle) -> None:
    choose = random.Random(0)
    valid = list(bodies_of(np.random.default_rng(1).integers(0, 256, (160, 160, 3), dtype=np.uint8)).values())
    with (
        ServerProcess([bundle.path], ServeSettings(port=0, concurrency=2)) as server,
        httpx.Client(base_url=server.base_url, timeout=20) as client,
    ):

        def send(count: int) -> tuple[int, dict[str, float]]:
            """The bytes that were sent, and the metrics afterwards."""
            sent = 0
            for body, content_type in (choose.choice(valid) for _ in range(count)):
                damaged = mutated(body, choose)
                response = client.post(
                    SEGMENT.format(name="tiny"), content=damaged, headers={"Content-Type": content_type}
                )
                assert response.status_code < 500, response.text
                sent += len(damaged)
            return sent, metric_lines(server.base_url)

        _, before = send(400)
        sent, after = send(1000)
        grown = after["process_resident_memory_bytes"] - before["process_resident_memory_bytes"]
        allowed = 8 * 2**20
        assert sent > 3 * allowed, "a leak of one body in three would not be found"
        assert grown < allowed
        assert after["process_open_fds"] <= before["process_open_fds"] + 1
        for left in ("segpress_requests_in_flight", "segpress_body_bytes", "segpress_queue_depth"):
            assert after[left] == 0
        mask = client.post(
            SEGMENT.format(name="tiny"), content=encode_image(IMAGE), headers={"Content-Type": "image/png"}
        )
        np.testing.assert_array_equal(decode_indices(mask.content), expected_mask(IMAGE, 4))
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    assert "Traceback" not in server.log
