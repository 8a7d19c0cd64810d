"""API keys: requests without one are refused, the file of keys holds no secret, new routes are closed by default."""

import base64
import stat
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from support.logs import logged
from support.servers import metric_lines, serving, until

from export.bundle import Bundle
from export.errors import UsageError
from export.images import encode_image
from serve.app import create_app
from serve.keys import Role, add_key, load_keys
from serve.settings import ServeSettings

SEGMENT = "/v1/models/tiny/segment"
PNG = {"Content-Type": "image/png"}
IMAGE = encode_image(np.zeros((16, 16, 3), np.uint8))


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A file of keys, and the secrets of its two keys: one for use, one for administration."""
    path = tmp_path_factory.mktemp("keys") / "keys"
    return path, add_key(path, "alice", Role.USE), add_key(path, "root", Role.ADMIN)


@pytest.fixture(scope="module")
def base_url(bundle: Bundle, secrets: tuple[Path, str, str]) -> Iterator[str]:
    with serving([bundle.path], ServeSettings(concurrency=1, api_keys=secrets[0])) as url:
        yield url


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def basic(secret: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"me:{secret}".encode()).decode()}


def test_who_has_a_key_is_answered(base_url: str, secrets: tuple[Path, str, str]) -> None:
    _, use, admin = secrets
    for headers in (bearer(use), bearer(admin), basic(use), {"Authorization": f"bearer   {use}"}):
        response = httpx.post(base_url + SEGMENT, content=IMAGE, headers={**PNG, **headers})
        assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({}, "no_key"),
        ({"Authorization": ""}, "no_key"),
        ({"Authorization": "Bearer"}, "no_key"),
        ({"Authorization": "Digest username=me"}, "no_key"),
        ({"Authorization": "Basic ???"}, "no_key"),
        ({"Authorization": "Basic /w=="}, "no_key"),
        (bearer("segpress_" + "x" * 43), "wrong_key"),
        (basic("segpress_" + "x" * 43), "wrong_key"),
        ({"Authorization": b"Bearer \xff\xfe"}, "wrong_key"),
    ],
)
def test_who_has_none_is_told_how_to_send_one(base_url: str, given: dict[str, str], reason: str) -> None:
    response = httpx.post(base_url + SEGMENT, content=IMAGE, headers={**PNG, **given})
    assert (response.status_code, response.json()["reason"]) == (401, reason)
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["www-authenticate"].startswith('Bearer realm="segpress"')
    assert response.json()["request_id"] == response.headers["x-request-id"]


def test_the_hash_is_no_key(base_url: str, secrets: tuple[Path, str, str]) -> None:
    for key in load_keys(secrets[0]).keys:
        for stolen in (key.digest.hex(), f"sha256:{key.digest.hex()}", key.line()):
            assert httpx.get(base_url + "/metrics", headers=bearer(stolen)).status_code == 401


def test_health_alone_is_open(base_url: str, bundle: Bundle) -> None:
    """Every route of the document is requested, so a new one must be closed or be named here."""
    document = create_app([bundle.path]).openapi()
    asked = {path.format(name="tiny", version="1", model_name="tiny"): path for path in document["paths"]}
    asked |= {"/": "/", "/docs": "/docs", "/openapi.json": "/openapi.json", "/nothing": "/nothing"}
    open_to_all = {path for url, path in asked.items() if httpx.get(base_url + url).status_code != 401}
    assert open_to_all == {"/v2/health/live", "/v2/health/ready", "/v2/health/startup"} & set(document["paths"])
    for evasion in ("/v2/health/live/../../../metrics", "//metrics", "/v2/health/live%2f..%2fmetrics", "/metrics/"):
        assert httpx.get(base_url + evasion).status_code in (401, 404)


def test_the_document_says_how_a_key_is_sent(base_url: str, secrets: tuple[Path, str, str]) -> None:
    document = httpx.get(base_url + "/openapi.json", headers=bearer(secrets[1])).json()
    assert document["components"]["securitySchemes"]["bearer"] == {"type": "http", "scheme": "bearer"}
    assert {"bearer": []} in document["security"]
    assert document["paths"]["/v2/health/live"]["get"]["security"] == []
    assert "401" in document["paths"]["/v1/models/{name}/segment"]["post"]["responses"]


def test_refusals_are_counted_by_reason(base_url: str, secrets: tuple[Path, str, str]) -> None:
    def count() -> float:
        return metric_lines(base_url, bearer(secrets[1]))['segpress_errors_total{model="",reason="wrong_key"}']

    httpx.get(base_url + "/metrics", headers=bearer("segpress_no"))
    before = count()
    httpx.get(base_url + "/metrics", headers=bearer("segpress_no"))
    assert count() == before + 1


def test_only_an_admin_key_administers(base_url: str, secrets: tuple[Path, str, str]) -> None:
    _, use, admin = secrets
    load = f"{base_url}/v2/repository/models/tiny/load"
    assert httpx.post(load, headers=bearer(admin)).status_code == 200
    # A browser adds the password to whatever requests another page makes it send, so a password is not enough.
    for headers in (bearer(use), basic(admin), basic(use)):
        refused = httpx.post(load, headers=headers)
        assert (refused.status_code, refused.json()["reason"]) == (403, "not_admin")
    assert httpx.post(load).status_code == 401


def test_without_keys_nobody_administers_unless_the_settings_say_so(bundle: Bundle) -> None:
    unload = "/v2/repository/models/tiny/unload"
    with serving([bundle.path], ServeSettings(concurrency=1)) as url:
        refused = httpx.post(url + unload)
        assert (refused.status_code, refused.json()["reason"]) == (403, "not_allowed")
    with serving([bundle.path], ServeSettings(concurrency=1, allow_load=True)) as url:
        assert httpx.post(url + unload).status_code == 200


def test_the_log_names_whose_key_it_was(base_url: str, secrets: tuple[Path, str, str]) -> None:
    with logged() as records:
        httpx.get(base_url + "/v2/repository/index", headers=bearer(secrets[1]))
        until(lambda: any(getattr(record, "fields", {}).get("key") == "alice" for record in records))


def test_no_key_gets_into_a_log_or_an_answer(base_url: str, secrets: tuple[Path, str, str]) -> None:
    with logged() as records:
        for secret in (secrets[1], "segpress_wrong"):
            for headers in (bearer(secret), basic(secret)):
                for path in ("/v2/repository/index", "/nothing", SEGMENT):
                    response = httpx.request("GET", base_url + path, headers=headers)
                    assert secret not in response.text + str(response.headers)
    ours = [record for record in records if record.name.startswith(("serve", "uvicorn", "asyncio"))]
    assert ours
    told = " ".join(f"{record.getMessage()} {vars(record)}" for record in ours)
    assert "segpress_" not in told.replace("segpress_requests", "")


# The file.


def test_a_file_of_keys_is_for_its_owner_and_holds_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    secret = add_key(path, "alice", Role.USE)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert secret.startswith("segpress_")
    assert secret not in path.read_text()
    assert add_key(path, "bob", Role.ADMIN) != secret
    assert [(key.name, key.role) for key in load_keys(path).keys] == [("alice", "use"), ("bob", "admin")]
    found = load_keys(path).find(secret)
    assert found is not None
    assert found.name == "alice"


def test_a_key_whose_line_is_deleted_is_no_key(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    gone, kept = (add_key(path, name, Role.USE) for name in ("gone", "kept"))
    left = [line for line in path.read_text().splitlines() if not line.startswith("gone ")]
    path.write_text("\n".join(["# a comment", "", *left]))
    assert load_keys(path).find(gone) is None
    assert load_keys(path).find(kept) is not None


@pytest.mark.parametrize("left", ["", "# nobody any more\n", "\n# edited by hand", "# one\r\n", "\r"])
def test_a_key_is_added_where_none_stands(tmp_path: Path, left: str) -> None:
    path = tmp_path / "keys"
    path.write_bytes(left.encode())
    secret = add_key(path, "alice", Role.USE)
    assert path.read_bytes().startswith(left.encode())
    assert load_keys(path).find(secret) is not None


def test_a_key_is_added_behind_a_line_that_was_left_open(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    first = add_key(path, "alice", Role.USE)
    path.write_text(path.read_text().rstrip("\n"))
    second = add_key(path, "bob", Role.USE)
    assert all(load_keys(path).find(secret) for secret in (first, second))


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    add_key(tmp_path / "keys", "alice", Role.USE)
    with pytest.raises(UsageError, match="a key named alice already"):
        add_key(tmp_path / "keys", "alice", Role.ADMIN)


def test_everything_wrong_with_a_file_is_said_at_once_and_none_of_its_secrets(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    secret = add_key(path, "alice", Role.USE)
    line = path.read_text()
    path.write_text(f"{line}{line}{secret}\nbob use md5:00\ncarol king sha256:{'0' * 64}\n")
    with pytest.raises(UsageError) as caught:
        create_app([bundle.path], ServeSettings(api_keys=path))
    for number in (2, 3, 4, 5):
        assert f"line {number} " in str(caught.value)
    assert secret not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "No such file"), (b"", "no key in it"), (b"# nobody\n", "no key in it"), (b"\xff", "is not text")],
)
def test_a_file_without_keys_closes_nothing_silently(
    bundle: Bundle, tmp_path: Path, content: bytes | None, says: str
) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=says):
        create_app([bundle.path], ServeSettings(api_keys=path))
