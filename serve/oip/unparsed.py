"""What is refused of a ModelInferRequest before it is parsed.

Pixels and files in a message are bytes to be copied. All else in it are values, each made by itself, and they take the
interpreter for as long as that lasts, and with it health; and empty fields, of two bytes each, become objects of a
hundred.

Source: the encoding of Protocol Buffers, https://protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Mapping
from typing import Any

from serve.oip.wire import MAX_JSON_BYTES
from serve.problems import ProblemError

MAX_VALUES_BYTES = MAX_JSON_BYTES // 2
"""Of a message, without its pixels and files in bytes: as many pixels as go into JSON, where each takes two."""

_MAX_FIELDS = 1000

_PIXELS_AND_FILES: Mapping[int, Any] = {7: {}, 5: {5: {8: {}}}}
"""By the numbers of inference.proto: raw_input_contents, and inputs.contents.bytes_contents."""

_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
_VARINT_BYTES = 10


def check_unparsed(message: bytes) -> None:
    """Raises ProblemError 413 for too many values, 400 for what is no message."""
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
                detail = f"at most {MAX_VALUES_BYTES} bytes of values are taken; send tensors in raw_input_contents"
                raise ProblemError(413, "values_too_large", detail)
        if at != end:
            raise malformed()


def malformed() -> ProblemError:
    """Of bytes that do not make a message."""
    return ProblemError(400, "malformed", "these bytes are not the message of this method")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends."""
    number = 0
    for place, byte in enumerate(message[at : at + _VARINT_BYTES]):
        number |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return number, at + place + 1
    raise malformed()
