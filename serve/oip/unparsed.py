"""What is refused in a ModelInferRequest before it is parsed.

Pixels and files in a message are bytes that are only copied. All else becomes objects one by one, which holds the
interpreter for as long as that lasts, and health with it; and an empty field of two bytes becomes an object of a
hundred.

Source: the encoding of Protocol Buffers, https://protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Mapping
from typing import Any

from serve.oip.wire import MAX_JSON_BYTES
from serve.problems import ProblemError

MAX_VALUES_BYTES = MAX_JSON_BYTES // 2
"""Bytes of a message beside its pixels and files: as many pixels as go into JSON, where each takes two bytes."""

_MAX_FIELDS = 1000

_PIXELS_AND_FILES: Mapping[int, Any] = {7: {}, 5: {5: {8: {}}}}
"""By their field numbers in inference.proto: raw_input_contents, and inputs.contents.bytes_contents."""

_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
_VARINT_BYTES = 10


def check_unparsed(message: bytes) -> None:
    """Raises ProblemError 413 for too many values, 400 for bytes that are not a message."""
    values_bytes = fields = 0
    todo = [(0, len(message), _PIXELS_AND_FILES)]
    while todo:
        at, end, apart = todo.pop()
        while at < end:
            begun, fields = at, fields + 1
            key, at = _varint(message, at)
            number, kind = key >> 3, key & 7
            if kind == _LENGTH:
                length, at = _varint(message, at)
                if number in apart:
                    values_bytes -= length
                    if apart[number]:
                        todo.append((at, at + length, apart[number]))
                at += length
            elif kind == _VARINT:
                _, at = _varint(message, at)
            elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
                at += 8 if kind == _EIGHT_BYTES else 4
            else:
                raise malformed()
            values_bytes += at - begun
            if fields > _MAX_FIELDS or values_bytes > MAX_VALUES_BYTES:
                detail = f"at most {MAX_VALUES_BYTES} bytes of values are accepted; send tensors in raw_input_contents"
                raise ProblemError(413, "values_too_large", detail)
        if at != end:
            raise malformed()


def malformed() -> ProblemError:
    """The problem with bytes that are not a message."""
    return ProblemError(400, "malformed", "these bytes are not the message of this method")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, of seven bits a byte, and where it ends."""
    number = 0
    for place, byte in enumerate(message[at : at + _VARINT_BYTES]):
        number |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return number, at + place + 1
    raise malformed()
