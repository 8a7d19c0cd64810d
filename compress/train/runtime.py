"""The device and the number format of training steps."""

from dataclasses import dataclass

import torch

from compress.train.precision import Precision


@dataclass(frozen=True)
class Runtime:
    """A device, which is the current one of its kind (`pick_device`), and the precision of forward passes on it."""

    device: torch.device
    precision: Precision

    def seed(self, seed: int) -> None:
        """Seed torch's global generators, on the CPU and on the device."""
        torch.default_generator.manual_seed(seed)  # torch.manual_seed seeds every backend, at every step
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    def synchronize(self) -> None:
        """Wait until the device has finished its work."""
        if self.device.type != "cpu":
            torch.get_device_module(self.device).synchronize()
