"""Image bytes to array, resize, padding, and a mask brought back to the size of its image.

The one copy of this work: calibration, evaluation and serving all call it. Training decodes and resizes by it and pads
with the same value, so that a model sees in production what it saw in training. Pixels are taken as stored:
EXIF orientation is not applied, because the masks of a dataset are drawn on the stored pixels.

H height, W width, C channels; arrays are uint8.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from export.bands import MAX_CHANNELS, as_pages, check_tiles, count_pages, lossless_format, read_bands
from export.errors import ImageError, ShapeError
from export.pieces import check_pieces, check_scans
from export.png import grey_png

U8 = NDArray[np.uint8]

FORMATS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "TIFF": "image/tiff"}
"""Formats that are read, with their media types; whatever else Pillow knows is refused."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"})

PAD_VALUE = 128
"""Images are padded with this: zero after the default normalisation (x - 128) / 128."""

DEFAULT_MAX_PIXELS = 64 * 1024 * 1024

# `max_pixels` decides here. Pillow's own guard warns through a filter that is not safe between threads.
Image.MAX_IMAGE_PIXELS = None

_EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
_STRETCHED = {"L;4": 15, "L;2": 3}
"""Raw modes of grey with fewer than 8 bits, and the largest number they store, which Pillow stretches to 255."""
_GREY_MODES = frozenset({"1", "L", "LA"})


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of an image says, before anything is decoded."""

    format: str
    mode: str
    height: int
    width: int
    pages: int
    """Of a TIFF, counted up to one more than a model can have channels; 1 for other formats."""

    @property
    def is_grey(self) -> bool:
        return self.mode in _GREY_MODES


def read_header(source: bytes | Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Header:
    """Format, mode and size, without decoding pixels.

    Raises ImageError: not an image, a format that is not accepted, more than 8 bits a channel, or more
    than `max_pixels` pixels (a decompression bomb is refused here).
    """
    with _Opened(source, max_pixels) as image:
        pages = count_pages(image, most=MAX_CHANNELS + 1)
        return Header(str(image.format), image.mode, image.height, image.width, pages)


def decode(source: bytes | Path, channels: int, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> U8:
    """Pixels HWC: grey for 1 channel, RGB for 3, of the first page; for any other number the file's own bands.

    Any image is converted to grey or RGB. Bands are not converted: a file with another number of them is refused, and
    where each band is a page, `max_pixels` counts the pixels of all pages.

    Raises ImageError as `read_header` does, for truncated data, for a JPEG of too many scans, and with the reason
    "channels" for another number of bands.
    """
    with _Opened(source, max_pixels) as image:
        _check_work(image, source)
        if channels not in (1, 3):
            return read_bands(image, channels, max_pixels=max_pixels)
        # Pillow warns when it drops a palette's transparency by itself; alpha is dropped here on purpose.
        opaque = image.convert("RGBA") if "transparency" in image.info else image
        pixels = np.asarray(opaque.convert("L" if channels == 1 else "RGB"), dtype=np.uint8)
    return pixels.reshape(*pixels.shape[:2], channels)


def decode_indices(source: bytes | Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> U8:
    """The stored numbers of a mask: HW for index and palette images, HWC for colour.

    Raises ImageError.
    """
    with _Opened(source, max_pixels) as image:
        _check_work(image, source)
        if image.mode == "1":
            return np.asarray(image.convert("L"), dtype=np.uint8) // 255
        # Before the pixels are read, because reading them discards the raw modes.
        largest = next((_STRETCHED[mode] for mode in _raw_modes(image) if mode in _STRETCHED), 255)
        return np.asarray(image, dtype=np.uint8) // (255 // largest)


def encode_image(image_HWC: U8) -> bytes:
    """The image without loss, in `lossless_format`; `decode` gives it back bit for bit."""
    buffer = io.BytesIO()
    first, *others = as_pages(image_HWC)
    pages = {"save_all": True, "append_images": others, "compression": "tiff_adobe_deflate"} if others else {}
    first.save(buffer, format=lossless_format(image_HWC.shape[2]), **pages)
    return buffer.getvalue()


def encode_mask(mask_HW: U8) -> bytes:
    """A lossless single-channel PNG whose values are class indices."""
    return grey_png(mask_HW)


def padded_size(height: int, width: int, multiple: int) -> tuple[int, int]:
    """The smallest (height, width) in multiples of `multiple` that holds this one."""
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple


@dataclass(frozen=True, slots=True)
class Geometry:
    """How one image is fitted to a model and its mask restored: resize, then pad right and below."""

    height: int
    width: int
    resized_height: int
    resized_width: int
    padded_height: int
    padded_width: int

    @classmethod
    def plan(cls, height: int, width: int, *, size: tuple[int, int] | None, multiple: int) -> "Geometry":
        """`size` (height, width) is what images are resized to, or None; the model takes multiples of `multiple`."""
        if height < 1 or width < 1:
            raise ShapeError(f"an image of {height}x{width} pixels has nothing to segment")
        resized_height, resized_width = size or (height, width)
        return cls(
            height,
            width,
            resized_height,
            resized_width,
            *padded_size(resized_height, resized_width, multiple),
        )

    @property
    def padded(self) -> tuple[int, int]:
        """(height, width) that the model is given."""
        return self.padded_height, self.padded_width

    def fit(self, image_HWC: U8) -> U8:
        """Resize (bilinear) and pad with `PAD_VALUE`: what the model is given."""
        if image_HWC.shape[:2] != (self.height, self.width):
            raise ShapeError(f"planned for {self.height}x{self.width}, got an image of {image_HWC.shape[:2]}")
        image = resize_image(image_HWC, (self.resized_height, self.resized_width))
        below, right = self.padded_height - image.shape[0], self.padded_width - image.shape[1]
        if below == 0 and right == 0:
            return image
        return np.pad(image, ((0, below), (0, right), (0, 0)), constant_values=PAD_VALUE)

    def restore(self, mask_HW: U8) -> U8:
        """Crop the padding off a predicted mask and bring it back to the image's size (nearest)."""
        if mask_HW.shape != (self.padded_height, self.padded_width):
            raise ShapeError(f"planned for {self.padded_height}x{self.padded_width}, got a mask of {mask_HW.shape}")
        cropped = mask_HW[: self.resized_height, : self.resized_width]
        return resize_mask(cropped, (self.height, self.width))

    def restore_figures(self, figures_KHW: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same for floats of each class KHW, bilinear."""
        if figures_KHW.shape[1:] != (self.padded_height, self.padded_width):
            raise ShapeError(f"planned for {self.padded_height}x{self.padded_width}, got {figures_KHW.shape[1:]}")
        cropped = figures_KHW[:, : self.resized_height, : self.resized_width]
        if cropped.shape[1:] == (self.height, self.width):
            return np.ascontiguousarray(cropped)
        size = (self.width, self.height)
        planes = (Image.fromarray(np.ascontiguousarray(plane)) for plane in cropped)
        return np.stack([np.asarray(plane.resize(size, Image.Resampling.BILINEAR)) for plane in planes])


def resize_image(image_HWC: U8, size: tuple[int, int]) -> U8:
    """Bilinear to (height, width), antialiased when it shrinks."""
    if image_HWC.shape[:2] == size:
        return image_HWC
    # Band by band, because Pillow weights colours by alpha where there is any.
    bands = (Image.fromarray(image_HWC[..., band]) for band in range(image_HWC.shape[2]))
    return np.dstack(
        [np.asarray(b.resize((size[1], size[0]), Image.Resampling.BILINEAR), dtype=np.uint8) for b in bands]
    )


def resize_mask(mask_HW: U8, size: tuple[int, int]) -> U8:
    """Nearest to (height, width): a mask never gains a value that it did not have."""
    if mask_HW.shape == size:
        return mask_HW
    picture = Image.fromarray(mask_HW).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(picture, dtype=np.uint8)


class _Opened:
    """Pillow's lazily opened image, its own exceptions turned into ours."""

    def __init__(self, source: bytes | Path, max_pixels: int) -> None:
        self._source = source
        self._max_pixels = max_pixels
        self._where = f"{source}: " if isinstance(source, Path) else ""

    def __enter__(self) -> Image.Image:
        stream: io.BytesIO | Path
        if isinstance(self._source, bytes):
            check_pieces(self._source)
            stream = io.BytesIO(self._source)
        else:
            stream = self._source
        try:
            self._image = Image.open(stream, formats=list(FORMATS))
        except FileNotFoundError as error:
            raise ImageError(f"{self._where}no such file", reason="missing") from error
        except UnidentifiedImageError as error:
            raise ImageError(f"{self._where}{_unidentified(self._source)}", reason="unsupported") from error
        except Exception as error:
            raise ImageError(f"{self._where}unreadable image header: {error}", reason="malformed") from error
        height, width = self._image.height, self._image.width
        if height * width > self._max_pixels:
            self._image.close()
            raise ImageError(
                f"{self._where}{width}x{height} pixels, at most {self._max_pixels} are taken",
                reason="too_large",
            )
        try:
            check_tiles(self._image, max_pixels=self._max_pixels)
        except ImageError as error:
            self._image.close()
            raise ImageError(f"{self._where}{error}", reason=error.reason) from error
        if not _is_eight_bits(self._image):
            self._image.close()
            raise ImageError(
                f"{self._where}its channels have more than 8 bits (pixel mode {self._image.mode!r}); "
                "convert it to 8 bits",
                reason="unsupported",
            )
        return self._image

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._image.close()
        if isinstance(error, ImageError):
            raise ImageError(f"{self._where}{error}", reason=error.reason) from error
        if isinstance(error, Exception):
            # Pillow's decoders raise OSError, SyntaxError, struct.error, ValueError ... for broken bytes.
            raise ImageError(f"{self._where}damaged image data: {error}", reason="malformed") from error


def _check_work(image: Image.Image, source: bytes | Path) -> None:
    """Refuse an image that would take longer to decode than its pixels justify."""
    if isinstance(image, JpegImageFile):
        check_scans(source if isinstance(source, bytes) else source.read_bytes())


def _is_eight_bits(image: Image.Image) -> bool:
    """Pillow silently reduces 16-bit colour to 8 bits: the mode does not show it, the raw mode of the tiles does."""
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    return image.mode in _EIGHT_BIT_MODES and not any(";16" in str(tile.args) for tile in tiles)


def _raw_modes(image: Image.Image) -> list[str]:
    """How the pixels are stored, tile by tile."""
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    return [str(tile.args if isinstance(tile.args, str) else tile.args[0]) for tile in tiles if tile.args]


def _unidentified(source: bytes | Path) -> str:
    """What to do about a file that Pillow does not recognise, or whose pixels it cannot read."""
    start = source[:4] if isinstance(source, bytes) else _start_of(source)
    if any(start.startswith(prefix) for prefix in TiffImagePlugin.PREFIXES):
        return (
            "a TIFF that is damaged or whose kind of pixels is not supported; save it as 8-bit grey, RGB, RGBA or "
            "CMYK, and more bands than that as one grey page each"
        )
    return f"not an image in a supported format; send {', '.join(sorted(FORMATS))}"


def _start_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)
