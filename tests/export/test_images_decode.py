"""Image bytes to arrays: every mode and format that is accepted, and every kind of bytes that is refused."""

import contextlib
import io
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from support.pictures import cut_off_tiff, endless_tiff, png, promising_png, tiff, tiled_tiff

from export.errors import ImageError
from export.images import FORMATS, U8, decode, decode_indices, encode_image, encode_mask, read_header

RGB = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [17, 40, 203]]], dtype=np.uint8)
GREY = np.array([[0, 77], [160, 255]], dtype=np.uint8)
PALETTE = [10, 20, 30, 200, 100, 50, 0, 0, 255]


def file_of(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def luminance(rgb_HWC: U8) -> U8:
    """ITU-R 601-2, as Pillow's documentation of `convert` gives it."""
    red, green, blue = np.moveaxis(rgb_HWC.astype(np.int64), -1, 0)
    return np.asarray((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16, dtype=np.uint8)


def with_alpha(colours: U8) -> Image.Image:
    alpha = np.array([[0, 1], [128, 255]], dtype=np.uint8)
    return Image.fromarray(np.dstack([colours, alpha]))


def palette_image() -> Image.Image:
    picture = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8)).convert("P")
    picture.putpalette(PALETTE)
    return picture


IN_PALETTE = np.array(PALETTE, dtype=np.uint8).reshape(3, 3)[[[0, 1], [2, 1]]]


@pytest.mark.parametrize(
    ("content", "rgb", "grey"),
    [
        (file_of(Image.fromarray(GREY)), np.dstack([GREY] * 3), GREY),
        (file_of(Image.fromarray(RGB)), RGB, luminance(RGB)),
        (file_of(with_alpha(RGB)), RGB, luminance(RGB)),
        (file_of(with_alpha(GREY[..., None])), np.dstack([GREY] * 3), GREY),
        (file_of(palette_image()), IN_PALETTE, luminance(IN_PALETTE)),
        (file_of(palette_image(), transparency=1), IN_PALETTE, luminance(IN_PALETTE)),
        (file_of(Image.fromarray(GREY), transparency=77), np.dstack([GREY] * 3), GREY),
        (file_of(Image.fromarray(RGB), transparency=(255, 0, 0)), RGB, luminance(RGB)),
        (file_of(Image.fromarray(GREY > 100)), np.dstack([(GREY > 100) * 255] * 3), (GREY > 100) * 255),
        # Pillow's plain conversion: 255 minus the ink, minus the black.
        (
            file_of(Image.fromarray(255 - np.dstack([RGB, np.full((2, 2), 255)]).astype(np.uint8), "CMYK"), "TIFF"),
            RGB,
            luminance(RGB),
        ),
    ],
    ids=["grey", "rgb", "rgba", "la", "palette", "palette+trns", "grey+trns", "rgb+trns", "bilevel", "cmyk"],
)
def test_every_mode_becomes_grey_or_rgb(content: bytes, rgb: U8, grey: U8) -> None:
    np.testing.assert_array_equal(decode(content, 3), rgb)
    # Pillow rounds the luminance of RGB in one step and of palettes in another.
    decoded = decode(content, 1)
    assert decoded.shape == (2, 2, 1)
    np.testing.assert_allclose(decoded[..., 0].astype(int), grey.astype(int), atol=1)


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_a_mask_survives_its_png_bit_for_bit(mask_HW: U8) -> None:
    content = encode_mask(mask_HW)
    np.testing.assert_array_equal(decode_indices(content), mask_HW)
    assert read_header(content).mode == "L"


@given(
    st.sampled_from([1, 2, 3, 4, 5, 7]).flatmap(
        lambda c: hnp.arrays(np.uint8, st.tuples(*[st.integers(1, 30)] * 2, st.just(c)))
    )
)
def test_an_image_of_any_channels_survives_its_file_bit_for_bit(image_HWC: U8) -> None:
    np.testing.assert_array_equal(decode(encode_image(image_HWC), image_HWC.shape[2]), image_HWC)


def test_a_mask_gives_its_stored_numbers() -> None:
    np.testing.assert_array_equal(decode_indices(file_of(palette_image())), [[0, 1], [2, 1]])
    np.testing.assert_array_equal(decode_indices(file_of(Image.fromarray(GREY > 100))), [[0, 0], [1, 1]])
    np.testing.assert_array_equal(decode_indices(file_of(Image.fromarray(RGB))), RGB)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_numbers_of_few_bits_are_those_that_are_stored(bits: int) -> None:
    """Pillow by itself scales grey of 1, 2 and 4 bits to 0..255."""
    stored = np.arange(8, dtype=np.uint8).reshape(1, 8) % 2 ** min(bits, 2)
    packed = np.packbits(np.unpackbits(stored[..., None], axis=2)[..., 8 - bits :]).tobytes()
    np.testing.assert_array_equal(decode_indices(png(1, 8, "grey", bits=bits, pixels=packed)), stored)


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_every_format_is_read_from_bytes_and_from_a_file(kind: str, tmp_path: Path) -> None:
    flat = np.full((24, 40, 3), (200, 90, 30), dtype=np.uint8)
    content = file_of(Image.fromarray(flat), kind)
    (tmp_path / "image").write_bytes(content)
    for source in (content, tmp_path / "image"):
        header = read_header(source)
        assert (header.format, header.height, header.width, header.is_grey) == (kind, 24, 40, False)
        np.testing.assert_allclose(decode(source, 3).astype(int), flat.astype(int), atol=4)


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "unsupported"),
    "text": (lambda: b"this is not an image", "unsupported"),
    "gif": (lambda: file_of(Image.fromarray(GREY), "GIF"), "unsupported"),
    "bmp": (lambda: file_of(Image.fromarray(RGB), "BMP"), "unsupported"),
    "postscript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unsupported"),
    "16-bit grey png": (lambda: png(4, 5, "grey", bits=16), "unsupported"),
    "16-bit grey+alpha png": (lambda: png(4, 5, "grey+alpha", bits=16), "unsupported"),
    "16-bit rgb png": (lambda: png(4, 5, "rgb", bits=16), "unsupported"),
    "16-bit rgba png": (lambda: png(4, 5, "rgb+alpha", bits=16), "unsupported"),
    "16-bit grey tiff": (lambda: tiff(4, 5, 1, bits=16), "unsupported"),
    "16-bit rgb tiff": (lambda: tiff(4, 5, 3, bits=16, rgb=True), "unsupported"),
    "float tiff": (lambda: file_of(Image.fromarray(np.ones((3, 3), np.float32)), "TIFF"), "unsupported"),
    "32-bit tiff": (lambda: file_of(Image.fromarray(np.ones((3, 3), np.int32)), "TIFF"), "unsupported"),
    "a bomb": (lambda: promising_png(60_000, 60_000), "too_large"),
    "a png without pixels": (lambda: promising_png(8, 8), "malformed"),
    "a header cut short": (lambda: promising_png(8, 8)[:20], "malformed"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_image_of_ours_is_refused_with_its_reason(what: str, tmp_path: Path) -> None:
    make, reason = REFUSED[what]
    path = tmp_path / "named.png"
    path.write_bytes(make())
    for read in (lambda source: decode(source, 3), decode_indices):
        with pytest.raises(ImageError) as from_bytes:
            read(make())
        assert from_bytes.value.reason == reason
        with pytest.raises(ImageError, match=r"named\.png: ") as from_file:
            read(path)
        assert from_file.value.reason == reason


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_a_truncated_file_is_refused(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    content = file_of(Image.fromarray(noise), kind)
    with pytest.raises(ImageError) as caught:
        decode(content[: len(content) // 2], 3)
    # In a format that keeps its directory at the end, the cut removes the header, too.
    assert caught.value.reason in {"malformed", "unsupported"}


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.png: no such file") as caught:
        decode(tmp_path / "gone.png", 3)
    assert caught.value.reason == "missing"
    with pytest.raises(ImageError, match=str(tmp_path)):
        decode(tmp_path, 3)


def test_pixels_are_counted_before_they_are_decoded() -> None:
    content = png(30, 40, "grey")
    assert decode(content, 1, max_pixels=30 * 40).shape == (30, 40, 1)
    with pytest.raises(ImageError, match="40x30 pixels, at most 1199") as caught:
        decode(content, 1, max_pixels=30 * 40 - 1)
    assert caught.value.reason == "too_large"


def progressive(*, scans: int) -> bytes:
    """A progressive JPEG that repeats its last scan `scans` times."""
    content = file_of(Image.fromarray(np.full((24, 40), 90, np.uint8)), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * scans + content[-2:]


def test_a_jpeg_of_more_scans_than_any_has_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "again.jpg"
    path.write_bytes(progressive(scans=100))
    for source in (path.read_bytes(), path):
        for read in (lambda source: decode(source, 1), lambda source: decode(source, 4), decode_indices):
            with pytest.raises(ImageError, match="more than 100 scans") as caught:
                read(source)
            assert caught.value.reason == "too_large"
    np.testing.assert_allclose(decode(progressive(scans=80), 1).astype(int), 90, atol=1)


@pytest.mark.parametrize("before", [False, True], ids=["behind it", "in a comment"])
def test_what_only_looks_like_scans_is_not_counted(before: bool) -> None:
    """Phones append a video to an image, and put a thumbnail before it."""
    content, others = file_of(Image.fromarray(GREY), "JPEG"), b"\xff\xda\0\2" * 1000
    comment = b"\xff\xfe" + (2 + len(others)).to_bytes(2, "big") + others
    longer = content[:2] + comment + content[2:] if before else content + others
    np.testing.assert_array_equal(decode(longer, 1), decode(content, 1))


def chunks(count: int, kind: bytes = b"quIt") -> bytes:
    """`count` empty chunks of a PNG."""
    return (bytes(4) + kind + zlib.crc32(kind).to_bytes(4, "big")) * count


JPEG, PNG_FILE = file_of(Image.fromarray(GREY), "JPEG"), png(2, 2, "grey")


@pytest.mark.parametrize(
    "content",
    [
        JPEG[:2] + b"\xff\xfe\0\2" * 20_000 + JPEG[2:],
        JPEG[:2] + b"\xff" * 5000 + JPEG[2:],
        JPEG[:2] + b"\0" * 5000 + JPEG[2:],
        PNG_FILE[:33] + chunks(20_000) + PNG_FILE[33:],
        PNG_FILE[:-12] + chunks(20_000, b"IDAT") + PNG_FILE[-12:],
        tiled_tiff(400, 1, deflated=False),
        endless_tiff(2000),
        cut_off_tiff(400),
    ],
    ids=[
        *("segments", "fill bytes", "rubbish", "chunks", "chunks of pixels"),
        *("tiles", "a page that follows itself", "a directory that is cut off"),
    ],
)
def test_a_file_in_more_pieces_than_any_is_refused_before_it_is_gone_through(content: bytes) -> None:
    for read in (read_header, lambda content: decode(content, 1), decode_indices):
        with pytest.raises(ImageError, match="more pieces") as caught:
            read(content)
        assert caught.value.reason == "too_large"


@pytest.mark.parametrize(
    ("content", "whole"),
    [
        (JPEG[:2] + b"\xff\xfe\0\2" * 2000 + b"\xff" * 500 + JPEG[2:], JPEG),
        (PNG_FILE[:33] + chunks(2000) + PNG_FILE[33:-12] + chunks(2000, b"IDAT") + PNG_FILE[-12:], PNG_FILE),
        (tiled_tiff(100, 1, deflated=False), png(100, 100, "grey")),
        (tiled_tiff(100, 1024), png(100, 100, "grey")),
        (file_of(Image.fromarray(GREY), "TIFF", big_tiff=True), file_of(Image.fromarray(GREY))),
    ],
    ids=["JPEG", "PNG", "tiles", "a large tile", "BigTIFF"],
)
def test_many_pieces_are_still_an_image(content: bytes, whole: bytes) -> None:
    np.testing.assert_array_equal(decode(content, 1), decode(whole, 1))


def test_a_tile_that_is_far_larger_than_its_image_is_refused_before_it_is_decoded() -> None:
    """35 KB of it would take 36 MB, and 2 MB two thousand."""
    content = tiled_tiff(1, 6000)
    for read in (read_header, lambda content, **limit: decode(content, 1, **limit), decode_indices):
        with pytest.raises(ImageError, match="its tiles of 6000x6000 pixels are far larger than its 1x1") as caught:
            read(content, max_pixels=10**6)
        assert caught.value.reason == "too_large"
    assert decode(content, 1, max_pixels=6000**2).shape == (1, 1, 1)


def test_markers_without_end_are_not_counted_to_the_end(tmp_path: Path) -> None:
    content = progressive(scans=0)
    place = content.index(b"\xff\xda")
    path = tmp_path / "a file of one's own.jpg"
    path.write_bytes(content[:place] + b"\xff\xfe\0\2" * 20_000 + content[place:] + b"\xff\xda" * 100)
    with pytest.raises(ImageError, match="more than 100 scans"):
        decode(path, 1)


SEEDS = {kind: file_of(Image.fromarray(np.arange(108, dtype=np.uint8).reshape(6, 6, 3)), kind) for kind in FORMATS}


@given(st.sampled_from(sorted(FORMATS)), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6))
@example("TIFF", [])
def test_damaged_bytes_are_decoded_or_refused_but_nothing_else(kind: str, changes: list[tuple[int, int]]) -> None:
    content = bytearray(SEEDS[kind])
    for place, value in changes:
        content[place % len(content)] = value
    with contextlib.suppress(ImageError):
        pixels = decode(bytes(content), 3, max_pixels=10_000)
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3
