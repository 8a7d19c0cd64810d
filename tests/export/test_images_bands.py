"""Images of other than 1 or 3 channels: the bands of a file exactly as they are stored, or a refusal that says why."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile
from support.pictures import png, tiff

from export.bands import MAX_CHANNELS, as_rgb, lossless_format
from export.errors import ImageError
from export.images import U8, decode, encode_image, read_header, resize_image

RNG = np.random.default_rng(0)


def noise(channels: int, *, size: tuple[int, int] = (6, 9)) -> U8:
    return RNG.integers(0, 256, (*size, channels), dtype=np.uint8)


def file_of(pictures: Image.Image | Sequence[Image.Image], kind: str = "TIFF", **options: object) -> bytes:
    first, *others = [pictures] if isinstance(pictures, Image.Image) else pictures
    buffer = io.BytesIO()
    first.save(buffer, format=kind, **({"save_all": True, "append_images": others} if others else {}), **options)
    return buffer.getvalue()


def grey_pages(image_HWC: U8) -> list[Image.Image]:
    return [Image.fromarray(image_HWC[..., band]) for band in range(image_HWC.shape[2])]


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("LA", "PNG", {}),
        ("LA", "TIFF", {}),
        ("RGBA", "PNG", {}),
        ("RGBA", "TIFF", {"compression": "tiff_lzw"}),
        ("RGBA", "WEBP", {"lossless": True, "exact": True}),
        ("CMYK", "TIFF", {}),
    ],
)
def test_samples_are_bands_and_alpha_is_data(mode: str, kind: str, options: dict[str, object]) -> None:
    image = noise(len(mode))
    image[..., -1] %= 3  # where alpha is 0, viewers show nothing; as bands, all pixels keep their values
    content = file_of(Image.fromarray(image, mode), kind, **options)
    np.testing.assert_array_equal(decode(content, len(mode)), image)


@pytest.mark.parametrize("channels", [2, 4, 5, 7, MAX_CHANNELS])
@pytest.mark.parametrize("compression", ["raw", "tiff_adobe_deflate", "tiff_lzw"])
def test_grey_pages_are_bands(channels: int, compression: str, tmp_path: Path) -> None:
    image = noise(channels)
    (tmp_path / "pages.tiff").write_bytes(file_of(grey_pages(image), compression=compression))
    np.testing.assert_array_equal(decode(tmp_path / "pages.tiff", channels), image)


def test_black_and_white_pages_are_0_and_255() -> None:
    image = (noise(2) > 100).astype(np.uint8) * 255
    content = file_of([picture.convert("1", dither=Image.Dither.NONE) for picture in grey_pages(image)])
    np.testing.assert_array_equal(decode(content, 2), image)


def test_an_overview_behind_the_bands_does_not_count() -> None:
    image = noise(4)
    content = file_of([Image.fromarray(image), Image.fromarray(image[::2, ::2])])
    np.testing.assert_array_equal(decode(content, 4), image)


def test_grey_and_rgb_are_read_of_the_first_page_alone() -> None:
    image = noise(5)
    content = file_of(grey_pages(image))
    np.testing.assert_array_equal(decode(content, 1), image[..., :1])
    np.testing.assert_array_equal(decode(content, 3), image[..., [0, 0, 0]])


PAGES = grey_pages(noise(3))
MISFITS: dict[str, tuple[bytes, int, str]] = {
    "rgb for 4": (png(4, 5, "rgb"), 4, "3 channels, but 4 .*give RGBA or CMYK or a TIFF with 4 grey pages"),
    "rgb for 2": (png(4, 5, "rgb"), 2, "3 channels, but 2 .*give grey with alpha or a TIFF with 2 grey pages"),
    "rgba for 5": (png(4, 5, "rgb+alpha"), 5, "4 channels, but 5 .*give a TIFF with 5 grey pages of one size"),
    "a palette": (file_of(PAGES[0].convert("P"), "PNG"), 4, "1 channel, but 4"),
    "few pages": (file_of(PAGES), 5, "3 pages, but 5"),
    "many pages": (file_of(PAGES), 2, "more than 2 pages"),
    "rgb page": (file_of([PAGES[0], PAGES[1].convert("RGB")]), 2, r"page 2 is not 8-bit grey \(pixel mode 'RGB'\)"),
    "16-bit page": (file_of([PAGES[0], PAGES[1].convert("I;16")]), 2, r"page 2 is not 8-bit grey"),
    "another size": (file_of([PAGES[0], PAGES[1].resize((7, 3))]), 2, "page 2 is 7x3, the first is 9x6"),
    "dropped sample": (tiff(4, 5, 4, rgb=True, extra=0), 4, "only 3 of the 4 samples of a pixel can be read"),
    "dropped samples": (tiff(4, 5, 5, rgb=True, extra=0), 5, "only 3 of the 5 samples of a pixel can be read"),
    "grey and more": (tiff(4, 5, 2, extra=0), 2, "only 1 of the 2 samples of a pixel can be read"),
    "premultiplied": (tiff(4, 5, 4, rgb=True, extra=1), 4, "its colours are premultiplied with alpha"),
}


@pytest.mark.parametrize("what", MISFITS)
def test_other_bands_than_asked_for_are_refused_by_what_they_are(what: str, tmp_path: Path) -> None:
    content, channels, message = MISFITS[what]
    (tmp_path / "image.tiff").write_bytes(content)
    for source, start in ((content, "^"), (tmp_path / "image.tiff", r"^.*image\.tiff: ")):
        with pytest.raises(ImageError, match=start + message) as caught:
            decode(source, channels)
        assert caught.value.reason == "channels"


def test_a_tiff_of_a_kind_that_cannot_be_read_says_that_pages_can() -> None:
    with pytest.raises(ImageError, match="more bands than that as one grey page each") as caught:
        decode(tiff(4, 5, 6, extra=0), 6)
    assert caught.value.reason == "unsupported"


def test_all_pages_count_before_any_is_decoded() -> None:
    content = file_of(grey_pages(noise(5, size=(20, 30))))
    assert decode(content, 5, max_pixels=5 * 20 * 30).shape == (20, 30, 5)
    with pytest.raises(ImageError, match="5 pages of 30x20 pixels, at most 2999") as caught:
        decode(content, 5, max_pixels=5 * 20 * 30 - 1)
    assert caught.value.reason == "too_large"


def test_a_heap_of_pages_is_refused_without_walking_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    content = file_of([PAGES[0]] * 500)
    sought = []
    seek = TiffImageFile.seek

    def counting(image: TiffImageFile, frame: int) -> None:
        sought.append(frame)
        seek(image, frame)

    monkeypatch.setattr(TiffImageFile, "seek", counting)
    with pytest.raises(ImageError, match="more than 5 pages"):
        decode(content, 5)
    assert max(sought) == 5
    assert read_header(content).pages == MAX_CHANNELS + 1
    assert max(sought) == MAX_CHANNELS


@given(st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=6), st.sampled_from([2, 3, 4, 5]))
def test_damaged_pages_are_decoded_or_refused_but_nothing_else(changes: list[tuple[int, int]], channels: int) -> None:
    content = bytearray(file_of(PAGES + PAGES[:1], compression="raw"))
    for place, value in changes:
        content[place % len(content)] = value
    with contextlib.suppress(ImageError):
        pixels = decode(bytes(content), channels, max_pixels=10_000)
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == channels


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_each_band_is_resized_by_itself(channels: int) -> None:
    image = noise(channels, size=(30, 40))
    resized = resize_image(image, (17, 23))
    for band in range(channels):
        np.testing.assert_array_equal(
            resized[..., band : band + 1], resize_image(image[..., band : band + 1], (17, 23))
        )


@pytest.mark.parametrize(("channels", "kind"), [(1, "PNG"), (2, "PNG"), (4, "PNG"), (5, "TIFF")])
def test_what_is_written_is_what_it_says(channels: int, kind: str) -> None:
    header = read_header(encode_image(noise(channels)))
    assert (lossless_format(channels), header.format) == (kind, kind)


@pytest.mark.parametrize(
    ("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (4, [0, 1, 2]), (7, [0, 1, 2])]
)
def test_people_are_shown_the_first_bands(channels: int, shown: list[int]) -> None:
    image = noise(channels)
    np.testing.assert_array_equal(as_rgb(image), image[..., shown])
