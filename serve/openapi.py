"""The OpenAPI document: what FastAPI finds in the routes, and two things that it cannot know.

Masks and problems are sent already encoded, not through FastAPI's response models, so their schemas are
added here and the routes refer to them by name. How a key is sent is added here, too.
"""

from typing import Annotated, Any

from fastapi import FastAPI, Path
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serve.access import OPEN
from serve.problems import MEDIA_TYPE, Problem

ModelName = Annotated[str, Path(description="A model's name in its manifest; /v2/repository/index lists the models")]
"""The path parameter of every route that is about one model."""

_SCHEMES = ("bearer", "basic")
_REFERENCE = "#/components/schemas/{model}"
_SENT_AS_THEY_ARE: list[type[BaseModel]] = [Problem]


def reference(model: type[BaseModel]) -> dict[str, Any]:
    """The content of a response or body of this model, whose schema is then part of the document."""
    return {"schema": schema_of(model)}


def schema_of(*models: type[BaseModel]) -> dict[str, Any]:
    """A schema that refers to one of these models, for use within another schema."""
    _SENT_AS_THEY_ARE.extend(model for model in models if model not in _SENT_AS_THEY_ARE)
    references = [{"$ref": _REFERENCE.format(model=model.__name__)} for model in models]
    return references[0] if len(references) == 1 else {"anyOf": references}


def problems(descriptions: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    """Responses with a problem, for FastAPI's `responses`; `default` stands for any other status."""
    content = {MEDIA_TYPE: reference(Problem)}
    documented: list[tuple[int | str, str]] = [*descriptions.items(), ("default", "Any other problem")]
    return {status: {"description": text, "content": content} for status, text in documented}


def install(app: FastAPI, *, with_keys: bool = False) -> None:
    """Add to the document of `app` the schemas that routes refer to by name and, `with_keys`, how a key is sent."""
    found_by_fastapi = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        described = found_by_fastapi()
        _, schemas = models_json_schema(
            [(model, "serialization") for model in _SENT_AS_THEY_ARE], ref_template=_REFERENCE
        )
        described.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
        if with_keys:
            _describe_keys(described)
        return described

    app.openapi = document  # type: ignore[method-assign]


def _describe_keys(described: dict[str, Any]) -> None:
    described["components"]["securitySchemes"] = {scheme: {"type": "http", "scheme": scheme} for scheme in _SCHEMES}
    described["security"] = [{scheme: []} for scheme in _SCHEMES]
    for path, operations in described["paths"].items():
        for operation in operations.values():
            if path in OPEN:
                operation["security"] = []
            else:
                operation["responses"].update(problems({401: "No API key, or one that is not known here"}))
