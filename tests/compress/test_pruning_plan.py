"""A plan is data, and applying it gives the dense network without the channels that it names."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints import write_checkpoint
from support.networks import Mobile, random_network, random_unet, randomised
from support.pruning import logits, masked
from torch import nn

from compress import checkpoint
from compress.models.plan import Dependencies, GroupCut, PruningPlan
from compress.prune.importance import scores_of
from compress.prune.scores import Scores
from compress.prune.search import ByRatio
from export.errors import UsageError

SHARED: dict[str, st.SearchStrategy[Any]] = {
    "upsampling": st.sampled_from(["nearest", "bilinear", "transposed"]),
    "base": st.sampled_from([4, 8]),
    "depth": st.integers(1, 4),
    "channels": st.sampled_from([1, 3]),
    "block": st.sampled_from(["plain", "residual"]),
    "squeeze_excite": st.booleans(),
    "bottleneck_attention": st.booleans(),
}
ARCHITECTURES = st.one_of(
    st.fixed_dictionaries({"factory": st.just("unet"), "skip": st.sampled_from(["concat", "add", "none"]), **SHARED}),
    st.fixed_dictionaries({"factory": st.just("unetpp"), "deep_supervision": st.booleans(), **SHARED}),
)
SEEDS = st.integers(0, 2**16)


def random_scores(network: nn.Module, channels: int, seed: int) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    widths = Dependencies(copy.deepcopy(network), channels).widths()
    return Scores({name: torch.rand(width, generator=generator) for name, width in widths.items()})


@settings(max_examples=40)
@given(ARCHITECTURES, SEEDS, st.floats(0.05, 0.95), st.sampled_from([1, 2, 4, 16]))
def test_a_pruned_network_is_the_dense_one_without_those_channels(
    arguments: dict[str, Any], seed: int, ratio: float, multiple: int
) -> None:
    channels = arguments["channels"]
    network = random_network(seed=seed % 4, **arguments)
    before = copy.deepcopy(network.state_dict())
    plan = random_scores(network, channels, seed).plan(ratio, multiple)
    pruned = plan.apply(network, channels=channels)

    torch.testing.assert_close(logits(pruned, channels), logits(masked(network, plan, channels), channels))
    # The parent is unchanged, and the child has the planned widths.
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert Dependencies(copy.deepcopy(pruned), channels).widths() == {
        layer: after for layer, (_, after) in plan.widths().items()
    }
    assert all(out.shape[1] == 3 for out in logits(pruned, channels))
    assert not [layer for layer in plan.widths() if layer.startswith("head")]


@settings(max_examples=20)
@given(ARCHITECTURES, SEEDS, st.floats(0.05, 0.8), st.floats(0.05, 0.8))
def test_two_plans_after_each_other_are_one(arguments: dict[str, Any], seed: int, one: float, two: float) -> None:
    channels = arguments["channels"]
    network = random_network(seed=seed % 4, **arguments)
    first = random_scores(network, channels, seed).plan(one, 1)
    between = first.apply(network, channels=channels)
    second = random_scores(between, channels, seed + 1).plan(two, 1)
    apart, together = second.apply(between, channels=channels), first.then(second).apply(network, channels=channels)
    assert all(torch.equal(tensor, together.state_dict()[name]) for name, tensor in apart.state_dict().items())
    assert first.then(second).kept() == second.kept()
    if first.kept() != second.kept():
        with pytest.raises(UsageError, match="the second plan does not fit what the first leaves"):
            second.then(second)


@pytest.mark.parametrize("multiple", [1, 2, 4])
@pytest.mark.parametrize("ratio", [0.3, 0.7])
def test_depthwise_convolutions_go_with_what_they_read(ratio: float, multiple: int) -> None:
    network = randomised(Mobile())
    plan = random_scores(network, 1, 0).plan(ratio, multiple)
    # Every layer that outputs logits keeps its classes, wherever it is in the network.
    assert len(plan.cuts) == 2
    assert {cut.width for cut in plan.cuts} == {8, 24}
    pruned = plan.apply(network, channels=1)
    torch.testing.assert_close(logits(pruned, 1), logits(masked(network, plan, 1), 1))
    depthwise = pruned.get_submodule("depthwise.0")
    assert isinstance(depthwise, nn.Conv2d)
    assert depthwise.groups == depthwise.in_channels == depthwise.out_channels < 24


def test_what_a_grouped_convolution_ties_is_left_whole() -> None:
    network = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 1)),
    )
    assert Dependencies(network, 1).widths() == {"4": 16}


@pytest.mark.parametrize("norm", [nn.GroupNorm(4, 16), nn.GroupNorm(1, 16), nn.LayerNorm([16, 8, 8])])
def test_what_is_normalised_together_is_left_whole(norm: nn.Module) -> None:
    """Each channel there depends on others, so a network cut there would not be the dense one without some channels."""
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), norm, nn.ReLU()),
        *(nn.Conv2d(16, 8, 3, padding=1), nn.InstanceNorm2d(8, affine=True), nn.ReLU(), nn.Conv2d(8, 3, 1)),
    )
    network.size_multiple = 4  # type: ignore[assignment]
    assert Dependencies(network, 1).widths() == {"3": 8}


def halved(network: nn.Module) -> PruningPlan:
    """Half of the channels of every group goes."""
    return scores_of(network, channels=1, scope="local").plan(0.5, 1)


class Own(nn.Module):
    """A block of the user's own, with names that mean something else in this code."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.inner = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.drop = nn.Dropout(0.1)
        self.levels = 2
        self.drop_level = nn.Identity()
        self.head = nn.Conv2d(8, 3, 1)
        self.size_multiple = 4

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        stem = self.stem(x_NCHW)
        logits: torch.Tensor = self.head(self.drop_level(stem + self.drop(self.inner(stem))))
        return logits


def test_a_users_own_names_mean_nothing_here() -> None:
    network = randomised(Own())
    plan = halved(network)
    assert plan.kept() == {"stem": 4}
    torch.testing.assert_close(logits(plan.apply(network, channels=1), 1), logits(masked(network, plan, channels=1), 1))


class Free(nn.Module):
    """A network with a parameter that belongs to no layer, used between its convolutions in a way `formula` says."""

    def __init__(self, shape: tuple[int, ...], formula: str) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.free = nn.Parameter(torch.randn(shape))
        self.second = nn.Conv2d(16, 24, 3, padding=1)
        self.head = nn.Conv2d(24, 3, 1)
        self.formula = formula
        self.size_multiple = 4

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        mixed = torch.einsum(self.formula, self.first(x_NCHW).relu(), self.free)
        logits: torch.Tensor = self.head(self.second(mixed).relu())
        return logits


@pytest.mark.parametrize(
    ("shape", "formula", "kept"),
    [
        pytest.param((16,), "nchw,c->nchw", {"first": 8, "second": 12}, id="one for each channel"),
        pytest.param((1, 16, 1, 1), "nchw,acbd->nchw", {"first": 8, "second": 12}, id="the same, shaped to broadcast"),
        pytest.param((16, 16), "nchw,oc->nohw", {"second": 12}, id="a matrix over channels"),
        pytest.param((16, 16), "nchw,co->nohw", {"second": 12}, id="its transpose"),
    ],
)
def test_a_parameter_without_a_layer_is_cut_only_along_its_one_axis(
    shape: tuple[int, ...], formula: str, kept: dict[str, int]
) -> None:
    network = randomised(Free(shape, formula))
    plan = halved(network)
    assert plan.kept() == kept
    torch.testing.assert_close(logits(plan.apply(network, channels=1), 1), logits(masked(network, plan, channels=1), 1))


class Mixed(nn.Module):
    """A network whose first convolution is read through `mix`, a function of its output and the image."""

    def __init__(self, mix: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Conv2d(width, 24, 3, padding=1)
        self.head = nn.Conv2d(24, 3, 1)
        self.mix = mix
        self.size_multiple = 4

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.second(self.mix(self.first(x_NCHW).relu(), x_NCHW)).relu())
        return logits


def shuffled(x_NCHW: torch.Tensor) -> torch.Tensor:
    n, c, h, w = x_NCHW.shape
    return x_NCHW.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


@pytest.mark.parametrize(
    ("mix", "width", "starts"),
    [
        pytest.param(lambda x, image: torch.cat([image, x], 1), 17, [], id="behind the image"),
        pytest.param(lambda x, image: torch.cat([x, image], 1), 17, [0], id="before the image"),
        pytest.param(lambda x, image: x + image, 16, [0], id="added to a grey image"),
        pytest.param(lambda x, _: shuffled(x), 16, [], id="shuffled"),
        pytest.param(lambda x, _: x.flip(1), 16, [], id="in reverse order"),
        pytest.param(lambda x, _: torch.cat([x, x * 2], 1), 32, [0, 16], id="twice"),
        pytest.param(lambda x, _: x.sigmoid(), 16, [0], id="where silence is answered"),
    ],
)
def test_channels_that_are_not_followed_to_what_reads_them_are_left_whole(
    mix: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], width: int, starts: list[int]
) -> None:
    """torch-pruning takes the wrong weights for some of these, and says nothing. `starts` is where those that can be
    followed begin in what the second convolution reads."""
    network = randomised(Mixed(mix, width))
    plan = halved(network)
    assert plan.kept() == ({"first": 8} if starts else {}) | {"second": 12}
    whole = copy.deepcopy(network)
    gone = list(next((cut.remove for cut in plan.cuts if cut.layer == "first"), ()))
    with torch.no_grad():  # the channels may hold anything, once nothing reads them
        for start in starts:
            whole.get_parameter("second.weight")[:, [start + channel for channel in gone]] = 0
        second = next(cut.remove for cut in plan.cuts if cut.layer == "second")
        whole.get_parameter("head.weight")[:, list(second)] = 0
    torch.testing.assert_close(logits(plan.apply(network, channels=1), 1), logits(whole, 1))


class Doubled(nn.Module):
    """Each channel of the wide convolution is tied to another one of the same."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(1, 32, 3, padding=1)
        self.mid, self.head = nn.Conv2d(32, 16, 3, padding=1), nn.Conv2d(16, 3, 1)
        self.size_multiple = 4

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        narrow = self.narrow(x_NCHW)
        logits: torch.Tensor = self.head(self.mid((torch.cat([narrow, narrow], 1) + self.wide(x_NCHW)).relu()).relu())
        return logits


def test_channels_that_are_tied_to_others_of_their_layer_are_left_whole() -> None:
    network = randomised(Doubled())
    plan = halved(network)
    assert plan.kept() == {"mid": 8}
    assert Dependencies(plan.apply(network, channels=1), 1).widths() == {"mid": 8}


def test_what_is_frozen_stays_frozen() -> None:
    network = randomised(Own())
    network.get_parameter("stem.weight").requires_grad_(False)
    plan = halved(network)
    pruned = plan.apply(network, channels=1)
    for made in (network, pruned):
        assert [name for name, weight in made.named_parameters() if not weight.requires_grad] == ["stem.weight"]
    assert pruned.get_parameter("stem.weight").shape[0] == 4


def test_a_layer_whose_weight_is_computed_is_left_whole() -> None:
    network = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 16, 3, padding=1)),
        *(nn.ReLU(), nn.Conv2d(16, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1)),
    )
    network.size_multiple = 4  # type: ignore[assignment]
    assert scores_of(network, channels=1).by_group.keys() == {"2"}


def test_what_is_dealt_out_in_another_order_is_left_whole() -> None:
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.PixelShuffle(2)),
        *(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1)),
    )
    assert Dependencies(network, 1).widths() == {"0": 16, "4": 8}
    assert scores_of(network, channels=1).by_group.keys() == {"0", "4"}


KINDS: dict[str, dict[str, Any]] = {
    "unet": {"factory": "unet", "skip": "add", "block": "residual", "squeeze_excite": True, "depth": 4},
    "unetpp": {"factory": "unetpp", "upsampling": "transposed", "squeeze_excite": True, "depth": 3},
    "resnet": {"factory": "encoder-unet", "encoder": "resnet18", "pretrained": False, "upsampling": "bilinear"},
    "efficientnet-lite": {"factory": "encoder-unet", "encoder": "efficientnet-lite0", "pretrained": False},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_pruned_twice_is_rebuilt_to_the_bit(kind: str, tmp_path: Path) -> None:
    network = random_network(**KINDS[kind])
    first = scores_of(network, channels=1).plan(0.3, 4)
    once = first.apply(network, channels=1)
    torch.testing.assert_close(logits(once, 1), logits(masked(network, first, 1), 1))
    second = scores_of(once, channels=1).plan(0.3, 2)
    twice = second.apply(once, channels=1)
    sizes = [sum(p.numel() for p in each.parameters()) for each in (network, once, twice)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3
    made = write_checkpoint(tmp_path / "made", twice, pruning=(first, second), **KINDS[kind])
    rebuilt = checkpoint.load(made.path).network()
    assert rebuilt.state_dict().keys() == twice.state_dict().keys()
    for got, wanted in zip(logits(rebuilt, 1), logits(twice.eval(), 1), strict=True):
        assert torch.equal(got, wanted)
        assert wanted.std() > 0


@pytest.mark.parametrize(("ratio", "multiple"), [(0.25, 1), (0.6, 8), (0.9, 16)])
@pytest.mark.parametrize("encoder", ["resnet18", "resnet34", "efficientnet-lite0", "efficientnet-lite1"])
def test_a_cut_encoder_is_the_whole_one_without_those_channels(encoder: str, ratio: float, multiple: int) -> None:
    network = random_network("encoder-unet", encoder=encoder, pretrained=False, base=4)
    plan = random_scores(network, 1, seed=3).plan(ratio, multiple)
    assert plan.removed > 0
    cut = plan.apply(network, channels=1)
    torch.testing.assert_close(logits(cut, 1), logits(masked(network, plan, 1), 1))


@settings(max_examples=60)
@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 70), min_size=1),
    SEEDS,
    st.floats(0.0, 1.0),
    st.sampled_from([1, 3, 8, 16]),
)
def test_widths_are_multiples_and_the_least_important_channels_go(
    widths: dict[str, int], seed: int, ratio: float, multiple: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = Scores({name: torch.rand(width, generator=generator) for name, width in widths.items()})
    plan = scores.plan(ratio, multiple)
    assert plan.widths().keys() == widths.keys()
    for cut in plan.cuts:
        width = widths[cut.layer]
        assert cut.width == width
        assert cut.kept == width or (cut.kept % multiple == 0 and cut.kept >= multiple)
        assert cut.kept >= min(multiple, width)
        of_group = scores.by_group[cut.layer]
        gone = set(cut.remove)
        if gone and cut.kept:
            assert of_group[sorted(gone)].max() <= of_group[[i for i in range(width) if i not in gone]].min()


@settings(max_examples=30)
@given(SEEDS, st.floats(0.05, 0.9))
def test_a_ratio_is_the_share_of_the_channels_of_the_whole_network(seed: int, ratio: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = Scores(
        {name: torch.rand(200, generator=generator) + i * 0.1 for i, name in enumerate("abcd")}, comparable=True
    )
    plan = scores.plan(ratio, 1)
    assert sum(len(cut.remove) for cut in plan.cuts) == pytest.approx(800 * ratio, abs=5)
    if 0.3 < ratio < 0.7:
        kept = [cut.kept for cut in plan.cuts]
        assert kept[0] < kept[-1]


def test_magnitude_is_small_where_weights_are() -> None:
    network = random_unet()
    with torch.no_grad():
        network.get_parameter("stem.0.weight")[[2, 5]] *= 0.01
        network.get_parameter("stem.1.weight")[[2, 5]] *= 0.01
        network.get_parameter("stem.1.bias")[[2, 5]] *= 0.01
        network.get_parameter("stem.3.weight")[:, [2, 5]] *= 0.01
    scores = scores_of(network, channels=1)
    assert set(scores.by_group["stem.0"].argsort()[:2].tolist()) == {2, 5}
    for of_group in scores.by_group.values():
        assert of_group.mean() == pytest.approx(1, rel=1e-4)
    again = scores_of(network, channels=1)
    assert all(torch.equal(again.by_group[name], of_group) for name, of_group in scores.by_group.items())


def test_a_plan_is_json() -> None:
    plan = random_scores(random_unet(), 1, 0).plan(0.5, 8)
    text = plan.model_dump_json()
    assert PruningPlan.model_validate_json(text) == plan
    assert {cut["layer"] for cut in json.loads(text)["cuts"]} == plan.widths().keys()


@pytest.mark.parametrize(
    ("cut", "problem"),
    [
        (GroupCut(layer="steam.0", width=16, remove=(1,)), "steam.0: no such group of layers; known: stem.0, "),
        (GroupCut(layer="head", width=3, remove=(1,)), "head: no such group"),
        (GroupCut(layer="stem.0", width=32, remove=(1,)), "stem.0: planned for 32 channels, has 16"),
        (GroupCut(layer="stem.0", width=16, remove=(16,)), "stem.0: channels to remove are not distinct numbers"),
        (GroupCut(layer="stem.0", width=16, remove=(-1,)), "stem.0: channels to remove are not distinct numbers"),
        (GroupCut(layer="stem.0", width=16, remove=(3, 3)), "stem.0: channels to remove are not distinct numbers"),
        (GroupCut(layer="stem.0", width=16, remove=tuple(range(16))), "stem.0: no channel would be left"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_by_name(cut: GroupCut, problem: str) -> None:
    network = random_unet()
    good = GroupCut(layer="stem.3", width=16, remove=(0, 1))
    with pytest.raises(UsageError) as caught:
        PruningPlan(cuts=(good, cut)).apply(network, channels=1)
    assert problem in str(caught.value)
    assert "stem.3:" not in str(caught.value)


def test_every_group_that_does_not_fit_is_named() -> None:
    plan = random_scores(random_unet(base=16), 1, 0).plan(0.5, 8)
    with pytest.raises(UsageError) as caught:
        plan.apply(random_unet(base=8), channels=1)
    assert all(f"{layer}: planned for" in str(caught.value) for layer in plan.widths())


class Bench:
    """A speed-up that depends only on how many channels are kept."""

    def __init__(self, scores: Scores) -> None:
        self.total = sum(len(of_group) for of_group in scores.by_group.values())
        self.asked: list[PruningPlan] = []

    def __call__(self, plan: PruningPlan) -> float:
        self.asked.append(plan)
        return self.total / sum(cut.kept for cut in plan.cuts)


@settings(max_examples=40)
@given(SEEDS, st.floats(1.05, 7.9), st.sampled_from([1, 8, 16]))
def test_bisection_finds_the_lightest_plan_that_is_fast_enough(seed: int, wanted: float, multiple: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = Scores({name: torch.rand(128, generator=generator) for name in "abcdef"})
    bench = Bench(scores)
    plan = ByRatio(scores, multiple, bench).plan(wanted)
    reached = bench(plan)
    assert reached >= wanted
    # Every lighter plan that was timed was too slow.
    tried = [(bench(other), other) for other in list(bench.asked)]
    assert all(speedup < wanted for speedup, _ in tried if speedup < reached)
    # No plan is timed twice: timing is what costs.
    timed = bench.asked[: -1 - len(tried)]
    assert len(timed) == len(set(timed)) <= 7
    # Six halvings bring the ratio to within 1/64.
    assert wanted > 4 or multiple > 1 or reached <= wanted * 1.1


def test_a_speedup_out_of_reach_gives_the_narrowest_plan() -> None:
    scores = Scores({name: torch.rand(64) for name in "ab"})
    plan = ByRatio(scores, 16, Bench(scores)).plan(100.0)
    assert [cut.kept for cut in plan.cuts] == [16, 16]


def test_more_speed_never_takes_a_wider_network() -> None:
    scores = Scores({name: torch.rand(128, generator=torch.Generator().manual_seed(3)) for name in "abc"})
    kept = [
        sum(cut.kept for cut in ByRatio(scores, 8, Bench(scores)).plan(wanted).cuts) for wanted in (1.2, 2, 3, 5, 8)
    ]
    assert kept == sorted(kept, reverse=True)
    assert math.isclose(kept[0], 384 / 1.2, rel_tol=0.1)
