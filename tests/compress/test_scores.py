"""Scores as data: what each width loses, the plan for given widths, and which channels are compared with which."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.prune.scores import Scores
from compress.settings.prune import Scope

SEEDS = st.integers(0, 2**16)
WIDTHS = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 70), min_size=1)


def drawn(widths: dict[str, int], seed: int, **how: object) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    raw = {name: torch.rand(width, generator=generator) * (1 + len(name)) for name, width in widths.items()}
    return Scores(raw, **how)  # type: ignore[arg-type]


@settings(max_examples=50)
@given(WIDTHS, SEEDS, st.booleans())
def test_what_is_lost_is_the_sum_of_what_a_plan_removes(widths: dict[str, int], seed: int, comparable: bool) -> None:
    scores = drawn(widths, seed, comparable=comparable)
    for name, width in widths.items():
        lost = [scores.lost(name, kept) for kept in range(width + 1)]
        assert lost[width] == 0
        assert lost[0] == pytest.approx(float(scores.by_group[name].sum()), rel=1e-5)
        # A narrower group never loses less, and each further channel loses at least as much as the one before.
        prices = [narrow - wide for narrow, wide in pairwise(lost)]
        assert all(price >= 0 for price in prices)
        assert all(later <= earlier + 1e-9 for earlier, later in pairwise(prices))
        kept = max(1, width // 2)
        (cut,) = (cut for cut in scores.plan_of({name: kept}).cuts if cut.layer == name)
        assert cut.kept == kept
        removed = scores.by_group[name][list(cut.remove)].double().sum()
        assert scores.lost(name, kept) == pytest.approx(float(removed))


@settings(max_examples=50)
@given(WIDTHS, SEEDS, st.booleans())
def test_damage_begins_as_the_importance_and_rises_ever_faster(
    widths: dict[str, int], seed: int, comparable: bool
) -> None:
    scores = drawn(widths, seed, comparable=comparable)
    wholes = {name: scores.lost(name, 0) for name in widths}
    unit = sum(wholes.values()) / len(wholes)
    for name, width in widths.items():
        damage = [scores.damage(name, kept) for kept in range(width + 1)]
        assert damage[width] == 0
        assert all(narrow >= wide for narrow, wide in pairwise(damage))
        weight = wholes[name] / unit if comparable else 1.0
        assert damage[0] == pytest.approx(weight * math.log(1 + width), rel=1e-4)
        # A small cut in a wide group does damage in proportion to its share of the importance.
        share = scores.lost(name, width - 1) / wholes[name]
        assert damage[width - 1] == pytest.approx(weight * share * width / (width + 1), rel=0.6 / width)


def test_layers_that_are_as_wide_as_they_are_important_are_narrowed_alike() -> None:
    """Where one layer can spare nothing, a layer with plenty of unimportant channels gives up most of them."""
    scores = Scores({"few": torch.ones(4), "many": torch.ones(64)})
    assert scores.damage("few", 2) == pytest.approx(scores.damage("many", 38), rel=0.02)
    unequal = Scores({"even": torch.ones(8), "uneven": torch.tensor([10.0, 10.0] + [0.1] * 6)})
    assert unequal.damage("uneven", 2) < 0.1 * unequal.damage("even", 2)


def test_groups_without_a_width_stay_whole() -> None:
    scores = Scores({"a": torch.tensor([3.0, 1.0, 2.0]), "b": torch.tensor([1.0, 1.0])})
    plan = scores.plan_of({"a": 1})
    assert plan.widths() == {"a": (3, 1), "b": (2, 2)}
    assert plan.cuts[0].remove == (1, 2)


def test_widths_and_groups_that_are_not_there_are_refused() -> None:
    scores = Scores({"a": torch.ones(3)})
    with pytest.raises(KeyError, match="no such group: b"):
        scores.plan_of({"b": 1})
    for kept in (-1, 4):
        with pytest.raises(ValueError, match=f"a has 3 channels; {kept} cannot be kept"):
            scores.plan_of({"a": kept})
        with pytest.raises(ValueError, match=f"a has 3 channels; {kept} cannot be kept"):
            scores.lost("a", kept)
    assert scores.plan_of({"a": 0}).cuts[0].remove == (0, 1, 2)


def test_normalised_scores_have_mean_one_and_nothing_stays_nothing() -> None:
    scores = Scores({"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([200.0, 600.0]), "c": torch.zeros(4)})
    assert scores.normalised["a"].tolist() == scores.normalised["b"].tolist() == [0.5, 1.5]
    assert scores.normalised["c"].tolist() == [0.0] * 4
    assert scores.lost("c", 1) == 0


def test_what_is_comparable_is_compared_as_it_is() -> None:
    raw = {"weak": torch.linspace(0.1, 1, 10), "strong": torch.linspace(2, 20, 10)}
    assert Scores(raw, comparable=True).plan(0.5, 1).widths() == {"weak": (10, 1), "strong": (10, 10)}
    assert Scores(raw).plan(0.5, 1).widths() == {"weak": (10, 5), "strong": (10, 5)}


@settings(max_examples=50)
@given(WIDTHS, SEEDS, st.floats(0, 1), st.sampled_from([1, 4, 16]), st.booleans())
def test_local_scope_cuts_the_same_share_of_every_group(
    widths: dict[str, int], seed: int, ratio: float, multiple: int, comparable: bool
) -> None:
    plan = drawn(widths, seed, scope="local", comparable=comparable).plan(ratio, multiple)
    for name, (before, after) in plan.widths().items():
        assert after == before or (after % multiple == 0 and after >= multiple)
        assert abs(after - (1 - ratio) * before) <= multiple / 2 or after == min(multiple, before)
        assert before == widths[name]
    equal = {after for before, after in plan.widths().values() if before == max(widths.values())}
    assert len(equal) == 1


def test_global_scope_takes_where_least_is_worth() -> None:
    raw = {"even": torch.linspace(0.9, 1.1, 20), "uneven": torch.cat([torch.full((15,), 0.01), torch.ones(5)])}
    assert Scores(raw, scope="local").plan(0.25, 1).widths() == {"even": (20, 15), "uneven": (20, 15)}
    assert Scores(raw).plan(0.25, 1).widths()["even"] == (20, 20)


@pytest.mark.parametrize("scope", ["global", "local"])
def test_next_to_nothing_asked_for_takes_nothing(scope: Scope) -> None:
    """Rounding alone narrows no group, whatever its width."""
    raw = {name: torch.rand(width) + 0.5 for name, width in {"a": 20, "b": 40, "c": 56, "d": 9}.items()}
    assert Scores(raw, scope=scope).plan(0.001, 16).removed == 0


def test_of_channels_that_are_worth_the_same_no_more_go_than_were_asked_for() -> None:
    """BatchNorm scales are all equal at first, and so are dead channels scored by activation."""
    scores = Scores({"a": torch.ones(40), "b": torch.ones(60)})
    assert scores.plan(0.3, 1).removed == pytest.approx(0.3)
    half_dead = Scores({"a": torch.tensor([0.0] * 20 + [1.0] * 20)}, comparable=True)
    assert half_dead.plan(0.25, 1).widths() == {"a": (40, 30)}
