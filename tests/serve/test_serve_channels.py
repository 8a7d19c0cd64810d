"""Models of other than 1 or 3 channels: files of as many bands are answered, others refused, and all pages count."""

import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from support.bundles import expected_mask, tiny_bundle
from support.servers import serving

from export.errors import UsageError
from export.images import U8, decode, decode_indices, encode_image
from serve.app import create_app
from serve.settings import ServeSettings

SETTINGS = ServeSettings(concurrency=1, max_pixels=5 * 64 * 64)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("bundles")
    paths: list[Path] = [
        tiny_bundle(folder / name, name=name, channels=n).path for name, n in (("four", 4), ("five", 5))
    ]
    with serving(paths, SETTINGS) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


def noise(height: int, width: int, channels: int) -> U8:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def send(client: httpx.Client, name: str, body: bytes, kind: str) -> httpx.Response:
    return client.post(f"/v1/models/{name}/segment", content=body, headers={"Content-Type": f"image/{kind}"})


def cmyk_tiff(image_HWC: U8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image_HWC, "CMYK").save(buffer, format="TIFF")
    return buffer.getvalue()


def test_bands_are_answered_however_they_are_stored(client: httpx.Client) -> None:
    four, five = noise(40, 50, 4), noise(40, 50, 5)
    for name, image, body, kind in (
        ("four", four, encode_image(four), "png"),
        ("four", four, cmyk_tiff(four), "tiff"),
        ("five", five, encode_image(five), "tiff"),
    ):
        response = send(client, name, body, kind)
        assert response.status_code == 200, response.text
        np.testing.assert_array_equal(decode_indices(response.content), expected_mask(image, 3))


@pytest.mark.parametrize(("name", "channels"), [("four", 3), ("four", 5), ("five", 1), ("five", 4), ("five", 6)])
def test_other_bands_are_refused_with_what_to_send(client: httpx.Client, name: str, channels: int) -> None:
    response = send(client, name, encode_image(noise(20, 20, channels)), "tiff" if channels > 4 else "png")
    problem = response.json()
    assert (response.status_code, problem["reason"]) == (415, "channels")
    assert f"{4 if name == 'four' else 5} grey pages" in problem["detail"]


def test_the_pixels_of_every_page_count(client: httpx.Client) -> None:
    assert send(client, "five", encode_image(noise(64, 64, 5)), "tiff").status_code == 200
    response = send(client, "five", encode_image(noise(64, 65, 5)), "tiff")
    assert (response.status_code, response.json()["reason"]) == (413, "too_large")
    # Small as sent, but too large once its rows are padded to 16.
    response = send(client, "five", encode_image(noise(1, 300, 5)), "tiff")
    assert (response.status_code, response.json()["reason"]) == (413, "too_large")
    assert "padded for the model" in response.json()["detail"]


def test_a_limit_that_fits_no_image_of_all_pages_is_refused(tmp_path: Path) -> None:
    made = tiny_bundle(tmp_path / "five", channels=5, size=(64, 80))
    with pytest.raises(UsageError, match=f"set it to {5 * 64 * 80} or more"):
        create_app([made.path], SETTINGS)


def test_the_page_shows_a_command_with_a_file_that_is_taken(client: httpx.Client) -> None:
    page = client.get("/").text
    assert "@image.png -H &#x27;Content-Type: image/png&#x27;" in page
    assert "@image.tiff -H &#x27;Content-Type: image/tiff&#x27;" in page


def test_golden_images_are_kept_with_all_of_their_bands(tmp_path: Path) -> None:
    made = tiny_bundle(tmp_path / "six", channels=6)
    stored = sorted((made.path / "golden").glob("*.image.*"))
    assert [path.suffix for path in stored] == [".tiff", ".tiff"]
    for path, (_, image, mask) in zip(stored, made.golden(), strict=True):
        np.testing.assert_array_equal(image, decode(path, 6))
        np.testing.assert_array_equal(mask, expected_mask(image, 3))
