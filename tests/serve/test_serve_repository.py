"""Several models and versions: a switch loses no request, a bad bundle changes nothing, no name reaches other files."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from support.bundles import expected_mask, tiny_bundle
from support.logs import logged
from support.oip import image_input, some_images
from support.servers import GatedPredictor, metric_lines, serving, until
from tritonclient.utils import InferenceServerException

from export import bundle as bundles
from export.bundle import Bundle, Verification
from export.errors import BundleError, UsageError
from export.images import U8
from serve.app import create_app
from serve.folders import ModelFolders
from serve.settings import ServeSettings

IMAGES = some_images(1, 20, 30)
SETTINGS = ServeSettings(concurrency=2, allow_load=True, max_pixels=512 * 512)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Versions 1, 2 and 10 of `tiny`, with 2, 3 and 5 classes, and one bundle `plain`."""
    for version, classes in (("1", 2), ("2", 3), ("10", 5)):
        tiny_bundle(tmp_path / "models" / "tiny" / version, classes=classes, version=version)
    tiny_bundle(tmp_path / "models" / "plain", name="plain", classes=4, version="7")
    return tmp_path / "models"


@pytest.fixture
def server(folder: Path) -> Iterator[tuple[str, Any]]:
    with serving([folder], SETTINGS) as url, triton.InferenceServerClient(url.removeprefix("http://")) as client:
        yield url, client


def mask(client: Any, version: str = "") -> U8:
    result = client.infer("tiny", [image_input(triton, IMAGES, "UINT8")], model_version=version)
    found: U8 = result.as_numpy("mask")[0]
    return found


def of(classes: int) -> U8:
    return expected_mask(IMAGES[0], classes)


def policy(**choice: Any) -> str:
    return json.dumps({"version_policy": choice})


def states(client: Any) -> dict[tuple[str, str], str]:
    return {(e["name"], e["version"]): e["state"] for e in client.get_model_repository_index()}


def test_the_newest_version_of_every_model_is_served(server: tuple[str, Any]) -> None:
    _, client = server
    assert np.array_equal(mask(client), of(5)), "10 is newer than 2"
    assert states(client) == {
        ("plain", "7"): "READY",
        ("tiny", "1"): "UNAVAILABLE",
        ("tiny", "2"): "UNAVAILABLE",
        ("tiny", "10"): "READY",
    }


def test_a_load_switches_rolls_back_and_serves_several(server: tuple[str, Any]) -> None:
    url, client = server
    client.load_model("tiny", config=policy(specific={"versions": [1]}))
    assert np.array_equal(mask(client), of(2))
    info = [line for line in metric_lines(url) if line.startswith("segpress_model_info") and 'name="tiny"' in line]
    assert len(info) == 1
    assert 'version="1"' in info[0]
    client.load_model("tiny", config=policy(latest={"num_versions": 2}))
    assert np.array_equal(mask(client), of(5))
    assert np.array_equal(mask(client, "2"), of(3))
    assert not client.is_model_ready("tiny", "1")
    client.load_model("tiny", config=policy(all={}))
    assert [np.array_equal(mask(client, version), of(k)) for version, k in (("1", 2), ("2", 3), ("10", 5))] == [
        True
    ] * 3
    client.load_model("tiny")
    assert list(client.get_model_metadata("tiny")["versions"]) == ["10"]


def test_an_unloaded_model_is_gone_until_it_is_loaded(server: tuple[str, Any]) -> None:
    _, client = server
    client.unload_model("tiny")
    assert states(client)["tiny", "10"] == "UNAVAILABLE"
    with pytest.raises(InferenceServerException, match="served: plain"):
        mask(client)
    with pytest.raises(InferenceServerException, match="no model 'tiny'"):
        client.unload_model("tiny")
    client.load_model("tiny")
    assert np.array_equal(mask(client), of(5))


def test_what_is_put_into_the_folder_can_be_loaded(server: tuple[str, Any], folder: Path) -> None:
    _, client = server
    tiny_bundle(folder / "tiny" / "11", classes=6, version="11")
    tiny_bundle(folder / "late" / "1", name="late", classes=2)
    client.load_model("tiny")
    client.load_model("late")
    assert np.array_equal(mask(client), of(6))
    assert client.is_model_ready("late", "1")


def damage_model(bundle: Path) -> None:
    with (bundle / "model.onnx").open("r+b") as file:
        file.seek(40)
        file.write(b"damage")


def say_another_name(bundle: Path) -> None:
    shutil.rmtree(bundle)
    tiny_bundle(bundle, name="other", classes=2, version=bundle.name)


def say_another_version(bundle: Path) -> None:
    shutil.rmtree(bundle)
    tiny_bundle(bundle, classes=2, version="12")


def take_more_pixels_than_are_allowed(bundle: Path) -> None:
    shutil.rmtree(bundle)
    tiny_bundle(bundle, classes=2, version=bundle.name, size=(600, 600))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (damage_model, "model.onnx"),
        (say_another_name, "its manifest says other version 11"),
        (say_another_version, "its manifest says tiny version 12"),
        (take_more_pixels_than_are_allowed, "max_pixels"),
    ],
)
def test_a_bad_bundle_is_refused_while_the_old_one_serves(
    server: tuple[str, Any], folder: Path, spoil: Callable[[Path], None], says: str
) -> None:
    url, client = server
    tiny_bundle(folder / "tiny" / "11", classes=6, version="11")
    spoil(folder / "tiny" / "11")
    answer = httpx.post(f"{url}/v2/repository/models/tiny/load", timeout=60)
    assert (answer.status_code, answer.json()["reason"]) == (422, "bundle_refused")
    assert says in answer.json()["detail"]
    assert np.array_equal(mask(client), of(5))
    [entry] = [e for e in client.get_model_repository_index() if (e["name"], e["version"]) == ("tiny", "11")]
    assert (entry["state"], says in entry["reason"]) == ("UNAVAILABLE", True)


def test_a_replacement_that_is_refused_is_told_beside_what_serves_on(server: tuple[str, Any], folder: Path) -> None:
    """The replacement is in the same folder, under the same version."""
    url, client = server

    def entry() -> tuple[str, str]:
        [found] = [e for e in client.get_model_repository_index() if (e["name"], e["version"]) == ("tiny", "10")]
        return found["state"], found["reason"]

    assert entry() == ("READY", "")
    damage_model(folder / "tiny" / "10")
    assert httpx.post(f"{url}/v2/repository/models/tiny/load", timeout=60).status_code == 422
    state, reason = entry()
    assert state == "READY"
    assert "model.onnx does not match its hash" in reason
    assert np.array_equal(mask(client), of(5))
    shutil.rmtree(folder / "tiny" / "10")
    tiny_bundle(folder / "tiny" / "10", classes=6, version="10")
    client.load_model("tiny")
    assert entry() == ("READY", "")
    assert np.array_equal(mask(client), of(6))


def test_a_switch_loses_no_request_and_mixes_no_versions(server: tuple[str, Any]) -> None:
    url, client = server
    stop, wrong, count = threading.Event(), list[str](), [0]

    def ask() -> None:
        with triton.InferenceServerClient(url.removeprefix("http://")) as own:
            while not stop.is_set():
                result = own.infer("tiny", [image_input(triton, IMAGES, "UINT8")])
                version = result.get_response()["model_version"]
                if not np.array_equal(result.as_numpy("mask")[0], of({"2": 3, "10": 5}[version])):
                    wrong.append(version)
                count[0] += 1

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for version in [2, 10] * 4:
        client.load_model("tiny", config=policy(specific={"versions": [version]}))
    stop.set()
    for thread in threads:
        thread.join(30)
    assert not wrong
    assert count[0] > 10


def test_what_is_in_work_ends_on_the_model_that_it_began_with(bundle: Bundle, folder: Path) -> None:
    predictor = GatedPredictor(bundle)
    app = create_app([predictor], ServeSettings(concurrency=1, allow_load=True))
    with serving(app) as url, httpx.Client(base_url=url, timeout=30) as client:
        seen = len(predictor.seen)
        answers: list[httpx.Response] = []
        with predictor.closed():
            body = {"inputs": [{"name": "image", "shape": [1, 1, 1, 3], "datatype": "UINT8", "data": [0, 0, 0]}]}
            asking = threading.Thread(target=lambda: answers.append(client.post("/v2/models/tiny/infer", json=body)))
            asking.start()
            until(lambda: len(predictor.seen) == seen + 1)
            assert httpx.post(f"{url}/v2/repository/models/tiny/unload").status_code == 200
            assert httpx.get(f"{url}/v2/models/tiny/ready").status_code == 404
        asking.join(30)
        assert answers[0].status_code == 200


@pytest.mark.parametrize("name", ["..", "%2e%2e", "..%2fmodels%2ftiny", "/etc", "tiny%2f1", "link"])
def test_no_name_leads_out_of_the_folder(server: tuple[str, Any], folder: Path, tmp_path: Path, name: str) -> None:
    url, _ = server
    tiny_bundle(tmp_path / "outside" / "1", name="link", classes=2)
    (folder / "link").symlink_to(tmp_path / "outside", target_is_directory=True)
    answer = httpx.post(f"{url}/v2/repository/models/{name}/load")
    assert answer.status_code in (404, 405)


def test_links_within_the_folder_are_followed(folder: Path, tmp_path: Path) -> None:
    """Kubernetes mounts volumes through such links, and atomic releases switch them."""
    tiny_bundle(folder / "..2024" / "mounted" / "3", name="mounted", classes=2, version="3")
    (folder / "..data").symlink_to("..2024")
    (folder / "mounted").symlink_to("..data/mounted")
    tiny_bundle(folder / ".releases" / "a", classes=6, version="11")
    (folder / "tiny" / "11").symlink_to("../.releases/a")
    (folder / "tiny" / "latest").symlink_to("11")
    (folder / "tiny" / "2" / "self").symlink_to("..")
    (folder / "round").symlink_to("round")
    tiny_bundle(tmp_path / "outside" / "1", name="outside", classes=2)
    (folder / "outside").symlink_to(tmp_path / "outside")
    (folder / "tiny" / "12").symlink_to(tmp_path / "outside" / "1")
    (tmp_path / "mount").symlink_to(folder)
    found = ModelFolders([tmp_path / "mount"]).models()
    assert {name: sorted(versions) for name, versions in found.items()} == {
        "mounted": ["3"],
        "plain": ["7"],
        "tiny": ["1", "10", "11", "2"],
    }
    with serving([tmp_path / "mount"], SETTINGS) as url:
        entries = httpx.get(f"{url}/v2/repository/index").json()
        assert {(e["name"], e["version"]) for e in entries if e["state"] == "READY"} == {
            ("mounted", "3"),
            ("plain", "7"),
            ("tiny", "11"),
        }
        answer = httpx.post(f"{url}/v2/repository/models/outside/load")
        assert answer.status_code == 404


def test_a_link_that_is_passed_over_is_told_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_bundle(folder / ".releases" / "a", classes=6, version="11")
    tiny_bundle(tmp_path / "outside" / "1", name="outside", classes=2)
    second_names = {
        "latest": "2",
        "pinned": str(folder / "tiny" / "1"),
        "3": "10/../2",
        "newest": "../.releases/a",
        "other": "latest",
    }
    others = {"11": "../.releases/a", "lost": "4", "round": "round", "out": str(tmp_path / "outside")}
    for name, target in (second_names | others).items():
        (folder / "tiny" / name).symlink_to(target)
    (folder / "tiny" / "notes").symlink_to("2/manifest.json")
    (folder / "prod").symlink_to("tiny")
    (folder / "plain" / "latest").symlink_to("golden")

    def told() -> dict[str, str]:
        lines = [record.getMessage() for record in records if "is passed over" in record.getMessage()]
        found = dict(line.split(" is passed over: ") for line in lines)
        assert len(found) == len(lines), "twice"
        records.clear()
        return {str(Path(link).relative_to(folder)): why for link, why in found.items()}

    with logged() as records, serving([folder], SETTINGS) as url:
        why = told()
        assert {link for link in why if "is another name of" in why[link]} == {
            "prod",
            *(f"tiny/{name}" for name in second_names),
        }
        assert "leads out of" in why.pop("tiny/out")
        assert all("leads nowhere" in why.pop(f"tiny/{name}") for name in ("lost", "round"))
        assert set(why) == {"prod", *(f"tiny/{name}" for name in second_names)}
        with triton.InferenceServerClient(url.removeprefix("http://")) as client:
            assert set(states(client)) == {("plain", "7"), *(("tiny", version) for version in ("1", "2", "10", "11"))}
            client.load_model("tiny", config=policy(all={}))
            assert np.array_equal(mask(client), of(6))
            assert told() == {}
            (folder / "tiny" / "latest").unlink()
            (folder / "tiny" / "latest").symlink_to("10")
            client.get_model_repository_index()
            client.get_model_repository_index()
            assert set(told()) == {"tiny/latest"}
    monkeypatch.chdir(tmp_path)
    assert set(ModelFolders([Path("models")]).models()["tiny"]) == {"1", "2", "10", "11"}, "an absolute link, too"


def test_a_folder_of_links_out_of_it_is_told_why_it_has_none(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "tiny").symlink_to(folder / "tiny")
    with pytest.raises(UsageError, match="links are followed only if they stay in it"):
        ModelFolders([tmp_path / "links"])


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[]",
        '{"name": "x"}',
        '{"version_policy": {"specific": {}}}',
        '{"version_policy": {"latest": 3}}',
        '{"version_policy": {"latest": {}, "specific": {"versions": [1]}}}',
        "[" * 9999,
    ],
)
def test_a_config_of_other_things_is_refused(server: tuple[str, Any], config: str) -> None:
    url, _ = server
    answer = httpx.post(f"{url}/v2/repository/models/tiny/load", json={"parameters": {"config": config}})
    assert (answer.status_code, answer.json()["reason"]) == (400, "parameter")
    unknown = {"parameters": {"config": policy(specific={"versions": [99]})}}
    answer = httpx.post(f"{url}/v2/repository/models/tiny/load", json=unknown)
    assert (answer.status_code, answer.json()["reason"]) == (404, "unknown_version")


def test_a_load_that_brings_files_or_wishes_of_other_names_is_refused(folder: Path) -> None:
    settings = SETTINGS.model_copy(update={"grpc_port": 0})
    app = create_app([folder], settings)
    with (
        serving(app, settings) as url,
        triton_grpc.InferenceServerClient(f"127.0.0.1:{app.state.grpc_server.port}") as client,
    ):
        for parameters in ({"config": "{}", "file:1/model.onnx": "AAAA"}, {"version": "1"}):
            answer = httpx.post(f"{url}/v2/repository/models/tiny/load", json={"parameters": parameters})
            assert (answer.status_code, answer.json()["reason"]) == (400, "parameter")
            assert "folder of models" in answer.json()["detail"]
        with pytest.raises(InferenceServerException, match="folder of models"):
            client.load_model("tiny", config="{}", files={"file:1/model.onnx": b"\0"})
        client.load_model("tiny", config=policy(specific={"versions": [2]}))
        assert client.is_model_ready("tiny", "2")
        assert not client.is_model_ready("tiny", "10")


def test_the_index_may_be_of_what_is_ready(server: tuple[str, Any]) -> None:
    url, _ = server
    ready = httpx.post(f"{url}/v2/repository/index", json={"ready": True}).json()
    assert [(entry["name"], entry["version"]) for entry in ready] == [("plain", "7"), ("tiny", "10")]
    assert httpx.post(f"{url}/v2/repository/index", content=b"{").status_code == 400


def test_the_index_reads_what_manifests_say_and_no_models(server: tuple[str, Any], folder: Path) -> None:
    _, client = server
    damage_model(folder / "plain")
    assert [version for name, version in states(client) if name == "plain"] == ["7"]


def test_a_second_model_of_a_name_is_refused_while_the_first_serves(folder: Path, tmp_path: Path) -> None:
    others = tmp_path / "others"
    tiny_bundle(others / "other" / "1", name="other", classes=2)
    with serving([folder, others], SETTINGS) as url, triton.InferenceServerClient(url[len("http://") :]) as client:
        tiny_bundle(others / "tiny" / "11", classes=6, version="11")
        with logged() as records:
            answer = httpx.post(f"{url}/v2/repository/models/tiny/load")
        assert (answer.status_code, answer.json()["reason"]) == (422, "bundle_refused")
        [logged_line] = [line for record in records if "is refused" in (line := record.getMessage())]
        for told in (answer.json()["detail"], logged_line):
            assert f"two models are named tiny, in {folder} and in {others};" in told
        assert np.array_equal(mask(client), of(5))
        assert {version for name, version in states(client) if name == "tiny"} == {"1", "2", "10"}
        shutil.rmtree(folder / "tiny")
        client.load_model("tiny")
        assert np.array_equal(mask(client), of(6))


def test_what_is_gone_from_its_folder_is_served_on_and_not_loaded(
    server: tuple[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, client = server
    verify = bundles.verify

    def verify_too_late(path: Path, **how: Any) -> Verification:
        shutil.rmtree(folder / "tiny" / "2")
        return verify(path, **how)

    with monkeypatch.context() as patched:
        patched.setattr(bundles, "verify", verify_too_late)
        asked = {"parameters": {"config": policy(specific={"versions": [2]})}}
        answer = httpx.post(f"{url}/v2/repository/models/tiny/load", json=asked)
        assert (answer.status_code, answer.json()["reason"]) == (404, "unknown_version")
    folder.rename(folder.with_name("away"))
    assert states(client) == {("plain", "7"): "READY", ("tiny", "10"): "READY"}
    assert httpx.post(f"{url}/v2/repository/models/tiny/load").status_code == 404
    assert np.array_equal(mask(client), of(5))


def test_a_folder_that_cannot_serve_is_refused_at_the_start(folder: Path, tmp_path: Path, bundle: Bundle) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="neither a bundle nor a folder of models"):
        create_app([tmp_path / "empty"])
    with pytest.raises(UsageError, match="two models are named tiny"):
        create_app([bundle.path, folder])
    shutil.copytree(folder, tmp_path / "copies")
    with pytest.raises(UsageError, match=f"two models are named plain, in {folder} and in {tmp_path / 'copies'};"):
        create_app([folder, tmp_path / "copies"])
    damage_model(folder / "tiny" / "10")
    damage_model(folder / "plain")
    with pytest.raises(BundleError) as caught:
        create_app([folder])
    assert "tiny/10" in str(caught.value)
    assert "plain" in str(caught.value)
