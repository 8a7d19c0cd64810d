"""A damaged or forged bundle is refused, and the refusal names everything that is wrong with it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.bundles import tiny_bundle, tiny_graph

from export.bundle import load, verify
from export.errors import BundleError
from export.images import decode_indices, encode_mask
from export.manifest import digest_of

FILES = (
    "golden/ramp-0.image.png",
    "golden/ramp-0.mask.png",
    "golden/ramp-1.image.png",
    "golden/ramp-1.mask.png",
    "manifest.json",
    "model.onnx",
    "parity.json",
    "step.json",
)
BOTH = pytest.mark.parametrize("check", [load, verify], ids=["load", "verify"])
Check = Callable[[Path], object]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "sound"
    tiny_bundle(path)
    found = sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())
    assert found == sorted(FILES)
    return path


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "copy"))


def problems_of(check: Check, path: Path) -> list[str]:
    with pytest.raises(BundleError) as caught:
        check(path)
    assert caught.value.exit_status == 2
    assert caught.value.where == path
    assert len(caught.value.problems) == len(set(caught.value.problems)) > 0
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return caught.value.problems


def rewrite(path: Path, *, sealed: bool = True, **fields: Any) -> None:
    """Change manifest.json; `sealed` gives it a digest that fits."""
    manifest = {**json.loads((path / "manifest.json").read_text()), **fields}
    if sealed and "digest" not in fields:
        manifest["digest"] = digest_of(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def reseal(path: Path, *names: str, **fields: Any) -> None:
    """Put the hashes of changed files into the manifest, as a forger would."""
    from export.files import sha256_file

    files = json.loads((path / "manifest.json").read_text())["files"]
    rewrite(path, files={**files, **{name: sha256_file(path / name) for name in names}}, **fields)


@BOTH
@pytest.mark.parametrize("where", [0.0, 0.5, 1.0], ids=["first", "middle", "last"])
@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_in_any_file(copy: Path, name: str, where: float, check: Check) -> None:
    content = bytearray((copy / name).read_bytes())
    content[round(where * (len(content) - 1))] ^= 0x55
    (copy / name).write_bytes(content)
    assert any(problem.startswith(name) for problem in problems_of(check, copy))


@BOTH
@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(copy: Path, name: str, check: Check) -> None:
    (copy / name).unlink()
    assert any(problem.startswith(f"{name} is missing") for problem in problems_of(check, copy))


@BOTH
@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short(copy: Path, name: str, check: Check) -> None:
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: len(content) // 2])
    assert any(problem.startswith(name) for problem in problems_of(check, copy))


@BOTH
def test_a_file_that_does_not_belong(copy: Path, check: Check) -> None:
    (copy / "golden" / "more.png").touch()
    (copy / "notes.txt").write_text("remember the milk")
    assert problems_of(check, copy) == [
        "golden/more.png is not in the manifest",
        "notes.txt is not in the manifest",
    ]


def flipped_bits() -> st.SearchStrategy[tuple[float, int]]:
    return st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(flipped_bits())
def test_any_flipped_bit_of_the_manifest_is_seen(copy: Path, sound: Path, flip: tuple[float, int]) -> None:
    content = bytearray((sound / "manifest.json").read_bytes())
    content[int(flip[0] * len(content))] ^= 1 << flip[1]
    (copy / "manifest.json").write_bytes(content)
    problems_of(load, copy)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(flipped_bits())
def test_any_flipped_bit_of_the_model_is_seen_though_it_may_not_run(
    copy: Path, sound: Path, flip: tuple[float, int]
) -> None:
    content = bytearray((sound / "model.onnx").read_bytes())
    content[int(flip[0] * len(content))] ^= 1 << flip[1]
    (copy / "model.onnx").write_bytes(content)
    assert problems_of(verify, copy)[0].startswith("model.onnx does not match its hash")


NOT_A_MANIFEST: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is not JSON"),
    "text": (b"name: tiny", "is not JSON"),
    "cut": (b'{"schema_version": 1,', "is not JSON"),
    "binary": (bytes(range(256)), "is not JSON"),
    "nested": (b"[" * 100_000, "is not JSON"),
    "list": (b"[]", "is not a JSON object"),
    "number": (b"1", "is not a JSON object"),
    "null": (b"null", "is not a JSON object"),
    "an empty object": (b"{}", "schema_version is None"),
    "NaN": (b'{"schema_version": 1, "digest": NaN}', "name: Field required"),
}


@BOTH
@pytest.mark.parametrize("what", NOT_A_MANIFEST)
def test_a_manifest_that_is_none(copy: Path, what: str, check: Check) -> None:
    content, expected = NOT_A_MANIFEST[what]
    (copy / "manifest.json").write_bytes(content)
    assert any(expected in problem for problem in problems_of(check, copy))


@BOTH
def test_a_manifest_that_is_a_folder(copy: Path, check: Check) -> None:
    (copy / "manifest.json").unlink()
    (copy / "manifest.json").mkdir()
    assert any("manifest.json is not JSON" in problem for problem in problems_of(check, copy))


EDITS: dict[str, tuple[dict[str, Any], str]] = {
    "a newer schema": ({"schema_version": 2}, "schema_version is 2, this segpress reads 1"),
    "a schema in words": ({"schema_version": "1"}, "schema_version is '1'"),
    "another name": ({"name": "../../etc"}, "name: "),
    "an unknown field": ({"licence": "mine"}, "licence: "),
    "other classes": ({"classes": "abc"}, "classes: "),
    "no hash": ({"files": {"model.onnx": "abc"}}, "files.model.onnx: "),
    "no files": ({"files": {}}, "model.onnx is not among its files"),
    "no multiple": ({"size_multiple": 0}, "size_multiple: "),
    "no size": ({"size": [0, 0]}, "size.0: "),
    "NaN": ({"macs": float("nan")}, "macs: "),
    "half a character": ({"version": "\ud800"}, "its digest does not match"),
    "another digest": ({"digest": "0" * 64}, "its digest does not match"),
}


@BOTH
@pytest.mark.parametrize("what", EDITS)
def test_an_edited_manifest(copy: Path, what: str, check: Check) -> None:
    change, expected = EDITS[what]
    rewrite(copy, sealed=False, **change)
    problems = problems_of(check, copy)
    assert any(expected in problem for problem in problems)
    assert any("its digest does not match" in problem for problem in problems)


FORGED: dict[str, tuple[dict[str, Any], str]] = {
    "channels": ({"channels": 1}, "golden example ramp-0: the graph takes"),
    "a multiple that the graph does not take": ({"size_multiple": 7}, "golden example ramp-0: the graph takes"),
    "a multiple beyond memory": ({"size_multiple": 10**9}, "golden example ramp-0: "),
    "a size": ({"size": [16, 16]}, "of its pixels differ"),
    "a golden name": ({"golden": {"names": ["../../elsewhere"]}}, "golden example ../../elsewhere: "),
    "an input": ({"inputs": [{"name": "x", "dtype": "uint8", "shape": [1]}]}, "its inputs are"),
    "an output": ({"outputs": []}, "its outputs are"),
}


@pytest.mark.parametrize("what", FORGED)
def test_what_a_forged_manifest_claims_is_held_against_the_graph(copy: Path, what: str) -> None:
    change, expected = FORGED[what]
    rewrite(copy, **change)
    load(copy)
    assert any(expected in problem for problem in problems_of(verify, copy))


def test_golden_answers_that_differ(copy: Path) -> None:
    path = copy / "golden" / "ramp-0.mask.png"
    mask = decode_indices(path)
    changed = mask.copy()
    changed[0, 0] = (mask[0, 0] + 1) % 3
    path.write_bytes(encode_mask(changed))
    reseal(copy, "golden/ramp-0.mask.png")
    # 24x40 pixels: a single one is 0.104 %, above the 0.1 % that may differ here.
    assert problems_of(verify, copy) == [
        "golden example ramp-0: 0.10% of its pixels differ, at most 0.10% may; "
        "this runtime (CPUExecutionProvider) does not give the answers that were proven"
    ]
    path.write_bytes(encode_mask(np.zeros((5, 5), np.uint8)))
    reseal(copy, "golden/ramp-0.mask.png")
    assert "100.00% of its pixels differ" in problems_of(verify, copy)[0]


def test_another_graph_under_a_forged_hash(copy: Path) -> None:
    onnx.save(tiny_graph(classes=3, channels=1, size_multiple=16), copy / "model.onnx")
    reseal(copy, "model.onnx")
    problems = problems_of(verify, copy)
    assert "image: uint8 ['batch', 'height', 'width', 1]" in problems[0]
    assert [problem.split(":")[0] for problem in problems[1:]] == ["golden example ramp-0", "golden example ramp-1"]


def test_everything_wrong_at_once(copy: Path) -> None:
    other = onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.UINT8, ["n", "height", "width"])
    graph = tiny_graph(classes=3, channels=3, size_multiple=16)
    graph.graph.output[0].CopyFrom(other)
    onnx.save(graph, copy / "model.onnx")
    (copy / "golden" / "ramp-0.mask.png").write_bytes(encode_mask(np.full((24, 40), 2, np.uint8)))
    (copy / "golden" / "ramp-1.image.png").write_bytes(b"not a picture")
    (copy / "parity.json").unlink()
    (copy / "notes.txt").touch()
    rewrite(copy, sealed=False, version="forged")

    beginnings = [
        "manifest.json: its digest does not match",
        "parity.json is missing",
        "notes.txt is not in the manifest",
        "golden/ramp-0.mask.png does not match its hash",
        "golden/ramp-1.image.png does not match its hash",
        "model.onnx does not match its hash",
        "model.onnx: its outputs are [\"mask: uint8 ['n', 'height', 'width']\"], the manifest says",
        "golden example ramp-0: ",
        "golden example ramp-1: ",
    ]
    problems = problems_of(verify, copy)
    assert len(problems) == len(beginnings)
    assert all(problem.startswith(start) for problem, start in zip(problems, beginnings, strict=True))
    # `load`, which does not run the model, finds all but the last three.
    assert problems_of(load, copy) == problems[:-3]


def test_a_schema_that_cannot_be_read_is_told_with_all_its_fields(copy: Path) -> None:
    rewrite(copy, sealed=False, schema_version=3, name="", channels=0)
    problems = problems_of(verify, copy)
    assert [problem.split(":")[1].split()[0] for problem in problems] == [
        "schema_version",
        "its",
        "schema_version",
        "name",
        "channels",
    ]


@BOTH
def test_what_is_no_folder(tmp_path: Path, sound: Path, check: Check) -> None:
    assert problems_of(check, tmp_path / "nowhere") == ["no such folder"]
    [problem] = problems_of(check, sound / "model.onnx")
    assert problem.startswith("a file; a bundle is the folder with model.onnx and manifest.json")
    (tmp_path / "empty").mkdir()
    assert "manifest.json is missing; a bundle comes from" in problems_of(check, tmp_path / "empty")[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(copy: Path) -> None:
    (copy / "manifest.json").chmod(0)
    assert "Permission denied" in problems_of(load, copy)[0]
