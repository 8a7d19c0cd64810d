"""Images of any number of channels: 1 is grey, 3 is RGB, anything else is bands taken as they are stored.

A file gives such bands in one of two ways: as the samples of its pixels (grey with alpha, RGBA, CMYK), or as the
grey pages of a TIFF, one for each band. Alpha is a band like any other; nothing is blended with it.

H height, W width, C channels; arrays are uint8.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import EXTRASAMPLES, SAMPLESPERPIXEL, TILELENGTH, TILEWIDTH, TiffImageFile

from export.errors import ImageError

MAX_CHANNELS = 64

_TILE = 1024
"""Pixels on each side of the largest tiles that are usual in a TIFF."""
_PREMULTIPLIED = 1
_SAMPLES = {"LA": "grey with alpha", "RGBA": "RGBA", "CMYK": "CMYK"}
"""Pillow's modes whose samples are bands, and their names for people."""


def pages_for(channels: int) -> int:
    """Pages of the lossless file that holds an image with this many channels."""
    return 1 if channels <= 4 else channels


def counted_pixels(height: int, width: int, channels: int) -> int:
    """Pixels as limits count them: on all pages, where there are more channels than fit into one."""
    return pages_for(channels) * height * width


def lossless_format(channels: int) -> Literal["PNG", "TIFF"]:
    """Format in which an image with this many channels is written."""
    return "PNG" if pages_for(channels) == 1 else "TIFF"


def as_pages(image_HWC: NDArray[np.uint8]) -> list[Image.Image]:
    """The image as Pillow takes it: one picture for up to four channels, else a grey page for each."""
    channels = image_HWC.shape[2]
    if channels == 1 or pages_for(channels) > 1:
        return [Image.fromarray(image_HWC[..., band]) for band in range(channels)]
    return [Image.fromarray(image_HWC)]


def as_rgb(image_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image as people are shown it: the first three bands as RGB, or the first as grey where there are fewer."""
    return image_HWC[..., :3] if image_HWC.shape[2] >= 3 else np.repeat(image_HWC[..., :1], 3, axis=2)


def count_pages(image: Image.Image, *, most: int) -> int:
    """Pages of an opened file, counted up to `most`: a small TIFF can hold a million of them."""
    if not isinstance(image, TiffImageFile):
        return 1
    try:
        for page in range(1, most):
            image.seek(page)
    except EOFError:
        return page
    finally:
        image.seek(0)
    return most


def check_tiles(image: Image.Image, *, max_pixels: int) -> None:
    """Refuse a page of a TIFF whose tiles hold more than `max_pixels` together, and far more than the page: each is
    decoded as a whole, and it may be of any size.

    Raises ImageError.
    """
    if not isinstance(image, TiffImageFile) or TILEWIDTH not in image.tag_v2:
        return
    width, height = (image.tag_v2.get(tag) for tag in (TILEWIDTH, TILELENGTH))
    if not isinstance(width, int) or not isinstance(height, int) or min(width, height) < 1:
        raise ImageError(f"the tiles of a TIFF are {width!r} pixels wide and {height!r} high", reason="malformed")
    held = -(-image.width // width) * width * -(-image.height // height) * height
    if held > max(max_pixels, (image.width + _TILE) * (image.height + _TILE)):
        raise ImageError(
            f"its tiles of {width}x{height} pixels are far larger than its {image.width}x{image.height}; save it again",
            reason="too_large",
        )


def read_bands(image: Image.Image, channels: int, *, max_pixels: int) -> NDArray[np.uint8]:
    """Bands HWC of an opened file: the samples of its first page if they are `channels`, else its grey pages.

    Raises ImageError for another number of bands, for pages that are not grey or not of one size, and for more
    than `max_pixels` pixels on all pages together; all of this is checked before any page is decoded.
    """
    if image.mode in _SAMPLES and len(image.mode) == channels and _lost(image) is None:
        return np.asarray(image, dtype=np.uint8)
    pages = count_pages(image, most=channels + 1)
    if pages != channels:
        raise _misfit(_found(image, pages, channels), channels)
    height, width = image.height, image.width
    if channels * height * width > max_pixels:
        raise ImageError(
            f"{channels} pages of {width}x{height} pixels, at most {max_pixels} are taken on all pages together",
            reason="too_large",
        )
    for page in range(channels):
        image.seek(page)
        check_tiles(image, max_pixels=max_pixels)
        if image.mode not in ("1", "L") or _lost(image) is not None:
            raise _misfit(f"page {page + 1} is not 8-bit grey (pixel mode {image.mode!r})", channels)
        if (image.height, image.width) != (height, width):
            raise _misfit(f"page {page + 1} is {image.width}x{image.height}, the first is {width}x{height}", channels)
    bands_HWC = np.empty((height, width, channels), dtype=np.uint8)
    for page in range(channels):
        image.seek(page)
        bands_HWC[..., page] = np.asarray(image.convert("L"))
    return bands_HWC


def _lost(image: Image.Image) -> str | None:
    """Why Pillow does not give a TIFF's samples as stored: it drops some, or divides by a premultiplied alpha."""
    if not isinstance(image, TiffImageFile):
        return None
    samples, bands = image.tag_v2.get(SAMPLESPERPIXEL, 1), len(image.getbands())
    if samples != bands:
        return f"only {bands} of the {samples} samples of a pixel can be read"
    extra: Sequence[int] = image.tag_v2.get(EXTRASAMPLES, ())
    return "its colours are premultiplied with alpha" if _PREMULTIPLIED in extra else None


def _found(image: Image.Image, pages: int, channels: int) -> str:
    if pages > channels:
        return f"more than {channels} pages"
    if pages > 1:
        return f"{pages} pages"
    bands = len(image.getbands())
    return _lost(image) or f"{bands} channel{'s' if bands != 1 else ''}"


def _misfit(found: str, channels: int) -> ImageError:
    """The message names no file: a check of a dataset reports each kind once, with the files that it was found in."""
    forms = [name for mode, name in _SAMPLES.items() if len(mode) == channels]
    forms.append(f"a TIFF with {channels} grey pages of one size")
    return ImageError(f"{found}, but {channels} channels are asked for; give {' or '.join(forms)}", reason="channels")
