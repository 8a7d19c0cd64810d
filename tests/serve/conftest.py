"""Two small bundles and one server of both, shared by the tests that only send requests."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.bundles import tiny_bundle
from support.servers import serving

from export.bundle import Bundle
from serve.settings import ServeSettings


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Three channels, four classes, multiples of 16, no resizing."""
    return tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny", classes=4)


@pytest.fixture(scope="session")
def grey_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One channel, two classes, every image resized to 48x64."""
    return tiny_bundle(
        tmp_path_factory.mktemp("bundles") / "grey", name="grey", classes=2, channels=1, size=(48, 64), version="3"
    )


@pytest.fixture(scope="session")
def settings() -> ServeSettings:
    """Limits that a test can exceed without much work."""
    return ServeSettings(concurrency=2, max_pixels=512 * 512, max_body_bytes=2**20)


@pytest.fixture(scope="session")
def base_url(bundle: Bundle, grey_bundle: Bundle, settings: ServeSettings) -> Iterator[str]:
    """A server with both bundles."""
    paths: list[Path] = [bundle.path, grey_bundle.path]
    with serving(paths, settings) as url:
        yield url


@pytest.fixture(scope="session")
def client(base_url: str) -> Iterator[httpx.Client]:
    """A client of that server."""
    with httpx.Client(base_url=base_url, timeout=30) as client:
        yield client
