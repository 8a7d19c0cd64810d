"""Requests and answers of the protocol as HTTP bodies: JSON, with tensors in binary behind it if wanted.

Source: the protocol's REST section, and Triton's "binary tensor data extension".
"""

import json
import zlib
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from export.errors import field_problems
from export.images import U8
from export.manifest import Manifest
from export.runtime import MASK
from serve.oip.inference import InferenceRequest, InputTensor, RequestedOutput
from serve.problems import ProblemError

JSON = "application/json"
BINARY = "application/octet-stream"
JSON_BYTES = "Inference-Header-Content-Length"
"""Header: how many of the body's first bytes are JSON. Behind them come the binary tensors, in order."""

MAX_JSON_BYTES = 4 * 2**20
"""In a request or an answer. While numbers in JSON are read they hold the interpreter, and health waits, too."""

_BINARY_DATA = "binary_data"
_BINARY_DATA_OUTPUT = "binary_data_output"
_MAX_DIMENSIONS = 8
_READ_AT_ONCE_BYTES = 65536
_ENCODINGS = ("gzip", "deflate")
# Source: RFC 9110, 8.4.1.3.
_OTHER_NAMES = {"x-gzip": "gzip"}
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS

Parameters = dict[str, bool | int | float | str]

_Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""As the protocol has it; JSON has numbers of any length."""


class _Part(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class RequestInput(_Part):
    """A tensor, with its values in `data`, or in binary behind the JSON."""

    name: str
    shape: list[_Int64] = Field(max_length=_MAX_DIMENSIONS)
    datatype: str
    """UINT8, FP32 (whole numbers from 0 to 255) or BYTES (image files)."""
    parameters: Parameters = {}
    """`binary_data_size`: how many bytes of the binary part are this tensor."""
    data: list[Any] | None = None


class RequestOutput(_Part):
    """A tensor that is wanted."""

    name: str
    parameters: Parameters = {}
    """`binary_data`: true for bytes behind the JSON instead of numbers in it."""


class InferRequest(_Part):
    """What is asked of a model."""

    id: str = ""
    parameters: Parameters = {}
    """`binary_data_output`: true for all outputs in binary."""
    inputs: list[RequestInput] = Field(min_length=1, max_length=16)
    outputs: list[RequestOutput] | None = Field(default=None, max_length=16)


class ResponseOutput(_Part):
    """A tensor, with its values in `data`, row by row, or in binary behind the JSON."""

    name: str
    shape: list[int]
    datatype: str
    parameters: Parameters | None = None
    data: list[int] | None = None


class InferResponse(_Part):
    """What a model answered."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[ResponseOutput]


class WireRequest:
    """A request as it was sent, and in which form its answer is wanted."""

    def __init__(self, body: bytes, json_bytes: int | None) -> None:
        """Raises ProblemError 4xx for a request that is malformed or too large."""
        length = len(body) if json_bytes is None else json_bytes
        if length > len(body):
            raise ProblemError(400, "malformed", f"{JSON_BYTES} is {length}, but the body has only {len(body)} bytes")
        if length > MAX_JSON_BYTES:
            raise ProblemError(
                413, "json_too_large", f"at most {MAX_JSON_BYTES} bytes of JSON are accepted; send tensors in binary"
            )
        self._asked = _parsed(body[:length])
        self._wants_binary = _wants_binary(self._asked)
        self.request = InferenceRequest(
            inputs=_tensors(self._asked.inputs, memoryview(body)[length:]),
            outputs=[RequestedOutput(output.name, output.parameters) for output in self._asked.outputs or ()],
            id=self._asked.id,
            parameters=self._asked.parameters,
        )

    def answer(self, masks_NHW: U8, manifest: Manifest) -> tuple[bytes, dict[str, str]]:
        """Body and headers of the answer.

        Raises ProblemError 413 for a mask that is too large for JSON.
        """
        output = ResponseOutput(name=MASK, shape=list(masks_NHW.shape), datatype="UINT8")
        binary = b""
        if self._wants_binary:
            binary = masks_NHW.tobytes()
            output.parameters = {"binary_data_size": len(binary)}
        elif 2 * masks_NHW.size > MAX_JSON_BYTES:
            detail = f"a mask of {masks_NHW.size} pixels is too large for JSON; ask for it with binary_data: true"
            raise ProblemError(413, "json_too_large", detail)
        else:
            output.data = masks_NHW.ravel().tolist()
        response = InferResponse(
            model_name=manifest.name, model_version=manifest.version, id=self._asked.id or None, outputs=[output]
        )
        header = response.model_dump_json(exclude_none=True).encode()
        if not self._wants_binary:
            return header, {"Content-Type": JSON}
        return header + binary, {"Content-Type": BINARY, JSON_BYTES: str(len(header))}


def json_bytes(request: Request) -> int | None:
    """The value of the header `JSON_BYTES`; None if it is not sent, and all of the body is JSON.

    Raises ProblemError 400.
    """
    given = request.headers.get(JSON_BYTES)
    if given is None:
        return None
    if not (given.isascii() and given.isdigit() and len(given) < 12):
        raise ProblemError(400, "malformed", f"{JSON_BYTES}: {given!r} is not a number of bytes")
    return int(given)


def may_name_a_timeout(body: bytes, json_bytes: int | None) -> bool:
    """Whether to read the request's JSON for a timeout before it waits for its turn. Only short JSON is read then, in
    the event loop; the timeout in longer or compressed JSON is read when the turn comes."""
    content = body if json_bytes is None else body[: min(json_bytes, _READ_AT_ONCE_BYTES + 1)]
    return len(content) <= _READ_AT_ONCE_BYTES and b'"timeout"' in content


def content_encoding(request: Request) -> str | None:
    """How the body is compressed; None if it is not.

    Raises ProblemError 415.
    """
    encoding = request.headers.get("content-encoding", "identity").lower()
    encoding = _OTHER_NAMES.get(encoding, encoding)
    if encoding == "identity":
        return None
    if encoding not in _ENCODINGS:
        detail = f"Content-Encoding {encoding!r} is not accepted; use {' or '.join(_ENCODINGS)}, or none"
        raise ProblemError(415, "content_encoding", detail, headers={"Accept-Encoding": ", ".join(_ENCODINGS)})
    return encoding


def decompressed(body: bytes, encoding: str | None, *, max_bytes: int) -> bytes:
    """The body before it was compressed.

    Raises ProblemError 400 for damaged data, 413 for what would be larger than `max_bytes`.
    """
    if encoding is None:
        return body
    decompressor = zlib.decompressobj(wbits=_GZIP_OR_ZLIB)
    try:
        content = decompressor.decompress(body, max_bytes)
        if decompressor.unconsumed_tail:
            raise ProblemError(413, "body_too_large", f"the decompressed body is larger than {max_bytes} bytes")
        if not decompressor.eof or decompressor.unused_data:
            raise ProblemError(400, "malformed", f"the body is not one complete {encoding} stream")
    except zlib.error as error:
        raise ProblemError(400, "malformed", f"the body is not a {encoding} stream ({error})") from error
    return content


def malformed(error: ValidationError) -> ProblemError:
    """What a client is told of a body that is not what the protocol says."""
    first = field_problems(error.errors(include_url=False, include_input=False))[0]
    return ProblemError(400, "malformed", f"the request: {first}")


def _parsed(content: bytes) -> InferRequest:
    try:
        return InferRequest.model_validate_json(content)
    except ValidationError as error:
        raise malformed(error) from error


def _wants_binary(asked: InferRequest) -> bool:
    """Whether the mask is to follow the JSON in binary."""
    of_output = [output.parameters[_BINARY_DATA] for output in asked.outputs or () if _BINARY_DATA in output.parameters]
    wanted = [*of_output, asked.parameters.get(_BINARY_DATA_OUTPUT, False)][0]
    if not isinstance(wanted, bool):
        raise ProblemError(
            400, "parameter", f"parameters {_BINARY_DATA!r} and {_BINARY_DATA_OUTPUT!r} are true or false"
        )
    return wanted


def _tensors(inputs: Sequence[RequestInput], binary: memoryview) -> list[InputTensor]:
    tensors, at = [], 0
    for given in inputs:
        size = given.parameters.get("binary_data_size")
        content: Sequence[Any] | memoryview
        if given.data is not None and size is None:
            content = given.data
        elif given.data is None and isinstance(size, int) and not isinstance(size, bool):
            if not 0 <= size <= len(binary) - at:
                raise ProblemError(
                    400, "shape", f"input {given.name!r}: binary_data_size is {size}, but {len(binary) - at} bytes came"
                )
            content = binary[at : at + size]
            at += size
        else:
            detail = f"input {json.dumps(given.name)}: give its values either as data or by binary_data_size"
            raise ProblemError(400, "malformed", detail)
        tensors.append(InputTensor(given.name, given.datatype, tuple(given.shape), content, given.parameters))
    if at != len(binary):
        raise ProblemError(400, "malformed", f"{len(binary) - at} bytes follow that belong to no tensor")
    return tensors
