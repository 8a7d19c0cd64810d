"""Linear forms, the grid of widths, and interpolation between measured widths."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.errors import ShapeError, UsageError
from export.latency.grid import grid, keys_needed
from export.latency.kinds import LayerKey, LayerKind
from export.latency.layers import Layer
from export.latency.linear import Linear
from export.latency.surface import Surface

GROUPS = ("a", "b", "c")
FORMS = st.builds(
    lambda constant, terms: sum((Linear.of(*term) for term in terms), Linear(constant)),
    st.integers(0, 50),
    st.lists(st.tuples(st.sampled_from(GROUPS), st.integers(1, 4)), max_size=5),
)
WIDTHS = st.fixed_dictionaries({group: st.integers(1, 512) for group in GROUPS})


@given(FORMS, FORMS, WIDTHS)
def test_forms_add_as_their_values_do(one: Linear, other: Linear, widths: dict[str, int]) -> None:
    assert (one + other).at(widths) == one.at(widths) + other.at(widths)
    assert one + other == other + one


@given(FORMS, st.integers(1, 4), WIDTHS)
def test_a_form_is_divided_only_where_that_is_whole_at_every_width(
    form: Linear, divisor: int, widths: dict[str, int]
) -> None:
    times = sum((form for _ in range(divisor)), Linear())
    assert times.divided(divisor) == form
    part = form.divided(divisor)
    if part is not None:
        assert part.at(widths) * divisor == form.at(widths)


def test_a_group_without_a_width_is_named() -> None:
    with pytest.raises(UsageError, match="group b"):
        (Linear.of("a") + Linear.of("b")).at({"a": 1})


def test_the_grid_has_two_steps_in_each_octave_and_both_ends() -> None:
    assert grid(512) == (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
    assert grid(100) == (16, 32, 48, 64, 96, 100)
    assert grid(12) == (12,)
    assert grid(112, least=40) == (40, 48, 64, 96, 112)


@given(st.integers(1, 2000), st.integers(1, 2000))
def test_a_grid_rises_from_the_least_to_the_full_width(full: int, least: int) -> None:
    widths = grid(full, least=least)
    assert list(widths) == sorted(set(widths))
    assert (widths[0], widths[-1]) == (min(least, full), full)
    assert all(width % 16 == 0 for width in widths[1:-1])


def layer(op: str, into: Linear, out: Linear) -> Layer:
    return Layer(op, LayerKind(op, (8, 8), (8, 8)), into, out)


def test_layers_whose_channels_onnx_does_not_know_are_said() -> None:
    with pytest.raises(ShapeError, match="does not infer how many channels"):
        keys_needed([layer("Conv", Linear(0), Linear(16))], {})


def test_the_keys_are_a_grid_over_both_widths_of_what_mixes_and_a_line_for_the_rest() -> None:
    joined = Linear.of("a") + Linear.of("b")
    layers = [layer("Conv", joined, Linear.of("a")), layer("Concat", joined, joined), layer("Conv", Linear(3), joined)]
    keys = keys_needed(layers, {"a": [16, 32], "b": [16, 32, 48]})
    conv, concat = layers[0].kind, layers[1].kind
    wide, narrow = (32, 48, 64, 80), (16, 32)
    assert set(keys) == {
        *(LayerKey(conv, *pair) for pair in product(wide, narrow)),
        *(LayerKey(concat, width, width) for width in wide),
        *(LayerKey(conv, 3, width) for width in wide),
    }
    assert len(keys) == len(set(keys))


@st.composite
def rising_surfaces(draw: st.DrawFn) -> dict[tuple[int, int], float]:
    """Values that never fall with either width."""
    xs = draw(st.lists(st.integers(1, 300), min_size=1, max_size=5, unique=True).map(sorted))
    ys = draw(st.lists(st.integers(1, 300), min_size=1, max_size=5, unique=True).map(sorted))
    steps = {pair: draw(st.floats(0, 10)) for pair in product(range(len(xs)), range(len(ys)))}
    return {
        (xs[i], ys[j]): sum(step for (k, m), step in steps.items() if k <= i and m <= j)
        for i, j in product(range(len(xs)), range(len(ys)))
    }


@given(rising_surfaces(), st.data())
def test_between_measured_widths_nothing_falls_or_overshoots(
    values: dict[tuple[int, int], float], data: st.DataObject
) -> None:
    surface = Surface(values)
    for (x, y), value in values.items():
        assert surface.at(x, y) == value
    xs, ys = sorted({x for x, _ in values}), sorted({y for _, y in values})
    x, y = data.draw(st.integers(xs[0], xs[-1])), data.draw(st.integers(ys[0], ys[-1]))
    right, up = data.draw(st.integers(x, xs[-1])), data.draw(st.integers(y, ys[-1]))
    here, there = surface.at(x, y), surface.at(right, up)
    assert here is not None
    assert there is not None
    assert min(values.values()) - 1e-9 <= here <= there + 1e-9 <= max(values.values()) + 2e-9


@given(st.integers(16, 64), st.integers(16, 64))
def test_what_is_bilinear_is_met_exactly_in_whatever_order_it_is_asked(x: int, y: int) -> None:
    def cost(x: int, y: int) -> float:
        return 3 + 0.5 * x + 0.25 * y + 0.125 * x * y

    surface = Surface({pair: cost(*pair) for pair in product((16, 32, 64), (16, 48, 64))})
    assert surface.at(40, 40) == pytest.approx(cost(40, 40))
    assert surface.at(x, y) == pytest.approx(cost(x, y))


def test_outside_and_in_holes_there_is_no_answer() -> None:
    surface = Surface({(16, 16): 1.0, (32, 16): 2.0, (16, 32): 3.0, (64, 64): 9.0})
    assert surface.at(24, 16) == 1.5
    assert surface.at(16, 24) == 2.0
    assert surface.at(24, 24) is None
    assert surface.at(8, 16) is None
    assert surface.at(65, 64) is None
