"""Where and in what format the steps run, and what is asked of that device."""

from dataclasses import dataclass

import torch

from compress.train.precision import Precision


@dataclass(frozen=True)
class Runtime:
    """A device, the current one of its kind (`pick_device`), and the precision of forward passes on it."""

    device: torch.device
    precision: Precision

    def seed(self, seed: int) -> None:
        """Of torch's global generators, on the CPU and on the device."""
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would walk through every backend, at every step
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    def synchronize(self) -> None:
        """Wait until the device has done what it was asked for."""
        if self.device.type != "cpu":
            torch.get_device_module(self.device).synchronize()
