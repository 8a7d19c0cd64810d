"""Shares of a step's time, by a clock that the test sets."""

import time

import pytest
import torch

from compress.train.clock import Clock, Throughput
from compress.train.runtime import Runtime


class Hands:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    turned = Hands()
    monkeypatch.setattr(time, "perf_counter", turned)
    return turned


def step(clock: Clock, hands: Hands, data: float, augmentation: float, network: float) -> None:
    with clock.part("data"):
        hands.seconds += data
    with clock.part("augmentation"):
        hands.seconds += augmentation
    hands.seconds += 100  # saving and validating are not part of a step
    with clock.part("network"):
        hands.seconds += network
    clock.end_step(8)


def test_time_is_shared_among_the_parts_of_all_steps_but_the_first(hands: Hands) -> None:
    clock = Clock(Runtime(torch.device("cpu"), "float32"))
    step(clock, hands, 1000, 1000, 1000)
    assert clock.throughput() is None
    step(clock, hands, 1, 2, 7)
    step(clock, hands, 3, 2, 5)
    measured = clock.throughput()
    assert measured == Throughput(
        data_share=0.2, augmentation_share=0.2, feed_images_per_second=2.0, network_images_per_second=16 / 12
    )
    assert str(measured) == ("data 20%, augmentation 20% of a step; both together 2 images/s, the network 1 images/s")
