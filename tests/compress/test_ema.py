"""Averaged weights and re-estimated statistics, compared with sums written out here."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from support.datasets import write_dataset
from support.networks import random_unet
from torch import nn

from compress.data.folder import open_dataset
from compress.data.loader import TrainingImages
from compress.train.batchnorm import reestimate
from compress.train.ema import Average, EqualAverage, MovingAverage


def wander(network: nn.Module, steps: int, average: MovingAverage) -> list[torch.Tensor]:
    """Move every weight at random, `steps` times; returns the head's bias after each."""
    seen = []
    for _ in range(steps):
        with torch.no_grad():
            for tensor in network.state_dict().values():
                if tensor.is_floating_point():
                    tensor.add_(torch.randn_like(tensor))
        average.update()
        seen.append(network.head.bias.detach().clone())  # type: ignore[union-attr, operator]
    return seen


def test_the_average_follows_the_formula() -> None:
    network = random_unet(base=4)
    expected = network.get_parameter("head.bias").detach().clone()
    average = MovingAverage(network, 0.9)
    for step, value in enumerate(wander(network, 200, average)):
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(average.network.get_parameter("head.bias"), expected)


def test_statistics_are_averaged_and_counters_are_not() -> None:
    network = random_unet(base=4)
    average = MovingAverage(network, 0.5)
    before = average.network.get_buffer("stem.1.running_var").clone()
    wander(network, 3, average)
    assert not torch.equal(average.network.get_buffer("stem.1.running_var"), before)
    assert average.network.get_buffer("stem.1.num_batches_tracked") == 0


def test_no_decay_means_the_network_itself() -> None:
    network = random_unet(base=4)
    average = MovingAverage(network, 0.0)
    wander(network, 3, average)
    for name, tensor in average.network.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name]), name


def _all_of(network: nn.Module, value: float) -> nn.Module:
    for parameter in network.parameters():
        nn.init.constant_(parameter, value)
    return network


@pytest.mark.parametrize("kind", [EqualAverage, partial(MovingAverage, decay=0.9)])
def test_weights_that_are_used_in_two_places_are_averaged_once(kind: Callable[[nn.Module], Average]) -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1))
    network[1].weight = network[0].weight
    average = kind(_all_of(network, 0.0))
    for value in (1.0, 3.0, 8.0):
        _all_of(network, value)
        average.update()
    weight, *biases = (float(parameter) for parameter in average.network.parameters())
    assert biases == [weight, weight]


def test_an_average_goes_on_from_what_was_saved() -> None:
    network = random_unet(base=4)
    average = MovingAverage(network, 0.99)
    wander(network, 5, average)
    saved = copy.deepcopy((network.state_dict(), average.state_dict()))
    torch.manual_seed(1)
    wander(network, 5, average)

    other = random_unet(1, base=4)
    resumed = MovingAverage(other, 0.99)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    torch.manual_seed(1)
    wander(other, 5, resumed)
    for name, tensor in resumed.network.state_dict().items():
        assert torch.equal(tensor, average.network.state_dict()[name]), name


def test_the_average_takes_no_gradients_and_stays_in_eval_mode() -> None:
    average = MovingAverage(random_unet(base=4).train(), 0.9)
    assert not average.network.training
    assert not any(p.requires_grad for p in average.network.parameters())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> TrainingImages:
    path = write_dataset(tmp_path_factory.mktemp("data") / "d", size=(16, 16))
    return TrainingImages(open_dataset(path), size=None, crop=None, multiple=1)


class Normalised(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.BatchNorm2d(1))


def test_statistics_are_taken_again_from_the_training_images(images: TrainingImages) -> None:
    network = Normalised()
    with torch.no_grad():
        network.get_buffer("0.running_mean").fill_(50)
    reestimate(network, images, batches=6, batch_size=4)

    # Three epochs of two full batches each.
    pixels = [(batch.images_NCHW.float() - 128) / 128 for epoch in range(3) for batch in images.epoch(epoch, 4)]
    torch.testing.assert_close(network[0].running_mean, torch.stack([x.mean() for x in pixels]).mean()[None])
    torch.testing.assert_close(network[0].running_var, torch.stack([x.var() for x in pixels]).mean()[None])
    assert network[0].momentum == 0.1
    assert not network.training


def test_taking_statistics_again_is_repeatable_and_leaves_the_weights(images: TrainingImages) -> None:
    first, second = random_unet(base=4), random_unet(base=4)
    for network in (first, second):
        reestimate(network, images, batches=3)
    before = random_unet(base=4).state_dict()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
        if "running" not in name and "tracked" not in name:
            assert torch.equal(tensor, before[name])


def test_statistics_do_not_depend_on_what_was_drawn_before(images: TrainingImages) -> None:
    """With dropout too: the random numbers that a killed run drew are not drawn again by the resumed one."""
    found = []
    for drawn in (0, 1):
        network = random_unet(base=4, dropout=0.3)
        torch.manual_seed(1)
        torch.rand(drawn)
        reestimate(network, images, batches=2)
        found.append(network.state_dict())
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
