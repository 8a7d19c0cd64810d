"""Garbage: each kind is answered with a 4xx problem that says what to do, and the server keeps serving."""

import io
import struct
import zlib
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import BaseModel
from support.servers import serving

from export.bundle import Bundle
from export.images import encode_image
from serve.app import create_app
from serve.settings import ServeSettings

SEGMENT = "/v1/models/tiny/segment"
GOOD = encode_image(np.arange(48 * 40 * 3, dtype=np.uint32).reshape(48, 40, 3).astype(np.uint8))

IMAGE_TYPES = st.sampled_from(["image/png", "image/jpeg", "image/webp", "image/tiff"])


def saved(image: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form)
    return buffer.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def black_png(width: int, height: int, *, bits: int = 8) -> bytes:
    """An RGB PNG whose header announces `width` x `height` pixels, and whose data holds a few thousand at most."""
    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    pixels = bytes(min(10_000, height * (1 + width * 3 * bits // 8)))
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*part) for part in parts)


def form_data(*parts: tuple[str, bytes], boundary: str = "cut") -> bytes:
    """A multipart body; each part is a pair of Content-Disposition and content."""
    lines = [
        f"--{boundary}\r\nContent-Disposition: {how}\r\n\r\n".encode() + content + b"\r\n" for how, content in parts
    ]
    return b"".join(lines) + f"--{boundary}--\r\n".encode()


FILE = 'form-data; name="image"; filename="a.png"'
FIELD = 'form-data; name="image"'
FORM = "multipart/form-data; boundary=cut"

BAD_BODIES: dict[str, tuple[bytes, str, int, str]] = {
    "empty": (b"", "image/png", 400, "empty"),
    "text": (b"hello", "image/png", 415, "unsupported"),
    "truncated PNG": (GOOD[:-200], "image/png", 400, "malformed"),
    "PNG header alone": (GOOD[:33], "image/png", 415, "unsupported"),
    "truncated JPEG": (saved(Image.new("RGB", (64, 64), "teal"), "JPEG")[:-150], "image/jpeg", 400, "malformed"),
    "truncated WebP": (saved(Image.effect_noise((64, 64), 50), "WEBP")[:-400], "image/webp", 400, "malformed"),
    "GIF called PNG": (saved(Image.new("P", (9, 9)), "GIF"), "image/png", 415, "unsupported"),
    "BMP called PNG": (saved(Image.new("RGB", (9, 9)), "BMP"), "image/png", 415, "unsupported"),
    "16 bits a channel": (saved(Image.new("I;16", (9, 9)), "PNG"), "image/png", 415, "unsupported"),
    "16 bits a colour": (black_png(9, 9, bits=16), "image/png", 415, "unsupported"),
    "float TIFF": (saved(Image.new("F", (9, 9)), "TIFF"), "image/tiff", 415, "unsupported"),
    "bomb": (black_png(30_000, 30_000), "image/png", 413, "too_large"),
    "bomb beyond Pillow's own limit": (black_png(2**20, 2**20), "image/png", 413, "too_large"),
    "a little too large": (encode_image(np.zeros((513, 512, 1), np.uint8)), "image/png", 413, "too_large"),
    "a row that padding makes large": (encode_image(np.zeros((1, 2**15, 1), np.uint8)), "image/png", 413, "too_large"),
    "huge": (bytes(2**20 + 1), "image/png", 413, "body_too_large"),
    "form without boundary": (GOOD, "multipart/form-data", 400, "malformed"),
    "form that is none": (GOOD, FORM, 400, "multipart"),
    "form cut off": (form_data((FILE, GOOD))[:-20], FORM, 400, "multipart"),
    "form with a field": (form_data((FIELD, GOOD)), FORM, 400, "multipart"),
    "form with two files": (form_data((FILE, GOOD), (FILE, GOOD)), FORM, 400, "multipart"),
    "form with nothing": (form_data(), FORM, 400, "multipart"),
    "form with an empty file": (form_data((FILE, b"")), FORM, 400, "empty"),
    "form with endless headers": (form_data((FILE + "; a=" + "b" * 10_000, GOOD)), FORM, 400, "multipart"),
    "form with text for a file": (form_data((FILE, b"hello")), FORM, 415, "unsupported"),
    "form with a long boundary": (GOOD, f"multipart/form-data; boundary={'b' * 300}", 400, "multipart"),
    "JSON": (b"{}", "application/json", 415, "media_type"),
    "curl's default": (GOOD, "application/x-www-form-urlencoded", 415, "media_type"),
    "no type": (GOOD, "", 415, "media_type"),
    "nonsense for a type": (GOOD, ";;;=?", 415, "media_type"),
}


def assert_problem(response: httpx.Response, status: int, reason: str) -> None:
    problem = response.json()
    assert (response.status_code, problem["reason"]) == (status, reason), problem
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["status"] == status
    assert problem["type"] == "about:blank"
    assert problem["title"]
    assert len(problem["detail"]) > 20
    assert problem["request_id"] == response.headers["x-request-id"]


@pytest.mark.parametrize("case", BAD_BODIES)
def test_bad_bodies(client: httpx.Client, case: str) -> None:
    body, content_type, status, reason = BAD_BODIES[case]
    assert_problem(client.post(SEGMENT, content=body, headers={"Content-Type": content_type}), status, reason)


def test_a_body_without_a_length_is_limited_too(client: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(40):
            yield bytes(2**16)

    response = client.post(SEGMENT, content=endless(), headers={"Content-Type": "image/png"})
    assert "content-length" not in response.request.headers
    assert_problem(response, 413, "body_too_large")


def test_a_good_body_without_a_length_is_taken(client: httpx.Client) -> None:
    response = client.post(SEGMENT, content=iter([GOOD[:100], GOOD[100:]]), headers={"Content-Type": "image/png"})
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "reason"),
    [
        ("POST", "/v1/models/other/segment", {}, 404, "unknown_model"),
        ("POST", "/v1/models/..%2F..%2Fetc/segment", {}, 404, "unknown_route"),
        ("POST", "/v1/models/%00%ff/segment", {}, 404, "unknown_model"),
        ("GET", "/v2/models/other", {}, 404, "unknown_model"),
        ("GET", "/nothing/here", {}, 404, "unknown_route"),
        ("POST", f"{SEGMENT}/", {"Host": "elsewhere"}, 404, "unknown_route"),
        ("GET", SEGMENT, {}, 405, "method"),
        ("DELETE", "/v2/models/tiny", {}, 405, "method"),
        ("POST", SEGMENT, {"Accept": "text/html"}, 406, "not_acceptable"),
        ("POST", SEGMENT, {"Accept": "image/png;q=0"}, 406, "not_acceptable"),
        ("POST", SEGMENT, {"Accept": "image/png;q=much"}, 406, "not_acceptable"),
        ("POST", SEGMENT, {"Content-Encoding": "gzip"}, 415, "content_encoding"),
    ],
)
def test_bad_requests(
    client: httpx.Client, method: str, path: str, headers: dict[str, str], status: int, reason: str
) -> None:
    response = client.request(method, path, content=GOOD, headers={"Content-Type": "image/png", **headers})
    assert_problem(response, status, reason)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("", "invalid"),
        ("{", "invalid"),
        ("[1]", "invalid"),
        ('{"number": "many"}', "invalid"),
        ('{"number": 1e999}', "invalid"),
        ("[" * 100_000, "http"),
        ('{"number":' * 100_000, "http"),
        ("\ud800", "invalid"),
    ],
    ids=lambda text: text[:12],
)
def test_what_fastapi_itself_refuses_is_a_problem_too(bundle: Bundle, body: str, reason: str) -> None:
    class Taken(BaseModel):
        number: int

    def take(taken: Taken) -> int:
        return taken.number

    app = create_app([bundle.path], ServeSettings(concurrency=1))
    app.add_api_route("/take", take, methods=["POST"])
    with serving(app) as url:
        response = httpx.post(
            url + "/take", content=body.encode("utf-8", "surrogatepass"), headers={"Content-Type": "application/json"}
        )
        assert_problem(response, 400, reason)
        assert "secret" not in httpx.post(url + "/take", json={"number": "secret"}).text


@pytest.mark.parametrize(
    ("query", "reason", "says"),
    [
        ("overlays=true", "invalid", "known are overlay, probabilities, window"),
        ("overlay=true&x", "invalid", "known are overlay, probabilities, window"),
        ("window=512", "window", "HEIGHTxWIDTH"),
        ("window=1e3x64", "window", "HEIGHTxWIDTH"),
    ],
)
def test_a_query_that_is_not_understood_is_refused_with_what_is(
    client: httpx.Client, query: str, reason: str, says: str
) -> None:
    response = client.post(f"{SEGMENT}?{query}", content=GOOD, headers={"Content-Type": "image/png"})
    assert_problem(response, 400, reason)
    assert says in response.json()["detail"]
    assert "[0-9]" not in response.text


def test_a_wrong_method_names_the_right_one(client: httpx.Client) -> None:
    assert client.get(SEGMENT).headers["allow"] == "POST"
    for path in ("/", "/v2/health/live", "/openapi.json"):
        assert client.post(path).headers["allow"] == "GET, HEAD"
    both = client.put("/v2/repository/index")
    assert both.headers["allow"] == "GET, HEAD, POST"
    assert both.json()["detail"].endswith("use GET, HEAD, POST")


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=400), content_type=st.one_of(IMAGE_TYPES, st.just(FORM)))
def test_random_bytes_are_no_image_and_never_the_servers_fault(
    client: httpx.Client, body: bytes, content_type: str
) -> None:
    response = client.post(SEGMENT, content=body, headers={"Content-Type": content_type})
    if not body:
        assert_problem(response, 400, "empty")
    elif content_type == FORM:
        assert_problem(response, 400, "multipart")
    else:
        assert_problem(response, 415, "unsupported")


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60))
@pytest.mark.parametrize("header", ["Accept", "Content-Type", "X-Request-ID", "Content-Encoding"])
def test_strange_headers_are_never_the_servers_fault(client: httpx.Client, header: str, value: str) -> None:
    headers = {"Content-Type": "image/png", header: value.strip()}
    for path in (SEGMENT, "/metrics", "/docs"):
        method = "POST" if path == SEGMENT else "GET"
        content = GOOD if path == SEGMENT else None
        assert client.request(method, path, content=content, headers=headers).status_code < 500
