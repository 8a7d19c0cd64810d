"""The image of serve/deploy/Dockerfile, built and run: not as root, nothing writable, no torch, a clean exit."""

import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.bundles import expected_mask
from support.containers import Container, Image

from export.bundle import Bundle
from export.images import decode_indices, encode_image

pytestmark = pytest.mark.slow

PNG = {"Content-Type": "image/png"}
ROOT = Path(__file__).resolve().parents[2]
IMAGE = np.arange(64 * 48 * 3, dtype=np.uint32).reshape(64, 48, 3).astype(np.uint8)
INSTALLED = "from importlib.metadata import distributions as all; print(*(f'{d.name}=={d.version}' for d in all()))"


@pytest.fixture(scope="module")
def image() -> Image:
    return Image.built()


@pytest.fixture(scope="module")
def container(image: Image, bundle: Bundle) -> Iterator[Container]:
    """A ready container with a mounted bundle."""
    with image.container(bundle.path) as container:
        container.started()
        yield container


def answers(container: Container) -> None:
    """Check that a running container keeps what every server promises, until it exits."""
    url = container.started()
    with container.network(), httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
        assert client.get("/v2/health/ready").json() == {"ready": True}
        segment = client.post("/v1/models/tiny/segment", content=encode_image(IMAGE), headers=PNG)
        np.testing.assert_array_equal(decode_indices(segment.content), expected_mask(IMAGE, 4))
        families = {family.name for family in text_string_to_metric_families(client.get("/metrics").text)}
        assert "segpress_request_duration_seconds" in families
    container.signal(signal.SIGTERM)
    assert container.wait() == 0, container.log
    assert "every accepted request is answered" in container.log
    assert "Traceback" not in container.log


def test_a_mounted_bundle_is_served_until_sigterm(image: Image, bundle: Bundle) -> None:
    with image.container(bundle.path) as container:
        answers(container)


def test_a_bundle_that_is_baked_in_is_verified_and_served(image: Image, bundle: Bundle, tmp_path: Path) -> None:
    readme = (ROOT / "serve/deploy/README.md").read_text()
    (dockerfile,) = re.findall(r"^```dockerfile\n(.*?)^```", readme, flags=re.MULTILINE | re.DOTALL)
    shutil.copytree(bundle.path, tmp_path / "bundle")
    with image.child("with-bundle", dockerfile, tmp_path / "bundle").container() as container:
        answers(container)


def test_a_damaged_bundle_ends_the_container_with_status_2(image: Image, bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.path, tmp_path / "damaged")
    (tmp_path / "damaged" / "parity.json").unlink()
    with image.container(tmp_path / "damaged") as container:
        assert container.wait() == 2
    assert "parity.json is missing" in container.log


def test_its_process_is_not_root_and_nobody_writes_to_its_files(container: Container) -> None:
    assert container.execute("id", "-u").stdout == "10001\n"
    status = Path(f"/proc/{container.pid}/status").read_text()
    assert re.search(r"^Uid:\t10001\t10001\t10001\t10001$", status, flags=re.MULTILINE)
    assert re.search(r"^CapEff:\t0+$", status, flags=re.MULTILINE)
    for path in ("/written", "/opt/segpress/written", "/bundle/written"):
        assert "Read-only file system" in container.execute("touch", path, user="0:0").stderr


def test_the_health_check_tells_a_ready_server_from_none(image: Image, container: Container) -> None:
    check = image.config["Healthcheck"]
    kind, *command = check["Test"]
    assert kind == "CMD"
    # Counted as Docker does: on a busy machine one check may be too late, so only several failures in a row count.
    checks = [container.execute(*command)]
    while checks[-1].returncode and len(checks) < check["Retries"]:
        checks.append(container.execute(*command))
    assert (checks[-1].returncode, checks[-1].stderr) == (0, ""), [each.stderr for each in checks]
    # In a network namespace of its own, nothing listens.
    nowhere = container.execute("unshare", "--net", *command, user="0:0")
    assert nowhere.returncode == 1
    assert nowhere.stderr.endswith("OSError: [Errno 101] Network is unreachable\n")


def test_it_holds_pinned_packages_and_neither_torch_nor_pip(container: Container) -> None:
    installed = container.execute("python", "-c", INSTALLED).stdout.split()
    pins = {re.sub(r"[-_.]+", "-", line).lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    normal = {re.sub(r"[-_.]+", "-", found).lower(): found for found in installed}
    assert [found for name, found in normal.items() if not name.startswith("segpress=") and name not in pins] == []
    names = {name.partition("==")[0] for name in normal}
    assert {"segpress", "fastapi", "grpcio", "opentelemetry-sdk"} <= names
    assert names & {"torch", "onnx", "matplotlib", "pip", "setuptools"} == set()


def test_nothing_of_the_build_stays(container: Container) -> None:
    assert container.execute("ls", "/opt").stdout == "segpress\n"
    for path in ("/etc/pip.conf", "/src", "/wheels", "/wheel", "/staged", "/root/.config", "/root/.cache"):
        assert "No such file" in container.execute("ls", path, user="0:0").stderr
    # Compiled when the image was built, because nothing can be written when it runs.
    sources = "find /opt/segpress/lib -name '*.py' | wc -l; find /opt/segpress/lib -name '*.pyc' | wc -l"
    assert len(set(container.execute("sh", "-c", sources).stdout.split())) == 1
