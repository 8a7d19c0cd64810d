"""What the image endpoint takes: image files, and forms with several of them."""

from dataclasses import dataclass
from typing import Final

from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from export.images import FORMATS
from serve.problems import ProblemError

IMAGE_TYPES: Final = tuple(sorted(FORMATS.values()))
MULTIPART: Final = "multipart/form-data"


@dataclass(frozen=True)
class ContentType:
    """What a request says its body is."""

    media_type: str
    boundary: bytes | None = None
    """Between the parts of a multipart body; None when the body is the image itself."""

    @classmethod
    def of(cls, request: Request) -> "ContentType":
        """Raises ProblemError 415 for a type or an encoding that is not accepted, 400 for a form without a boundary."""
        encoding = request.headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            detail = f"Content-Encoding {encoding!r} is not accepted; images are compressed, send the file as it is"
            raise ProblemError(415, "content_encoding", detail, headers={"Accept-Encoding": "identity"})
        given = request.headers.get("content-type", "")
        media_type, options = parse_options_header(given)
        name = media_type.decode("latin-1")
        if name in IMAGE_TYPES:
            return cls(name)
        if name == MULTIPART:
            boundary = options.get(b"boundary")
            if not boundary:
                raise ProblemError(400, "malformed", f"Content-Type {MULTIPART} without a boundary; name it")
            return cls(name, boundary)
        taken = ", ".join([*IMAGE_TYPES, MULTIPART])
        what = f"Content-Type {given!r} is not accepted" if given else "there is no Content-Type"
        raise ProblemError(415, "media_type", f"{what}; send one of {taken}", headers={"Accept": taken})
