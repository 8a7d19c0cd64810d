"""HTTPS with the files that are given; what is wrong with them is reported before anything starts."""

import ssl
from pathlib import Path

import httpx
import pytest
from support.servers import ServerProcess, serving

from export.bundle import Bundle
from export.errors import UsageError
from serve.settings import ServeSettings
from serve.tls import tls_context

FILES = Path(__file__).parent / "certificates"
CERTIFICATE, KEY = FILES / "localhost.pem", FILES / "localhost.key.pem"


def settings(certificate: Path | None = CERTIFICATE, key: Path | None = KEY) -> ServeSettings:
    return ServeSettings(port=0, concurrency=1, tls_cert=certificate, tls_key=key)


def test_a_client_that_trusts_the_certificate_is_answered(bundle: Bundle) -> None:
    trusting = ssl.create_default_context(cafile=CERTIFICATE)
    with serving([bundle.path], settings()) as url:
        assert url.startswith("https://")
        assert httpx.get(url + "/v2/health/ready", verify=trusting).json() == {"ready": True}
        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            httpx.get(url + "/v2/health/ready")
        with pytest.raises(httpx.HTTPError):
            httpx.get(url.replace("https", "http") + "/v2/health/ready")


def test_old_versions_of_tls_are_refused() -> None:
    context = tls_context(settings())
    assert context is not None
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert tls_context(settings(None, None)) is None


@pytest.mark.parametrize(
    ("certificate", "key", "says"),
    [
        (CERTIFICATE, None, "give --tls-key, too"),
        (None, KEY, "give --tls-cert, too"),
        (FILES / "none.pem", KEY, "--tls-cert .*none.pem: No such file"),
        (CERTIFICATE, FILES / "none.pem", "--tls-key .*none.pem: No such file"),
        (CERTIFICATE, FILES, "--tls-key .*: Is a directory"),
        (CERTIFICATE, FILES / "other.key.pem", "other.key.pem is not the key of --tls-cert .*localhost.pem"),
        (CERTIFICATE, FILES / "encrypted.key.pem", "encrypted.key.pem is encrypted; decrypt it"),
        (FILES / "README.md", KEY, "no PEM certificate"),
        (CERTIFICATE, FILES / "README.md", "no PEM certificate with its private key"),
        (CERTIFICATE, CERTIFICATE, "no PEM certificate with its private key"),
    ],
)
def test_what_is_wrong_with_the_files_is_one_message(certificate: Path | None, key: Path | None, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        tls_context(settings(certificate, key))


def test_a_server_with_the_wrong_key_ends_with_status_2(bundle: Bundle) -> None:
    with ServerProcess([bundle.path], settings(key=FILES / "other.key.pem")) as server:
        assert server.wait() == 2
    assert "is not the key of" in server.log
    assert "Traceback" not in server.log
    with ServerProcess([bundle.path], settings()) as server:
        assert server.base_url.startswith("https://")
