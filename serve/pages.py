"""The pages for people: what is served, a place to try it, and every route. All they need comes from this server.

FastAPI's own documentation page loads its scripts from elsewhere; this one is made from the same OpenAPI
document and needs no script at all. Scripts and styles are files of their own, since the policy in
serve/headers.py forbids inline ones.
"""

import re
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response

from export.bands import lossless_format
from export.images import FORMATS
from export.manifest import Manifest
from serve.service import service_of

router = APIRouter(include_in_schema=False)

Json = dict[str, Any]

_FOLDER = files("serve") / "page"
_CODE = re.compile(r"`([^`]+)`")
_TYPES = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}


@router.get("/")
async def home(request: Request) -> HTMLResponse:
    """What is served here, and how to ask for it."""
    manifests = [predictor.manifest for predictor in service_of(request).repository.served.values()]
    return HTMLResponse(
        _page(
            "home.html",
            options="".join(f"<option>{escape(m.name)}</option>" for m in manifests),
            models="".join(_model(m, str(request.base_url)) for m in manifests) or "<p>No model is served now.</p>",
        )
    )


@router.get("/page/{name}")
async def part(name: str) -> Response:
    """A script, a style or a figure of the pages."""
    media_type = _TYPES.get(name.rpartition(".")[2])
    if media_type is None or name not in {file.name for file in _FOLDER.iterdir()}:
        raise HTTPException(404)
    # A browser that kept an old script would run it in a new page.
    return Response(_read(name), media_type=media_type, headers={"Cache-Control": "no-cache"})


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    """Every route of the OpenAPI document."""
    document: Json = request.app.openapi()
    schemas = document["components"]["schemas"]
    return HTMLResponse(
        _page(
            "docs.html",
            title=escape(document["info"]["title"]),
            version=escape(document["info"]["version"]),
            description=escape(document["info"].get("description", "")),
            operations="".join(
                _operation(path, method, operation)
                for path, methods in document["paths"].items()
                for method, operation in methods.items()
            ),
            schemas="".join(_schema(name, schema) for name, schema in sorted(schemas.items())),
        )
    )


def _page(name: str, **parts: str) -> str:
    return Template(_read(name)).substitute(parts)


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _model(manifest: Manifest, base_url: str) -> str:
    classes = "".join(
        f'<span><svg class="swatch" viewBox="0 0 1 1" aria-hidden="true"><rect width="1" height="1" '
        f'fill="rgb({red}, {green}, {blue})"></rect></svg>{index} {escape(name)}</span>'
        for index, (name, (red, green, blue)) in enumerate(zip(manifest.classes, manifest.colours, strict=True))
    )
    accuracy = f", mIoU {manifest.accuracy.miou:.3f} on {manifest.accuracy.split}" if manifest.accuracy else ""
    form = "JPEG" if manifest.channels in (1, 3) else lossless_format(manifest.channels)
    command = (
        f"curl --data-binary @image.{form.lower()} -H 'Content-Type: {FORMATS[form]}' \\\n"
        f"  {base_url}v1/models/{manifest.name}/segment -o mask.png"
    )
    return (
        f'<section class="panel"><h3>{escape(manifest.name)}</h3>'
        f'<p class="quiet">version {escape(manifest.version)}, {manifest.precision}{escape(accuracy)}, '
        f"digest <code>{manifest.digest[:12]}</code></p>"
        f'<p class="classes">{classes}</p><pre tabindex="0">{escape(command)}</pre>'
        f'<p><a href="v2/models/{manifest.name}">Metadata of {escape(manifest.name)}</a></p></section>'
    )


def _operation(path: str, method: str, operation: Json) -> str:
    parts = [
        f'<section class="panel"><h3><span class="method">{method.upper()}</span> <code>{escape(path)}</code></h3>',
        f"<p><strong>{escape(operation.get('summary', ''))}</strong></p>",
        *(f"<p>{_prose(text)}</p>" for text in operation.get("description", "").split("\n\n") if text),
    ]
    if parameters := operation.get("parameters"):
        asked = [
            (_code(p["name"]), escape(p["in"]), _kind(p.get("schema", {})), _prose(p.get("description", "")))
            for p in parameters
        ]
        parts.append(_table(("Parameter", "In", "Type", "Meaning"), asked))
    if body := operation.get("requestBody"):
        parts.append(f"<p>{_prose(body.get('description', ''))}</p>")
        parts.append(_table(("Body", "Type"), _content(body)))
    rows = [
        (_code(status), _prose(response["description"]), "<br>".join(" ".join(row) for row in _content(response)))
        for status, response in operation["responses"].items()
    ]
    parts.append(_table(("Status", "Meaning", "Answer"), rows))
    return "".join([*parts, "</section>"])


def _schema(name: str, schema: Json) -> str:
    rows = [
        (_code(key), _kind(value), _prose(value.get("description", "")))
        for key, value in schema.get("properties", {}).items()
    ]
    return (
        f'<section class="panel" id="{escape(name)}"><h3><code>{escape(name)}</code></h3>'
        f"<p>{_prose(schema.get('description', ''))}</p>{_table(('Field', 'Type', 'Meaning'), rows)}</section>"
    )


def _content(part: Json) -> list[tuple[str, str]]:
    return [(_code(name), _kind(media.get("schema", {}))) for name, media in part.get("content", {}).items()]


def _kind(schema: Json) -> str:
    """A schema in a few words, as HTML."""
    match schema:
        case {"$ref": str(target)}:
            name = escape(target.rpartition("/")[2])
            words = f'<a href="#{name}">{name}</a>'
        case {"anyOf": options} | {"oneOf": options}:
            words = " or ".join(_kind(option) for option in options)
        case {"prefixItems": items}:
            words = "[" + ", ".join(_kind(item) for item in items) + "]"
        case {"type": "array"}:
            words = f"list of {_kind(schema.get('items', {}))}"
        case {"type": "object", "properties": properties}:
            words = ", ".join(f"{_code(key)}: {_kind(value)}" for key, value in properties.items())
        case {"format": "binary"}:
            words = "bytes"
        case _:
            words = escape(str(schema.get("type", "anything")))
    return words


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    titles = "".join(f'<th scope="col">{title}</th>' for title in head)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{titles}</tr>{lines}</table>"


def _prose(text: str) -> str:
    """The text as HTML, with `code` as in Markdown, which is the format of descriptions in OpenAPI."""
    return _CODE.sub(r"<code>\1</code>", escape(text))


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"
