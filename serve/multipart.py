"""The files of a multipart/form-data body. Source: RFC 7578."""

from dataclasses import dataclass, field

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from serve.problems import ProblemError

# The parser reads the headers of parts byte by byte; ours have two or three short ones.
_MAX_HEADER_BYTES = 8192
_SLICE = 65536


@dataclass(frozen=True)
class Upload:
    """One part of the body: a file, and the name of the form's field that it was put in."""

    name: str
    content: bytes


def uploads(body: bytes, boundary: bytes, *, most: int) -> list[Upload]:
    """The files in a body, at least one, in their order.

    Raises ProblemError 400 when a part is not a file or the body is malformed, 413 for more parts than `most`.
    """
    parts = _Parts(most)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": parts.begin,
                "on_part_data": parts.data,
                "on_part_end": parts.end,
                "on_header_field": parts.header_name,
                "on_header_value": parts.header_value,
                "on_header_end": parts.header_end,
                "on_end": parts.end_of_all,
            },
        )
        for start in range(0, len(body), _SLICE):
            parser.write(body[start : start + _SLICE])
        parser.finalize()
    except FormParserError as error:
        raise no_form(f"the body is malformed ({error})") from error
    if not parts.ended:
        raise no_form("the body ends before its last boundary")
    if not parts.found:
        raise no_form("the body has no parts")
    return parts.found


def no_form(what: str) -> ProblemError:
    """What to raise for a form that is not accepted."""
    how = "send one file field, or several that are all called images, and nothing else"
    return ProblemError(400, "multipart", f"multipart: {what}; {how}")


@dataclass
class _Part:
    """The part that is being parsed."""

    content: bytearray = field(default_factory=bytearray)
    name: str = ""
    is_file: bool = False
    header_bytes: int = 0
    header_name: bytearray = field(default_factory=bytearray)
    header_value: bytearray = field(default_factory=bytearray)

    def count_header(self, size: int) -> None:
        self.header_bytes += size
        if self.header_bytes > _MAX_HEADER_BYTES:
            raise no_form("the headers of a part are too long")


class _Parts:
    """Collects files as the parser finds them."""

    def __init__(self, most: int) -> None:
        self.found: list[Upload] = []
        self.ended = False
        self._most = most
        self._part = _Part()

    def begin(self) -> None:
        if len(self.found) == self._most:
            detail = f"at most {self._most} images are accepted in one request; send the others in another one"
            raise ProblemError(413, "too_many_images", detail)
        self._part = _Part()

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._part.count_header(end - start)
        self._part.header_name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._part.count_header(end - start)
        self._part.header_value += data[start:end]

    def header_end(self) -> None:
        part = self._part
        if part.header_name.lower() == b"content-disposition":
            _, options = parse_options_header(part.header_value.decode("latin-1"))
            part.is_file = b"filename" in options
            part.name = options.get(b"name", b"").decode("latin-1")
        part.header_name.clear()
        part.header_value.clear()

    def data(self, data: bytes, start: int, end: int) -> None:
        self._part.content += data[start:end]

    def end(self) -> None:
        if not self._part.is_file:
            raise no_form("a part has no filename, so it is a field and not a file")
        self.found.append(Upload(self._part.name, bytes(self._part.content)))

    def end_of_all(self) -> None:
        self.ended = True
