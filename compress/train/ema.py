"""Averages of a network's weights: a moving average over steps, and an equal average over epochs."""

import torch
from torch import Tensor, nn

from compress.checkpoint import frozen_copy


class Average:
    """A copy of a network whose floating-point tensors, BatchNorm's statistics among them, are means over time."""

    def __init__(self, network: nn.Module) -> None:
        self.network = frozen_copy(network)
        self.steps = 0
        """Updates so far."""
        mine, theirs = self.network.state_dict(keep_vars=True), network.state_dict(keep_vars=True)
        # A tensor that is used in two places has two names, but must be updated only once.
        names = {id(tensor): name for name, tensor in theirs.items() if tensor.is_floating_point()}.values()
        self._mine = [mine[name] for name in names]
        self._theirs = [theirs[name] for name in names]

    @torch.no_grad()
    def update(self) -> None:
        """Add the network's current weights to the mean."""
        share = self._share()
        self.steps += 1
        torch._foreach_lerp_(self._mine, self._theirs, share)

    def _share(self) -> float:
        """The weight of the current weights in the mean."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Tensor | int]:
        return {"steps": self.steps, **self.network.state_dict()}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        self.steps = int(state["steps"])
        self.network.load_state_dict({name: value for name, value in state.items() if name != "steps"})


class MovingAverage(Average):
    """The average that is validated and saved; to be updated after every optimizer step.

    Source: Polyak & Juditsky 1992. The decay warms up as (1 + t) / (10 + t), so that a short run is not
    dominated by its first steps (Tarvainen & Valpola 2017, arXiv:1703.01780, use the same idea).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__(network)
        self._decay = decay

    def _share(self) -> float:
        return 1 - min(self._decay, (1 + self.steps) / (10 + self.steps))


class EqualAverage(Average):
    """Every update counts the same: stochastic weight averaging.

    The averaged BatchNorm statistics fit no network and have to be recomputed.
    Source: Izmailov et al. 2018 (arXiv:1803.05407).
    """

    def _share(self) -> float:
        return 1 / (1 + self.steps)
