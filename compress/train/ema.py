"""Exponential moving average of a network's weights."""

import torch
from torch import Tensor, nn

from compress.checkpoint import frozen_copy


class MovingAverage:
    """The average that is validated and saved; BatchNorm statistics are averaged with the weights.

    Source: Polyak & Juditsky 1992. The decay warms up as (1 + t) / (10 + t), so that a short run is not
    dominated by its first steps (Tarvainen & Valpola 2017, arXiv:1703.01780, use the same idea).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = frozen_copy(network)
        self._decay = decay
        self._steps = 0
        pairs = zip(self.network.state_dict().values(), network.state_dict().values(), strict=True)
        floating = [(mine, theirs) for mine, theirs in pairs if mine.is_floating_point()]
        self._mine = [mine for mine, _ in floating]
        self._theirs = [theirs for _, theirs in floating]

    @torch.no_grad()
    def update(self) -> None:
        """Call after every optimizer step."""
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        self._steps += 1
        torch._foreach_lerp_(self._mine, self._theirs, 1 - decay)

    def state_dict(self) -> dict[str, Tensor | int]:
        return {"steps": self._steps, **self.network.state_dict()}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        self._steps = int(state["steps"])
        self.network.load_state_dict({name: value for name, value in state.items() if name != "steps"})
