"""Files that are whole or absent, reproducible hashes, and messages about missing extras."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.errors import BudgetMissedError, BundleError, MissingExtraError, SegpressError, UsageError, require
from export.files import relative_files, sha256_file, sha256_json, write_atomic, write_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=4), st.randoms())
def test_the_hash_of_json_does_not_depend_on_the_order_of_keys_or_on_spelling(value: dict[str, Any], rng: Any) -> None:
    keys = list(value)
    rng.shuffle(keys)
    shuffled = {key: value[key] for key in keys}
    assert sha256_json(shuffled) == sha256_json(value)
    assert sha256_json(json.loads(json.dumps(value, indent=3))) == sha256_json(value)
    assert sha256_json({**value, "another key": 1}) != sha256_json(value)


def test_known_hashes(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_file(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_json({"b": [1, 2.5], "ä": None}) == hashlib.sha256('{"b":[1,2.5],"ä":null}'.encode()).hexdigest()


def test_what_json_cannot_hold_is_not_written(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("old")
    (tmp_path / ".note.txt.partial").write_text("what a killed run left, longer than the new text")
    with path.open() as reader:
        write_atomic(path, "new é")
        # A reader that had it open still reads the old content.
        assert reader.read() == "old"
    assert path.read_text(encoding="utf-8") == "new é"
    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]


def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError("no space left")

    path = tmp_path / "note.txt"
    path.write_text("old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"


def test_hidden_files_are_scratch(tmp_path: Path) -> None:
    for name in ("b", "a/c", "a/.hidden", ".scratch/d", ".e"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert relative_files(tmp_path) == ["a/c", "b"]


def test_every_problem_stands_in_the_message() -> None:
    error = BundleError(Path("runs/a"), ["one thing", "another"])
    assert str(error) == "bundle runs/a: 2 problems\n  - one thing\n  - another"
    assert str(BundleError("x", ["one"])).startswith("bundle x: 1 problem\n")
    assert error.problems == ["one thing", "another"]


def test_statuses_follow_from_the_tree() -> None:
    assert isinstance(BundleError("x", []), UsageError)
    assert BundleError("x", []).exit_status == 2
    assert BudgetMissedError("x").exit_status == 1
    assert issubclass(UsageError, SegpressError)


def test_a_missing_library_names_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert require("json", extra="train", purpose="reading") is json
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"compress train needs torch.*pip install 'segpress\[train\]'"):
        require("torch", extra="train", purpose="compress train")
