"""What a step minimises when a network has several heads, when there is a teacher, and for blended images."""

import pytest
import torch
from torch import Tensor, nn

from compress.data.mixing import Second
from compress.settings.fit import LossSettings
from compress.train.losses import SegmentationLoss, distillation
from compress.train.objective import Objective, Part, Teacher

LOSS = LossSettings()


class Heads(nn.Module):
    """Several heads, of which the last one serves."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Conv2d(1, 3, 1) for _ in range(count))

    def all_logits(self, image: Tensor) -> list[Tensor]:
        return [head(image) for head in self.heads]

    def forward(self, image: Tensor) -> Tensor:
        return self.all_logits(image)[-1]


@pytest.fixture
def part() -> Part:
    torch.manual_seed(0)
    return Part(torch.randn(2, 1, 8, 8), torch.randint(3, (2, 8, 8), dtype=torch.uint8))


def loss_of(objective: Objective, network: nn.Module, part: Part) -> Tensor:
    return objective.loss(objective.logits(network, part), part)


def test_the_loss_is_the_mean_over_the_heads(part: Part) -> None:
    network = Heads(3)
    loss = loss_of(Objective(LOSS, None, None), network, part)
    each = [SegmentationLoss(LOSS)(logits, part.masks_NHW) for logits in network.all_logits(part.images_NCHW)]
    torch.testing.assert_close(loss, sum(each) / 3)
    assert len({value.item() for value in each}) == 3
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_teacher_teaches_the_head_that_serves(part: Part) -> None:
    network, teacher = Heads(2), Heads(2)
    objective = Objective(LOSS, None, Teacher(teacher, 1.0, 3.0))
    loss = loss_of(objective, network, part)
    expected = distillation(network(part.images_NCHW), teacher(part.images_NCHW), part.masks_NHW, 3.0)
    torch.testing.assert_close(loss, expected)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None for parameter in teacher.parameters())


def convolutions(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 3, 1))


def test_attention_is_where_convolutions_answer_whatever_their_width(part: Part) -> None:
    network, teacher = convolutions(4), convolutions(16)
    with_maps, without = (
        loss_of(Objective(LOSS, None, Teacher(teacher, 0.5, 2.0, weight)), network, part) for weight in (3.0, 0.0)
    )

    def map_of(module: nn.Sequential) -> Tensor:
        strength: Tensor = module[0](part.images_NCHW).square().mean(1).flatten(1)
        lengths: Tensor = strength.norm(dim=1, keepdim=True)
        return strength / lengths

    expected = (map_of(network) - map_of(teacher)).square().sum(1).mean()
    assert expected > 1e-3
    torch.testing.assert_close(with_maps - without, 0.5 * 3.0 * expected)
    with_maps.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not network[0]._forward_hooks


def test_a_network_pays_the_same_attention_as_itself(part: Part) -> None:
    teacher = convolutions(8)
    losses = [
        loss_of(Objective(LOSS, None, Teacher(teacher, 0.5, 2.0, weight)), teacher, part) for weight in (9.0, 0.0)
    ]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("at_once", [2, 1])
def test_of_a_blend_each_mask_counts_with_its_share(part: Part, at_once: int) -> None:
    network, pixels = Heads(1), LossSettings(dice_weight=0)
    masks, others = part.masks_NHW.clone(), part.masks_NHW.roll(1, 2)
    masks[0, :3], others[1, :5] = 255, 255  # the number of known pixels differs from image to image
    objective = Objective(pixels, torch.tensor([1.0, 2.0, 3.0]), None)
    parts = objective.parts(part.images_NCHW, masks, at_once, Second(others, 0.3))
    loss = sum(loss_of(objective, network, each) for each in parts)
    loss_with = SegmentationLoss(pixels, torch.tensor([1.0, 2.0, 3.0]))
    one, other = (loss_with(network(part.images_NCHW), target) for target in (masks, others))
    torch.testing.assert_close(loss, 0.7 * one + 0.3 * other)
    assert abs(float(one.detach() - other.detach())) > 1e-3
