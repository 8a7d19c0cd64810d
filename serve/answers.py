"""A mask in the form that the client asked for: PNG, JSON with run lengths, or raw bytes; NPZ together with its
probabilities; and several masks in one body.

H height, W width, K classes.
"""

import io
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco
from pydantic import BaseModel, ConfigDict

from export.images import U8, encode_image, encode_mask
from export.manifest import Manifest
from export.overlay import overlay
from serve.problems import ProblemError

PNG = "image/png"
JSON = "application/json"
RAW = "application/octet-stream"
NPZ = "application/zip"
"""NumPy's .npz files are zip archives; they have no media type of their own."""
MIXED = "multipart/mixed"


@dataclass(frozen=True)
class Answer:
    """An encoded mask."""

    media_type: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


class Rle(BaseModel):
    """COCO's compressed run-length encoding; columns first, as `pycocotools.mask.decode` takes it."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    size: tuple[int, int]
    """Height, width."""
    counts: str


class ClassArea(BaseModel):
    """How large one class is, and where it is."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    index: int
    """The value of this class in the PNG and in the raw mask."""
    name: str
    pixels: int
    share: float
    """Share of the image, between 0 and 1."""
    rle: Rle


class Segmentation(BaseModel):
    """The JSON answer; the mask has the size of the image that was sent."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    model: str
    version: str
    digest: str
    """Digest of the bundle's manifest: it says which model gave this answer."""
    height: int
    width: int
    classes: list[ClassArea]
    """Every class of the model, absent ones with an area of 0."""


def to_png(mask_HW: U8, _manifest: Manifest) -> Answer:
    """A single-channel PNG whose values are class indices."""
    return Answer(PNG, encode_mask(mask_HW))


def to_json(mask_HW: U8, manifest: Manifest) -> Answer:
    """Area and run lengths of every class."""
    height, width = mask_HW.shape
    pixels = np.bincount(mask_HW.ravel(), minlength=len(manifest.classes)).tolist()
    classes = [
        ClassArea(
            index=index,
            name=name,
            pixels=pixels[index],
            share=pixels[index] / mask_HW.size,
            rle=_run_lengths(mask_HW, index) if pixels[index] else _nowhere(height, width),
        )
        for index, name in enumerate(manifest.classes)
    ]
    answer = Segmentation(
        model=manifest.name,
        version=manifest.version,
        digest=manifest.digest,
        height=height,
        width=width,
        classes=classes,
    )
    return Answer(JSON, answer.model_dump_json().encode())


def to_raw(mask_HW: U8, _manifest: Manifest) -> Answer:
    """The bytes of the mask, row by row; its shape is in the headers."""
    height, width = mask_HW.shape
    return Answer(RAW, mask_HW.tobytes(), {"X-Mask-Shape": f"{height},{width}", "X-Mask-Dtype": "uint8"})


def to_picture(image_HWC: U8, mask_HW: U8, manifest: Manifest) -> Answer:
    """A PNG for people: the image under the colours of the classes."""
    return Answer(PNG, encode_image(overlay(image_HWC, mask_HW, manifest.colours)))


def to_npz(mask_HW: U8, probabilities_KHW: NDArray[np.float16]) -> Answer:
    """What `numpy.load` reads: `mask` (uint8 HW) and `probabilities` (float16 KHW, K in the order of the classes)."""
    buffer = io.BytesIO()
    np.savez(buffer, mask=mask_HW, probabilities=probabilities_KHW)
    return Answer(NPZ, buffer.getvalue())


def to_list(answers: Sequence[Answer]) -> Answer:
    """JSON answers as one JSON list."""
    return Answer(JSON, b"[" + b",".join(answer.body for answer in answers) + b"]")


def to_mixed(answers: Sequence[Answer]) -> Answer:
    """Answers as the parts of one body, each with its own Content-Type. Source: RFC 2046, 5.1.3."""
    # So long and random that it occurs in no part.
    boundary = secrets.token_hex(24)
    parts = (
        f"--{boundary}\r\nContent-Type: {answer.media_type}\r\nContent-Transfer-Encoding: binary\r\n\r\n".encode()
        + answer.body
        + b"\r\n"
        for answer in answers
    )
    return Answer(f"{MIXED}; boundary={boundary}", b"".join(parts) + f"--{boundary}--\r\n".encode())


Encoder = Callable[[U8, Manifest], Answer]

ENCODERS: dict[str, Encoder] = {PNG: to_png, JSON: to_json, RAW: to_raw}
"""In order of preference, for clients that accept several of them alike."""


def negotiate(accept: str, *, among: Sequence[str]) -> str:
    """The media type out of `among` that an Accept header prefers; the first if it is empty or accepts anything.

    Raises ProblemError 406. Source: RFC 9110, 12.5.1.
    """
    ranges = [_media_range(item) for item in accept.split(",") if item.strip()]
    if not ranges:
        return among[0]
    wanted = {media_type: _quality(media_type, ranges) for media_type in among}
    best = max(wanted, key=lambda media_type: wanted[media_type])
    if wanted[best] <= 0:
        detail = f"Accept {accept!r} leaves nothing that can be sent; accept one of {', '.join(among)}"
        raise ProblemError(406, "not_acceptable", detail)
    return best


def _media_range(item: str) -> tuple[str, float]:
    name, *parameters = (part.strip().lower() for part in item.split(";"))
    weight = next((part[2:] for part in parameters if part.startswith("q=")), "1")
    try:
        quality = float(weight)
    except ValueError:
        quality = 0.0
    return name, quality if 0 <= quality <= 1 else 0.0


def _quality(media_type: str, ranges: list[tuple[str, float]]) -> float:
    """The weight given by the most specific range that covers `media_type`; 0 when none does."""
    group = media_type.partition("/")[0]
    for covering in (media_type, f"{group}/*", "*/*"):
        weights = [quality for name, quality in ranges if name == covering]
        if weights:
            return max(weights)
    return 0.0


def _run_lengths(mask_HW: U8, index: int) -> Rle:
    encoded = coco.encode(np.asfortranarray(mask_HW == index, dtype=np.uint8))
    return Rle(size=encoded["size"], counts=encoded["counts"].decode("ascii"))


def _nowhere(height: int, width: int) -> Rle:
    encoded = coco.frPyObjects({"size": [height, width], "counts": [height * width]}, height, width)
    return Rle(size=encoded["size"], counts=encoded["counts"].decode("ascii"))
