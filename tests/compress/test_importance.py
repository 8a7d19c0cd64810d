"""The scores of each criterion, compared with formulas and torch-pruning; scoring leaves the network as it was."""

import copy
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch_pruning as tp
from support.datasets import write_dataset
from support.networks import Mobile, random_network, random_unet, randomised
from support.recipes import TINY_SETTINGS
from torch import Tensor, nn

from compress.checkpoint import Checkpoint, normalised
from compress.data.folder import open_dataset
from compress.data.loader import TrainingImages
from compress.models import all_logits
from compress.models.plan import Dependencies
from compress.prune import prune
from compress.prune.evidence import IMAGES, Evidence
from compress.prune.importance import scores_of
from compress.recipe import Recipe
from compress.settings.fit import FitSettings, LossSettings
from compress.settings.prune import Criterion
from compress.train.losses import SegmentationLoss
from export.errors import UsageError

CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
CPU = torch.device("cpu")
FIT = FitSettings(batch_size=40, loss=LossSettings(label_smoothing=0.1))


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    counts = {"train": 40, "val": 1, "test": 1}
    data = write_dataset(tmp_path_factory.mktemp("data") / "discs", counts=counts, size=(24, 24))
    return Evidence(TrainingImages(open_dataset(data), size=None, crop=None, multiple=8), 2, FIT, CPU)


def unet(seed: int = 0, **arguments: Any) -> nn.Module:
    return random_unet(seed, base=8, classes=2, **arguments)


def weight(network: nn.Module, layer: str) -> Tensor:
    return network.get_parameter(f"{layer}.weight").detach()


def rows(tensor: Tensor) -> Tensor:
    return tensor.flatten(1)


def assert_proportional(scores: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(scores / scores.mean(), (expected / expected.mean()).to(scores))


@pytest.mark.parametrize(("criterion", "p"), [("l1", 1), ("l2", 2)])
@pytest.mark.parametrize(
    "arguments",
    [
        {"factory": "unet", "block": "residual", "skip": "add", "squeeze_excite": True},
        {"factory": "unetpp", "upsampling": "transposed"},
        {"factory": "encoder-unet", "encoder": "resnet18", "pretrained": False},
    ],
    ids=lambda arguments: str(arguments["factory"]),
)
def test_magnitudes_are_those_of_torch_pruning(criterion: Criterion, p: int, arguments: dict[str, Any]) -> None:
    network = random_network(**arguments)
    theirs = tp.importance.GroupMagnitudeImportance(p=p)
    scores = scores_of(network, criterion, channels=1)
    groups = Dependencies(copy.deepcopy(network), 1).groups()
    assert list(scores.raw) == list(groups)
    for name, group in groups.items():
        assert_proportional(scores.raw[name], theirs(group).detach())


def test_magnitudes_count_depthwise_kernels_which_torch_pruning_leaves_out() -> None:
    network = randomised(Mobile())
    scores = scores_of(network, "l2", channels=1).raw["expand.0"]
    layers = [f"{block}.{index}" for block in ("expand", "depthwise") for index in (0, 1)]
    made = sum(rows(weight(network, layer).reshape(24, -1)).square().sum(1) for layer in layers)
    torch.testing.assert_close(scores, made + weight(network, "project.0").square().sum((0, 2, 3)))


def test_batchnorm_scales_are_those_of_torch_pruning() -> None:
    network = random_network("unet", block="residual", skip="add")
    scores = scores_of(network, "bn-scale", channels=1)
    for name, group in Dependencies(copy.deepcopy(network), 1).groups().items():
        assert_proportional(scores.raw[name], tp.importance.BNScaleImportance()(group).detach())
    plain = unet()
    assert torch.equal(scores_of(plain, "bn-scale", channels=1).raw["stem.0"], weight(plain, "stem.1").abs())


def test_groups_without_batchnorm_are_ranked_by_magnitude_and_named(capfd: pytest.CaptureFixture[str]) -> None:
    network = unet(squeeze_excite=True)
    scores = scores_of(network, "bn-scale", channels=1)
    without = [name for name in scores.raw if name.endswith("gate.1")]
    assert len(without) == 5
    assert f"bn-scale says nothing about {', '.join(without)}: " in capfd.readouterr().err
    by_size = scores_of(network, "l2", channels=1)
    for name, raw in scores.raw.items():
        assert torch.equal(raw.argsort(), by_size.raw[name].argsort()) == (name in without)
    # On average they are worth as much as the others.
    others = torch.cat([raw for name, raw in scores.raw.items() if name not in without])
    assert all(scores.raw[name].mean() == pytest.approx(float(others.mean())) for name in without)


def test_a_criterion_that_finds_nothing_anywhere_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    with pytest.raises(UsageError, match=r"'bn-scale' finds nothing.* groups 0; set prune\.importance=l2"):
        scores_of(network, "bn-scale", channels=1)


def test_what_lies_near_the_geometric_median_is_worth_least() -> None:
    network = unet(upsampling="transposed", skip="add")
    scores = scores_of(network, "fpgm", channels=1)

    def distances(kernels: Tensor) -> Tensor:
        return torch.stack([(kernels - kernel).flatten(1).norm(dim=1).sum() for kernel in kernels])

    assert_proportional(scores.raw["stem.0"], distances(weight(network, "stem.0")))
    # Two layers make the group: the one that makes the skip, and the transposed convolution that the skip is added to.
    both = distances(weight(network, "stem.3")) + distances(weight(network, "up.1.upsample").transpose(0, 1))
    assert_proportional(scores.raw["stem.3"], both)

    with torch.no_grad():
        kernels = network.get_parameter("stem.0.weight")
        kernels[5] = kernels.mean(0)
        kernels[2] *= 10
    of_group = scores_of(network, "fpgm", channels=1).raw["stem.0"]
    assert (int(of_group.argmin()), int(of_group.argmax())) == (5, 2)


GATES = {"stem.0": "stem.2", "stem.3": "stem.5", "down.1.0": "down.1.2", "up.0.block.3": "up.0.block.5"}
"""Groups and the single ReLU that outputs each: whatever reads the group reads that ReLU."""


def test_taylor_is_the_square_of_the_derivative_by_a_gate_on_the_channel(evidence: Evidence) -> None:
    network = unet()
    scores = scores_of(network, "taylor", channels=1, evidence=evidence)
    assert scores.comparable
    assert scores.by_group is scores.raw
    loss, twin = SegmentationLoss(FIT.loss), copy.deepcopy(network).double()
    expected: dict[str, list[Tensor]] = {}
    for batch in evidence.images.drawn(IMAGES // FIT.batch_size, FIT.batch_size):
        gates = {name: torch.ones(scores.raw[name].shape[0], 1, 1).double().requires_grad_() for name in GATES}
        hooks = [
            twin.get_submodule(relu).register_forward_hook(lambda _, __, out, gate=gates[name]: out * gate)
            for name, relu in GATES.items()
        ]
        loss(twin(normalised(batch.images_NCHW).double()), batch.masks_NHW).backward()  # type: ignore[no-untyped-call]
        for name, gate in gates.items():
            assert gate.grad is not None
            expected.setdefault(name, []).append(gate.grad.flatten().square())
        for hook in hooks:
            hook.remove()
    for name, squares in expected.items():
        wanted = torch.stack(squares).mean(0).float()
        torch.testing.assert_close(scores.raw[name], wanted, rtol=1e-3, atol=1e-4 * float(wanted.max()))


def test_activation_is_what_the_readers_see(evidence: Evidence) -> None:
    network = unet()
    scores = scores_of(network, "activation", channels=1, evidence=evidence)
    means: dict[str, list[Tensor]] = {name: [] for name in GATES}
    for name, relu in GATES.items():
        network.get_submodule(relu).register_forward_hook(
            lambda _, __, out, into=means[name]: into.append(out.abs().mean((0, 2, 3)))
        )
    with torch.no_grad():
        for batch in evidence.images.drawn(IMAGES // FIT.batch_size, FIT.batch_size):
            network(normalised(batch.images_NCHW))
    for name in ("stem.0", "down.1.0", "up.0.block.3"):
        torch.testing.assert_close(scores.raw[name], torch.stack(means[name]).mean(0), rtol=1e-4, atol=1e-6)
    # The skip is read in two places: as it is, and pooled, where the largest of four pixels is left.
    assert (scores.raw["stem.3"] >= 2 * torch.stack(means["stem.3"]).mean(0)).all()


class TwoHeads(nn.Module):
    """A head that only the loss sees, and a convolution that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.mid = nn.Conv2d(16, 16, 3, padding=1)
        self.aside = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 1))
        self.head = nn.Conv2d(16, 3, 1)
        self.size_multiple = 2

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.all_logits(x_NCHW)[-1]

    def all_logits(self, x_NCHW: Tensor) -> list[Tensor]:
        first = self.mid(self.stem(x_NCHW).relu()).relu()
        return [self.aside(first), self.head(self.mid(first).relu())]


def test_activation_sees_every_head_and_every_use(evidence: Evidence) -> None:
    network = randomised(TwoHeads())
    seen: list[Tensor] = []
    for layer in ("mid", "head", "aside.0"):
        network.get_submodule(layer).register_forward_pre_hook(
            lambda _, given: seen.append(given[0].abs().mean((0, 2, 3)))
        )
    with torch.no_grad():
        for batch in evidence.images.drawn(IMAGES // FIT.batch_size, FIT.batch_size):
            all_logits(network, normalised(batch.images_NCHW))
    expected = torch.stack(seen).sum(0) * FIT.batch_size / IMAGES
    scores = scores_of(network, "activation", channels=1, evidence=evidence)
    (name,) = [name for name in scores.raw if not name.startswith("aside")]
    torch.testing.assert_close(scores.raw[name], expected, rtol=1e-4, atol=1e-6)


def test_a_channel_that_changes_nothing_is_worth_nothing(evidence: Evidence) -> None:
    network = unet()
    with torch.no_grad():
        network.get_parameter("stem.3.weight")[:, 3] = 0
        for name in ("stem.1.weight", "stem.1.bias"):
            network.get_parameter(name)[3] = 0
    for criterion in ("taylor", "activation"):
        of_group = scores_of(network, criterion, channels=1, evidence=evidence).raw["stem.0"]
        assert of_group[3] == 0
        assert (of_group > 0).sum() > 4


def test_chance_comes_from_the_seed() -> None:
    network = unet()
    one, again, other = (scores_of(network, "random", channels=1, seed=seed) for seed in (1, 1, 2))
    for name, raw in one.raw.items():
        assert torch.equal(raw, again.raw[name])
        assert not torch.equal(raw, other.raw[name])
    assert one.plan(0.5, 2) == again.plan(0.5, 2) != other.plan(0.5, 2)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_network_is_left_as_it_was_and_the_answer_is_the_same_again(
    criterion: Criterion, evidence: Evidence
) -> None:
    network = unet(dropout=0.5)
    network.train()
    network.get_submodule("stem").eval()
    network.get_parameter("head.weight").requires_grad_(False)
    network.get_parameter("stem.0.weight").grad = torch.full_like(network.get_parameter("stem.0.weight"), 7)
    state, modes = copy.deepcopy(network.state_dict()), [module.training for module in network.modules()]
    dice = torch.get_rng_state()
    first, second = (scores_of(network, criterion, channels=1, evidence=evidence) for _ in range(2))
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert [name for name, p in network.named_parameters() if not p.requires_grad] == ["head.weight"]
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    assert list(gradients) == ["stem.0.weight"]
    assert (gradients["stem.0.weight"] == 7).all()
    assert torch.equal(torch.get_rng_state(), dice)
    for name, raw in first.raw.items():
        assert raw.shape == (Dependencies(copy.deepcopy(network), 1).widths()[name],)
        assert torch.equal(raw, second.raw[name])
        assert (raw >= 0).all()


def test_no_two_criteria_say_the_same(evidence: Evidence) -> None:
    network = unet()
    plans = {scores_of(network, name, channels=1, evidence=evidence).plan(0.5, 1) for name in CRITERIA}
    assert len(plans) == len(CRITERIA)


def test_without_images_what_looks_at_images_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="taylor looks at training images"):
        scores_of(unet(), "taylor", channels=1)


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize(
    ("criterion", "scope"), [("random", "local"), ("taylor", "global"), ("activation", "local"), ("fpgm", "global")]
)
def test_the_command_cuts_by_what_the_recipe_says(
    criterion: Criterion, scope: Any, trained: Checkpoint, discs: Path, tmp_path: Path
) -> None:
    settings = [f"prune.importance={criterion}", f"prune.scope={scope}", "prune.finetune.seed=3"]
    recipe = Recipe.load(None, [*TINY_SETTINGS, "prune.finetune.epochs=1", *settings])
    made = prune(trained.path, discs, tmp_path / "out", recipe)
    images = TrainingImages(open_dataset(discs), size=None, crop=None, multiple=4)
    seen = Evidence(images, 2, recipe.prune.finetune, CPU)
    scores = scores_of(trained.network(), criterion, channels=1, evidence=seen, seed=3, scope=scope)
    assert made.card.pruning == (scores.plan(0.5, 8),)
    assert made.card.pruning != (scores_of(trained.network(), channels=1).plan(0.5, 8),)


def test_images_of_another_seed_are_other_images(evidence: Evidence) -> None:
    def scored(seed: int) -> Tensor:
        seen = Evidence(evidence.images, 2, FIT.model_copy(update={"seed": seed, "batch_size": 9}), CPU)
        return scores_of(unet(), "taylor", channels=1, evidence=seen).raw["stem.0"]

    first = scored(0)
    assert torch.equal(first, scored(0))
    assert not torch.equal(first, scored(1))
