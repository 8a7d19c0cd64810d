"""A table answers for what it covers, and says what to do about everything else."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from support.latency import conv

from export.errors import UsageError
from export.latency.kinds import LayerKey, LayerKind
from export.latency.layers import Layer
from export.latency.linear import Linear
from export.latency.table import Entry, LatencyTable, Point
from export.machine import Machine
from export.manifest import Precision

A, B = Linear.of("a"), Linear.of("b")
KIND = conv(1, 1).kind
POOL = LayerKind("MaxPool", (8, 8), (4, 4), kernel=(2, 2), strides=(2, 2))
LAYERS = (Layer("first", KIND, Linear(3), A), Layer("pool", POOL, A, A), Layer("second", KIND, A, B))
CHOICES = {"a": [16, 32], "b": [16, 32, 48]}


def point(into: int, out: int, ratio: float) -> Point:
    return Point(channels_in=into, channels_out=out, microseconds=500 * ratio, reference_microseconds=500)


def a_table(precision: Precision = "fp32", **fields: Any) -> LatencyTable:
    """Convolutions take (in x out) / 1000 of the reference, pools width / 100; the reference takes 0.5 ms."""
    convolutions = [point(x, y, x * y / 1000) for x in (3, 16, 32) for y in (16, 32, 48)]
    pools = [point(x, x, x / 100) for x in (16, 32)]
    given: dict[str, Any] = {
        "machine": Machine.here(),
        "onnxruntime": "1.32.0",
        "precision": precision,
        "threads": 1,
        "sizes": ((8, 8),),
        "entries": (Entry(kind=KIND, points=tuple(convolutions)), Entry(kind=POOL, points=tuple(pools))),
    }
    return LatencyTable(**{**given, **fields})


def test_ratios_are_exact_on_the_grid_and_lie_between_elsewhere() -> None:
    table = a_table()
    assert table.ratio(LayerKey(KIND, 16, 32)) == 16 * 32 / 1000
    assert table.ratio(LayerKey(KIND, 24, 40)) == pytest.approx(24 * 40 / 1000)
    assert table.ratio(LayerKey(POOL, 20, 20)) == pytest.approx(0.2)
    assert LayerKey(KIND, 16, 32) in table
    assert LayerKey(KIND, 24, 40) not in table
    assert len(table) == 11


def test_a_prediction_is_the_sum_over_the_layers() -> None:
    table = a_table()
    widths = {"a": 24, "b": 48}
    ratio = 3 * 24 / 1000 + 0.24 + 24 * 48 / 1000
    assert table.reference_ms == 0.5
    assert table.predict(LAYERS, widths) == pytest.approx(0.5 * ratio)
    assert table.predict(LAYERS, widths, reference_ms=2.0) == pytest.approx(2 * ratio)


def test_what_takes_no_time_needs_no_measurement() -> None:
    table = a_table("int8")
    for op in ("Door", "ToPlain", "ToBlocked", "Relu", "Clip", "Other"):
        assert table.ratio(LayerKey(LayerKind(op, (9, 9), (9, 9)), 7, 7)) == 0
    with pytest.raises(UsageError, match="does not cover ToPlain at 9x9"):
        a_table().ratio(LayerKey(LayerKind("ToPlain", (9, 9), (9, 9)), 7, 7))


def test_a_layer_that_is_not_covered_is_named() -> None:
    with pytest.raises(UsageError, match=r"the layer second: Conv 1x1 at 8x8, 32 -> 64 channels; measure it again: "):
        a_table().predict(LAYERS, {"a": 32, "b": 64})
    with pytest.raises(UsageError, match="group b"):
        a_table().predict(LAYERS, {"a": 32})


def test_a_table_is_taken_where_it_can_predict_every_choice_and_not_beyond() -> None:
    table = a_table()
    table.require(LAYERS, CHOICES, precision="fp32", size=(8, 8))
    for a, b in product(CHOICES["a"], CHOICES["b"]):
        assert table.predict(LAYERS, {"a": a, "b": b}) > 0
    for group, beyond in (("a", 33), ("b", 49)):
        widths = {"a": 32, "b": 48, group: beyond}
        with pytest.raises(UsageError, match="the table does not cover the layer"):
            table.predict(LAYERS, widths)
        with pytest.raises(UsageError, match=r"the table does not cover \d layers"):
            table.require(LAYERS, {**CHOICES, group: [beyond]}, precision="fp32", size=(8, 8))


@pytest.mark.parametrize(
    ("layers", "precision", "size", "says"),
    [
        (LAYERS, "int8", (8, 8), "t.json was measured in fp32 and int8 is asked for"),
        (LAYERS, "fp32", (8, 16), "t.json was measured at 8x8, not at 8x16"),
        ((*LAYERS, Layer("third", KIND, B, A)), "fp32", (8, 8), "t.json does not cover 2 layers"),
    ],
    ids=["precision", "size", "network"],
)
def test_a_table_for_something_else_is_refused_with_what_to_do(
    layers: tuple[Layer, ...], precision: Precision, size: tuple[int, int], says: str
) -> None:
    with pytest.raises(UsageError) as caught:
        a_table().require(layers, CHOICES, precision=precision, size=size, source=Path("t.json"))
    assert says in str(caught.value)
    again = f"compress bench table BUNDLE --size {size[0]}x{size[1]} --precision {precision} --out FILE"
    assert again in str(caught.value)


def test_a_table_is_the_same_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(a_table().model_dump_json())
    assert LatencyTable.load(path) == a_table()


def test_merging_keeps_both_and_lets_the_newer_win() -> None:
    table = a_table().merged([(KIND, point(16, 32, 7.0)), (KIND, point(64, 64, 1.0))], [(4, 4)])
    assert table.ratio(LayerKey(KIND, 16, 32)) == 7
    assert table.ratio(LayerKey(KIND, 64, 64)) == 1
    assert table.ratio(LayerKey(KIND, 32, 32)) == 32 * 32 / 1000
    assert table.sizes == ((4, 4), (8, 8))
    assert len(table) == 12


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], str], str]] = {
    "cut short": (lambda content: json.dumps(content)[:200], "is not JSON"),
    "a list": (lambda _: "[]", "schema_version is None"),
    "a later version": (lambda content: json.dumps({**content, "schema_version": 2}), "schema_version is 2"),
    "a precision that is none": (lambda content: json.dumps({**content, "precision": "fp8"}), "precision"),
    "a field too many": (lambda content: json.dumps({**content, "colour": "red"}), "colour"),
    "a negative time": (
        lambda content: json.dumps(content).replace('"reference_microseconds": 500.0', '"reference_microseconds": -1'),
        "entries.0.points.0.reference_microseconds",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "table.json"
    write, says = DAMAGE[damage]
    path.write_text(write(json.loads(a_table().model_dump_json())))
    with pytest.raises(UsageError) as caught:
        LatencyTable.load(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "compress bench table" in str(caught.value)


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"table.json: no such table; measure it again: .* --size HxW --out FILE"):
        LatencyTable.load(tmp_path / "table.json")
    with pytest.raises(UsageError, match="cannot be read"):
        LatencyTable.load(tmp_path)
