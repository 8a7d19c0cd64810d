"""The OpenAPI document of a server as schemathesis reads it, and the checks that an answer must pass."""

from typing import Any

import httpx
from schemathesis import BaseSchema, checks
from schemathesis.openapi import from_dict

CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]


def document_of(url: str, **headers: str) -> dict[str, Any]:
    """The document of a server, without its `default` responses, which would allow any other status."""
    described: dict[str, Any] = httpx.get(f"{url}/openapi.json", headers=headers).raise_for_status().json()
    for operations in described["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("default", None)
    return described


def schema_of(document: dict[str, Any], url: str) -> BaseSchema:
    """A schema that generates requests from a document and checks answers against it."""
    schema = from_dict(document)
    schema.config.update(base_url=url)
    return schema
