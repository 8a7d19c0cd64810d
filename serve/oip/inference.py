"""An inference request in the terms of the protocol, over HTTP or gRPC: a tensor of images.

N batch, H height, W width, C channels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.bands import counted_pixels
from export.images import U8
from export.manifest import Manifest
from export.runtime import IMAGE, MASK
from serve.pipeline import decoded
from serve.problems import ProblemError

DATATYPES = ("UINT8", "FP32", "BYTES")
"""Those of the image tensor: pixels; pixels in float, which must be whole numbers from 0 to 255; or image files."""

_BYTES_OF: Mapping[str, np.dtype[Any]] = {"UINT8": np.dtype(np.uint8), "FP32": np.dtype("<f4")}

_NOT_DONE = ("sequence_id", "shared_memory_region", "classification")
"""Triton's parameters of a request, an input or an output that are not supported, and would change the answer."""

_TIMEOUT = "timeout"
"""Triton's parameter: microseconds that a request may take until it is computed; 0 means that none is set.

Source: Triton Inference Server, docs/user_guide/model_configuration.md (queue policy), and tritonclient's `timeout`."""

_LENGTH = np.dtype("<u4")
"""The length in front of each element of a BYTES tensor."""


@dataclass(frozen=True)
class InputTensor:
    """An input as it was sent."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    content: bytes | memoryview | Sequence[Any]
    """Raw bytes, little-endian and row by row; or values, nested or not."""
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RequestedOutput:
    """A tensor that is wanted."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class InferenceRequest:
    """What is asked of one model."""

    inputs: Sequence[InputTensor]
    outputs: Sequence[RequestedOutput] = ()
    """Those that are wanted; none means all."""
    id: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


def timeout_of(parameters: Mapping[str, Any]) -> float:
    """The deadline in seconds that a request with these parameters sets itself, like `serve.dispatch.DEADLINE`;
    infinite when it sets none.

    Raises ProblemError 400.
    """
    given = parameters.get(_TIMEOUT, 0)
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given < 2**63:
        raise ProblemError(
            400, "parameter", f"parameter {_TIMEOUT!r} is not a positive number of microseconds below 2**63"
        )
    return given / 1e6 or math.inf


def images_of(request: InferenceRequest, manifest: Manifest, *, max_pixels: int) -> Sequence[U8]:
    """The images HWC in `request`, at least one and all of one size.

    Raises ProblemError 4xx for a request that does not fit the model or its limits.
    """
    channels, tensor = manifest.channels, _image_tensor(request)
    shape = tensor.shape
    if tensor.datatype == "BYTES":
        if len(shape) != 1 or shape[0] < 1:
            raise _bad_shape(f"a BYTES tensor of image files has the shape [N], but {list(shape)} was sent")
        return _files(tensor, manifest, max_pixels)
    if tensor.datatype not in DATATYPES:
        raise ProblemError(
            400, "datatype", f"datatype {tensor.datatype!r} is not accepted; send one of {', '.join(DATATYPES)}"
        )
    if len(shape) != 4 or shape[3] != channels or min(shape) < 1:
        raise _bad_shape(
            f"the model takes images as [N, height, width, {channels}], none of them 0, but {list(shape)} was sent"
        )
    count, height, width, _ = shape
    _check_pixels(count, height, width, manifest, max_pixels)
    values = _values(tensor)
    if values.size != math.prod(shape):
        raise _bad_shape(f"{list(shape)} takes {math.prod(shape)} values, but {values.size} were sent")
    return list(_whole_bytes(values).reshape(shape))


def _image_tensor(request: InferenceRequest) -> InputTensor:
    """Raises ProblemError 400 when the names are not those of the model, or for a parameter that is not supported."""
    tensors: list[InputTensor | RequestedOutput] = [*request.inputs, *request.outputs]
    for parameters in (request.parameters, *(tensor.parameters for tensor in tensors)):
        for name in _NOT_DONE:
            if parameters.get(name):
                raise ProblemError(400, "parameter", f"parameter {name!r} is not supported; leave it out")
    names = [tensor.name for tensor in request.inputs]
    if names != [IMAGE]:
        raise ProblemError(400, "inputs", f"the model takes one input, {IMAGE!r}; the request has {names}")
    names = [output.name for output in request.outputs]
    if names not in ([], [MASK]):
        raise ProblemError(400, "outputs", f"the model has one output, {MASK!r}; asked for {names}")
    return request.inputs[0]


def _check_pixels(count: int, height: int, width: int, manifest: Manifest, max_pixels: int) -> None:
    pixels = count * counted_pixels(height, width, manifest.channels)
    if pixels > max_pixels:
        detail = f"{count} images of {width}x{height} are {pixels} pixels, the limit is {max_pixels}"
        raise ProblemError(413, "too_large", f"{detail}; send fewer, or smaller ones")


def _values(tensor: InputTensor) -> NDArray[Any]:
    if isinstance(tensor.content, bytes | memoryview):
        dtype = _BYTES_OF[tensor.datatype]
        if len(tensor.content) != math.prod(tensor.shape) * dtype.itemsize:
            needed = math.prod(tensor.shape) * dtype.itemsize
            raise _bad_shape(
                f"{tensor.datatype} of shape {list(tensor.shape)} takes {needed} bytes, but {len(tensor.content)} "
                "were sent"
            )
        values: NDArray[Any] = np.frombuffer(tensor.content, dtype=dtype)
        return values
    _check_numbers(tensor.content, tensor.datatype)
    try:
        values = np.asarray(tensor.content)
    except ValueError as error:
        raise _bad_values("its rows are not all of one length") from error
    if values.dtype.kind not in ("iuf" if tensor.datatype == "FP32" else "iu"):
        raise _not_numbers(tensor.datatype)
    return values.ravel()


def _check_numbers(content: Sequence[Any], datatype: str) -> None:
    """Check before NumPy, which gives every element the room of the longest: one string of a megabyte among numbers
    would take terabytes.

    Raises ProblemError 400 for what is neither numbers nor rows of them.
    """
    level = content
    while (types := set(map(type, level))) == {list}:
        level = list(chain.from_iterable(level))
    if list in types:
        raise _bad_values("its rows are not all of one length")
    if not types <= {int, float}:
        raise _not_numbers(datatype)


def _whole_bytes(values: NDArray[Any]) -> U8:
    """Raises ProblemError 400 for values that do not fit uint8: nothing is silently rounded or clipped."""
    if values.dtype == np.uint8:
        return values
    with np.errstate(invalid="ignore"):
        whole = values.astype(np.uint8)
    if not np.array_equal(whole, values):
        raise _bad_values("they are not all whole numbers from 0 to 255; send pixels as they are, not normalised")
    return whole


def _files(tensor: InputTensor, manifest: Manifest, max_pixels: int) -> Sequence[U8]:
    images: list[U8] = []
    left = max_pixels
    elements = _elements(tensor)
    if len(elements) != tensor.shape[0]:
        raise _bad_shape(f"{list(tensor.shape)} takes {tensor.shape[0]} files, but {len(elements)} were sent")
    for element in elements:
        image_HWC = decoded(element, manifest, max_pixels=left)
        if images and image_HWC.shape != images[0].shape:
            raise _bad_shape("the images of one request are of several sizes; send one request for each size")
        left -= counted_pixels(image_HWC.shape[0], image_HWC.shape[1], manifest.channels)
        images.append(image_HWC)
    return images


def _elements(tensor: InputTensor) -> Sequence[bytes]:
    """The elements of a BYTES tensor: each follows its length in four bytes."""
    content = tensor.content
    if not isinstance(content, bytes | memoryview):
        files = [element for element in content if isinstance(element, bytes)]
        if len(files) == len(content):
            return files
        raise _bad_values("image files cannot be sent in JSON; send BYTES as binary data")
    elements: list[bytes] = []
    at = 0
    while at < len(content):
        if len(elements) == tensor.shape[0] or len(content) - at < _LENGTH.itemsize:
            raise _bad_shape("more bytes were sent than the shape and the lengths of the elements say")
        length = int(np.frombuffer(content, _LENGTH, count=1, offset=at)[0])
        at += _LENGTH.itemsize
        if length > len(content) - at:
            raise _bad_shape(
                f"element {len(elements)} is said to have {length} bytes, but {len(content) - at} are left"
            )
        elements.append(bytes(content[at : at + length]))
        at += length
    return elements


def _bad_shape(detail: str) -> ProblemError:
    return ProblemError(400, "shape", f"input {IMAGE!r}: {detail}")


def _not_numbers(datatype: str) -> ProblemError:
    return _bad_values(f"they are not all numbers that fit {datatype}")


def _bad_values(detail: str) -> ProblemError:
    return ProblemError(400, "values", f"the values of input {IMAGE!r}: {detail}")
