"""classes.json: what is refused, with which remedy, and what a sound one means."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.data import VOID, ClassTable
from compress.data.classes import default_colours
from export.errors import DatasetError, UsageError

TWO = ["background", "disc"]

MALFORMED: list[tuple[Any, list[str]]] = [
    ([1, 2], ["holds a list; write an object"]),
    ({}, ['"classes": Field required; write a list of names']),
    ({"classes": "disc"}, ['"classes": ', "write a list of names"]),
    ({"classes": ["a", 3]}, ['"classes.1": ', "write a list of names"]),
    ({"classes": []}, ['"classes" names 0; name at least two']),
    ({"classes": ["disc"]}, ['"classes" names 1; name at least two, the background is one of them']),
    ({"classes": ["a", "b", "a"]}, ['"classes" repeats "a"; give each class a name of its own']),
    ({"classes": ["a", " "]}, ["empty name; give every class a name"]),
    ({"classes": ["a", "b", "void"]}, ['holds "void", which is no class; take it out']),
    ({"classes": [f"c{i}" for i in range(256)]}, ['"classes" names 256; at most 255']),
    ({"classes": TWO, "ignore_index": 1}, ['"ignore_index" 1 is also the number of class "disc"; use the number']),
    ({"classes": TWO, "ignore_index": -100}, ['"ignore_index": ', "write the number 0..255"]),
    ({"classes": TWO, "ignore_index": 256}, ['"ignore_index": ', "write the number 0..255"]),
    ({"classes": TWO, "ignore_index": "255"}, ['"ignore_index": ', "write the number 0..255"]),
    ({"classes": TWO, "ignore-index": 255}, ['unknown key "ignore-index"; write "ignore_index"']),
    ({"classes": TWO, "pallete": None}, ['unknown key "pallete"; write "palette"']),
    ({"classes": TWO, "palette": [[0, 0, 0], [1, 1, 1]]}, ['"palette": ', "write a colour for each class"]),
    ({"classes": TWO, "palette": {"background": [0, 0, 0]}}, ['no colour for "disc"; add one']),
    (
        {"classes": TWO, "palette": {"background": [0, 0, 0], "disc": [1, 1, 1], "disk": [2, 2, 2]}},
        ['"palette" colours "disk", not among the classes; use their names'],
    ),
    ({"classes": TWO, "palette": {"background": [0, 0, 0], "disc": [0, 0, 0]}}, ["[0, 0, 0]", "colour of its own"]),
    (
        {"classes": TWO, "palette": {"background": [0, 0], "disc": [0, 0, 256]}},
        ["palette.background", "palette.disc.2"],
    ),
    ({"classes": TWO, "values": {"0": "background"}}, ['"values" gives no number for "disc"; add one']),
    ({"classes": TWO, "values": {"0": "background", "1": "disk"}}, ['"values" gives "disk"', "use their names"]),
    ({"classes": TWO, "values": {"0": "background", "300": "disc"}}, ["[300]", "use numbers 0..255"]),
    ({"classes": TWO, "values": {"zero": "background", "1": "disc"}}, ["values.zero", "write a class for each number"]),
    (
        {"classes": TWO, "values": {"0": "background", "255": "disc"}, "ignore_index": 255},
        ['"ignore_index" 255 is class "disc" in "values"; let the number mean one of the two'],
    ),
    ({"classes": TWO, "group": "(unclosed"}, ["\"group\" '(unclosed' is not a regular expression", "write a regular"]),
]


def load(folder: Path, content: Any) -> ClassTable:
    (folder / "classes.json").write_text(json.dumps(content))
    return ClassTable.load(folder / "classes.json")


@pytest.mark.parametrize(("content", "expected"), MALFORMED)
def test_refused_with_a_remedy(tmp_path: Path, content: Any, expected: list[str]) -> None:
    with pytest.raises(DatasetError) as caught:
        load(tmp_path, content)
    assert isinstance(caught.value, UsageError)
    for fragment in ("classes.json", *expected):
        assert fragment in str(caught.value)


def test_every_fault_of_one_file_is_named(tmp_path: Path) -> None:
    content = {"classes": ["a", "a"], "ignore_index": 0, "palette": {"b": [0, 0, 0]}, "group": "["}
    with pytest.raises(DatasetError) as caught:
        load(tmp_path, content)
    assert len(caught.value.problems) == 5


def test_other_keys_and_a_byte_order_mark_do_no_harm(tmp_path: Path) -> None:
    text = json.dumps({"classes": TWO, "name": "Discs", "licence": "CC0"})
    (tmp_path / "classes.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert ClassTable.load(tmp_path / "classes.json").classes == ("background", "disc")


def test_numbers_of_masks(tmp_path: Path) -> None:
    assert load(tmp_path, {"classes": TWO, "ignore_index": 11}).numbers() == {0: 0, 1: 1, 11: VOID}
    declared = {"0": "background", "128": "void", "129": "background", "255": "disc"}
    assert load(tmp_path, {"classes": TWO, "values": declared}).numbers() == {0: 0, 128: VOID, 129: 0, 255: 1}


def test_kin_is_the_first_group_or_the_whole_match(tmp_path: Path) -> None:
    assert load(tmp_path, {"classes": TWO}).kin("p7_3") == "p7_3"
    assert load(tmp_path, {"classes": TWO, "group": r"^(p\d+)_"}).kin("p7_3") == "p7"
    assert load(tmp_path, {"classes": TWO, "group": r"^p\d+"}).kin("p7_3") == "p7"
    assert load(tmp_path, {"classes": TWO, "group": r"^q"}).kin("p7_3") is None


def test_declared_colours_are_kept_in_the_order_of_the_classes(tmp_path: Path) -> None:
    palette = {"disc": [255, 0, 0], "void": [9, 9, 9], "background": [0, 0, 0]}
    assert load(tmp_path, {"classes": TWO, "palette": palette}).colours() == ((0, 0, 0), (255, 0, 0))


@given(st.integers(2, 255))
def test_default_colours_differ(count: int) -> None:
    colours = default_colours(count)
    assert len(set(colours)) == count
    assert all(0 <= channel <= 255 for colour in colours for channel in colour)
