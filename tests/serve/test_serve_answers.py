"""The answer to an image: its mask, in the form that was asked for and at the size of the image."""

import io
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco
from support.bundles import expected_mask

from export.bundle import Bundle
from export.images import U8, decode, decode_indices, encode_image

SEGMENT = "/v1/models/tiny/segment"
PNG = {"Content-Type": "image/png"}


def random_image(height: int, width: int, *, seed: int = 0, channels: int = 3) -> U8:
    # Coarse blocks rather than noise, so that masks have areas.
    coarse = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), channels), dtype=np.uint8)
    return coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]


def encoded(image_HWC: U8, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, format=form, **options)
    return buffer.getvalue()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(height=st.integers(1, 70), width=st.integers(1, 70), seed=st.integers(0, 9))
def test_a_mask_has_the_size_of_its_image_and_the_classes_of_its_pixels(
    client: httpx.Client, height: int, width: int, seed: int
) -> None:
    image = random_image(height, width, seed=seed)
    response = client.post(SEGMENT, content=encode_image(image), headers=PNG)
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/png"
    np.testing.assert_array_equal(decode_indices(response.content), expected_mask(image, 4))


def test_a_resized_model_answers_at_the_size_of_the_image(client: httpx.Client, grey_bundle: Bundle) -> None:
    png = encode_image(random_image(101, 77))
    response = client.post("/v1/models/grey/segment", content=png, headers=PNG)
    mask = decode_indices(response.content)
    assert mask.shape == (101, 77)
    np.testing.assert_array_equal(mask, grey_bundle.segmenter(threads=1).segment(decode(png, 1)))


@pytest.mark.parametrize(
    ("form", "media_type"),
    [("JPEG", "image/jpeg"), ("PNG", "image/png"), ("WEBP", "image/webp"), ("TIFF", "image/tiff")],
)
def test_every_format_is_decoded_as_the_library_decodes_it(client: httpx.Client, form: str, media_type: str) -> None:
    content = encoded(random_image(40, 56), form)
    response = client.post(SEGMENT, content=content, headers={"Content-Type": media_type})
    assert response.status_code == 200
    np.testing.assert_array_equal(decode_indices(response.content), expected_mask(decode(content, 3), 4))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_pixel_mode_is_converted_to_what_the_model_takes(
    client: httpx.Client, grey_bundle: Bundle, mode: str
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(random_image(33, 20)).convert(mode).save(buffer, format="PNG")
    png = buffer.getvalue()
    for name, expected in (
        ("tiny", expected_mask(decode(png, 3), 4)),
        ("grey", grey_bundle.segmenter(threads=1).segment(decode(png, 1))),
    ):
        response = client.post(f"/v1/models/{name}/segment", content=png, headers=PNG)
        assert response.status_code == 200
        np.testing.assert_array_equal(decode_indices(response.content), expected)


def test_a_form_with_one_file_is_the_same_as_the_file(client: httpx.Client) -> None:
    png = encode_image(random_image(50, 30))
    plain = client.post(SEGMENT, content=png, headers=PNG)
    form = client.post(SEGMENT, files={"image": ("picture.png", png, "image/png")})
    assert form.status_code == 200
    assert form.content == plain.content


# The warning is about pycocotools' own decoder, which only this test calls.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_json_carries_areas_and_run_lengths_that_pycocotools_decodes(client: httpx.Client) -> None:
    image = np.zeros((37, 53, 3), dtype=np.uint8)
    image[5:20, 7:] = 255  # classes 0 and 3; 1 and 2 are absent
    mask = expected_mask(image, 4)
    response = client.post(SEGMENT, content=encode_image(image), headers={**PNG, "Accept": "application/json"})
    answer = response.json()
    assert response.headers["content-type"] == "application/json"
    assert (answer["model"], answer["version"]) == ("tiny", "1")
    assert (answer["height"], answer["width"]) == mask.shape
    assert [item["name"] for item in answer["classes"]] == [f"class-{k}" for k in range(4)]
    for index, item in enumerate(answer["classes"]):
        assert item["index"] == index
        assert item["pixels"] == int((mask == index).sum())
        assert item["share"] == pytest.approx((mask == index).mean())
        np.testing.assert_array_equal(coco.decode(item["rle"]), mask == index)
        assert int(coco.area(item["rle"])) == item["pixels"]


def test_raw_masks_carry_their_shape_in_the_headers(client: httpx.Client) -> None:
    image = random_image(21, 34)
    response = client.post(SEGMENT, content=encode_image(image), headers={**PNG, "Accept": "application/octet-stream"})
    shape = tuple(int(n) for n in response.headers["x-mask-shape"].split(","))
    assert response.headers["x-mask-dtype"] == "uint8"
    np.testing.assert_array_equal(np.frombuffer(response.content, np.uint8).reshape(shape), expected_mask(image, 4))


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("*/*", "image/png"),
        ("", "image/png"),
        ("image/*", "image/png"),
        ("application/*", "application/json"),
        ("application/json", "application/json"),
        ("application/json;q=0.5, application/octet-stream", "application/octet-stream"),
        ("image/png;q=0, */*", "application/json"),
        ("text/html, application/json;q=0.9, */*;q=0.1", "application/json"),
        ("IMAGE/PNG", "image/png"),
        ("application/json;q=nan, image/*;q=0.1", "image/png"),
    ],
)
def test_accept_chooses_the_form(client: httpx.Client, accept: str, media_type: str) -> None:
    response = client.post(SEGMENT, content=encode_image(random_image(8, 8)), headers={**PNG, "Accept": accept})
    assert (response.status_code, response.headers["content-type"]) == (200, media_type)


def test_all_lines_of_accept_are_one_list(client: httpx.Client) -> None:
    headers = [*PNG.items(), ("Accept", "text/html"), ("Accept", "application/json")]
    # Not through the shared client, which adds an Accept header of its own.
    response = httpx.post(client.base_url.join(SEGMENT), content=encode_image(random_image(8, 8)), headers=headers)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")


def test_every_concurrent_request_gets_its_own_answer(client: httpx.Client) -> None:
    images = [random_image(16 + seed, 64 - seed, seed=seed) for seed in range(40)]

    def ask(image: U8) -> bytes:
        return client.post(SEGMENT, content=encode_image(image), headers=PNG).raise_for_status().content

    with ThreadPoolExecutor(8) as pool:
        for image, answer in zip(images, pool.map(ask, images), strict=True):
            np.testing.assert_array_equal(decode_indices(answer), expected_mask(image, 4))


def test_server_timing_names_every_stage(client: httpx.Client) -> None:
    response = client.post(SEGMENT, content=encode_image(random_image(8, 8)), headers=PNG)
    stages = [entry.split(";dur=") for entry in response.headers["server-timing"].split(", ")]
    assert [name for name, _ in stages] == ["queue", "decode", "preprocess", "inference", "postprocess", "encode"]
    assert all(0 <= float(milliseconds) < 10_000 for _, milliseconds in stages)


def test_a_request_id_comes_back_or_is_made(client: httpx.Client) -> None:
    given_id = client.get("/v2/health/live", headers={"X-Request-ID": "trace-7/a"}).headers["x-request-id"]
    assert given_id == "trace-7/a"
    made = {client.get("/v2/health/live", headers={"X-Request-ID": "no spaces"}).headers["x-request-id"] for _ in "ab"}
    assert len(made) == 2
    assert "no spaces" not in made


def test_an_overlay_is_the_image_under_the_colours_of_its_classes(client: httpx.Client, bundle: Bundle) -> None:
    image = np.random.default_rng(3).integers(0, 256, (19, 33, 3), dtype=np.uint8)
    answer = client.post(SEGMENT, params={"overlay": "true"}, content=encode_image(image), headers=PNG)
    assert answer.raise_for_status().headers["content-type"] == "image/png"
    colours = np.array(bundle.manifest.colours)[expected_mask(image, 4)]
    np.testing.assert_allclose(np.asarray(Image.open(io.BytesIO(answer.content))), (image + colours) / 2, atol=1)
    refused = client.post(
        SEGMENT, params={"overlay": "true"}, content=encode_image(image), headers={**PNG, "Accept": "application/json"}
    )
    assert refused.status_code == 406
    unclear = client.post(SEGMENT, params={"overlay": "maybe"}, content=encode_image(image), headers=PNG)
    assert (unclear.status_code, unclear.headers["content-type"]) == (400, "application/problem+json")
