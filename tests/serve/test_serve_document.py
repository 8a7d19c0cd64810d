"""The server keeps to its OpenAPI document: schemathesis makes requests from it and checks a real server's answers."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis.errors import Unsatisfiable
from schemathesis import APIOperation, BaseSchema, checks
from schemathesis.core.result import Ok
from support.bundles import tiny_bundle, tiny_graph
from support.described import CHECKS, document_of, schema_of
from support.servers import serving

from export.bundle import Bundle
from serve.dispatch import DEADLINE
from serve.keys import Role, add_key
from serve.settings import ServeSettings

thorough = hypothesis_settings(
    max_examples=25,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("keys") / "keys"
    return path, add_key(path, "tester", Role.ADMIN)


@pytest.fixture(scope="module")
def keyed_url(bundle: Bundle, secret: tuple[Path, str]) -> Iterator[str]:
    with serving([bundle.path], ServeSettings(concurrency=1, api_keys=secret[0])) as url:
        yield url


@pytest.fixture(scope="module")
def open_url(settings: ServeSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a server whose model gives logits, so that it can answer everything."""
    graph = tiny_graph(classes=4, channels=3, size_multiple=16, logits=True)
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    tiny_bundle(path, classes=4, graph=graph)
    with serving([path], settings) as url:
        yield url


def schema_for_one_model(url: str, **headers: str) -> BaseSchema:
    """Valid requests name the model that exists; those made to violate the document name others."""
    document = document_of(url, **headers)
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", []):
                if parameter["name"] == "name":
                    parameter["schema"] = {"enum": ["tiny"]}
    return schema_of(document, url)


def operations_of(schema: BaseSchema) -> Iterator[APIOperation[Any, Any, Any, Any]]:
    for found in schema.get_all_operations():
        assert isinstance(found, Ok), found
        yield found.ok()


def ask_everything(url: str, *also: schemathesis.CheckFunction, **headers: str) -> set[tuple[str, int]]:
    """Send every operation requests that it should take and that it should not; returns each (path, status) seen.

    Schemathesis' own pytest integration does not support pytest 9.2, so its strategies are drawn from here.
    """
    schema, seen = schema_for_one_model(url, **headers), set()
    for operation in operations_of(schema):

        def ask(case: schemathesis.Case[Any]) -> None:
            if case.headers:
                case.headers.pop(DEADLINE, None)  # a very short one is rightly answered 504
            response = case.call_and_validate(
                checks=[*CHECKS, checks.unsupported_method, *also], headers=headers, timeout=30
            )
            seen.add((case.operation.path, response.status_code))

        for mode in schemathesis.GenerationMode:
            with contextlib.suppress(Unsatisfiable):  # an operation without parameters has no invalid requests
                thorough(given(operation.as_strategy(generation_mode=mode))(ask))()
    return seen


def test_every_operation_and_parameter_says_what_it_is(open_url: str) -> None:
    bare = [
        f"{method} {path} {parameter.get('name', '')}"
        for path, operations in document_of(open_url)["paths"].items()
        for method, operation in operations.items()
        for parameter in [operation, *operation.get("parameters", [])]
        if not parameter.get("description")
    ]
    assert bare == []


@pytest.mark.slow
def test_every_answer_is_one_that_is_described(open_url: str) -> None:
    seen = ask_everything(open_url)
    assert {("/v2/models/{name}", 200), ("/v2/models/{name}", 404)} <= seen
    assert {("/v1/models/{name}/segment", status) for status in (200, 400, 404)} <= seen


@pytest.mark.slow
def test_keys_are_asked_for_as_it_is_described(keyed_url: str, secret: tuple[Path, str]) -> None:
    seen = ask_everything(keyed_url, checks.ignored_auth, Authorization=f"Bearer {secret[1]}")
    assert {("/v2/models/{name}", 200), ("/metrics", 200)} <= seen
