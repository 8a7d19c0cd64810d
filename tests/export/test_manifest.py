"""A manifest's digest covers all of it, and its geometry is what every reader of the bundle uses."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support.bundles import tiny_bundle

from export.images import Geometry
from export.manifest import Manifest, digest_of


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny", size=(48, 64)).manifest


def fields_of(manifest: Manifest) -> dict[str, Any]:
    return manifest.model_dump(mode="json", exclude={"digest"})


def test_a_sealed_manifest_carries_its_own_digest(manifest: Manifest) -> None:
    written = json.loads(manifest.model_dump_json())
    assert manifest.digest == digest_of(written) == digest_of(dict(reversed(written.items())))
    assert Manifest.model_validate(written) == manifest
    assert Manifest.sealed(**fields_of(manifest)) == manifest


@given(data=st.data())
def test_any_other_field_gives_another_digest(manifest: Manifest, data: st.DataObject) -> None:
    fields = fields_of(manifest)
    key = data.draw(st.sampled_from(sorted(fields)))
    assert digest_of({**fields, key: "something else"}) != manifest.digest
    del fields[key]
    assert digest_of(fields) != manifest.digest


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 2},
        {"name": "../elsewhere"},
        {"name": ""},
        {"size": [0, 64]},
        {"size_multiple": 0},
        {"channels": 0},
        {"channels": 65},
        {"precision": "int4"},
        {"instruction_set": "abacus"},
        {"files": {"model.onnx": "not a hash"}},
        {"colours": [[0, 0]]},
        {"unknown": 1},
    ],
    ids=str,
)
def test_fields_that_mean_nothing_are_refused(manifest: Manifest, change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(change))):
        Manifest.sealed(**{**fields_of(manifest), **change})


def test_its_geometry_resizes_and_pads(manifest: Manifest) -> None:
    assert manifest.geometry(100, 30) == Geometry(100, 30, 48, 64, 48, 64)
    whole = manifest.model_copy(update={"size": None})
    assert whole.geometry(100, 30) == Geometry(100, 30, 100, 30, 112, 32)


def test_a_manifest_cannot_be_changed_in_place(manifest: Manifest) -> None:
    with pytest.raises(ValidationError):
        manifest.name = "another"  # type: ignore[misc]


def test_a_bundle_writes_what_it_returns(tmp_path: Path) -> None:
    made = tiny_bundle(tmp_path / "b", version="7")
    assert Manifest.model_validate_json((tmp_path / "b" / "manifest.json").read_text()) == made.manifest
    assert made.manifest.version == "7"
    assert set(made.manifest.files) == {
        "model.onnx",
        "parity.json",
        "step.json",
        *(f"golden/ramp-{i}.{part}.png" for i in range(2) for part in ("image", "mask")),
    }
