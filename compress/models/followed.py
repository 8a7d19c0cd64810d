"""Whether the layers that a dependency graph names are those that read a group's channels.

torch-pruning loses count of channels behind a concatenation that begins with the image, and takes a channel shuffle, a
flip or a slice for the identity. A network cut by such a graph keeps weights of channels that are gone. So each group
is tried once, with numbers, on a copy of the network.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from compress import models
from compress.models.places import Place

_TOLERANCE = 1e-5
"""Of logits, relative to the largest; where nothing leaks, they are equal to the bit."""


class Trial:
    """A copy of a network with fresh weights, on which channels are silenced."""

    def __init__(self, network: nn.Module, image_NCHW: Tensor) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self._image_NCHW = torch.randn(image_NCHW.shape, generator=self._generator)
        self._network = copy.deepcopy(network).eval()
        for module in self._network.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    # Each module gets its own: a weight that two share would change in both places.
                    module._parameters[name] = nn.Parameter(self._fresh(name, parameter), requires_grad=False)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.reset_running_stats()

    def tells(self) -> bool:
        """Whether the network gives numbers at all with such weights: the root of what may be negative does not."""
        with torch.no_grad():
            return all(bool(a.isfinite().all()) for a in models.all_logits(self._network, self._image_NCHW))

    def are_all_readers(self, places: Sequence[Place]) -> bool:
        """Whether nothing but `places` reads the channels that they make: what reads them there, with its weights for
        them at zero, no longer depends on what they hold."""
        return self._are_alike(places, {"silent": False, "read": False}, {"silent": False, "read": False})

    def read_nothing_else(self, places: Sequence[Place]) -> bool:
        """Whether `places` read only channels that they make: while these are silent, the weights for them make no
        difference. So it is with products of channels (attention), which have readers without weights; where something
        answers silence (a sigmoid), it is not."""
        return self._are_alike(places, {"silent": True, "read": True}, {"silent": True, "read": False})

    def _are_alike(self, places: Sequence[Place], one: Mapping[str, bool], other: Mapping[str, bool]) -> bool:
        try:
            pairs = zip(self._logits(places, **one), self._logits(places, **other), strict=True)
            return all(float((a - b).abs().max()) <= _TOLERANCE * float(a.abs().max()) for a, b in pairs)
        except Exception:  # indices beyond a layer, or a user's own network
            return False

    def _logits(self, places: Sequence[Place], *, silent: bool, read: bool) -> list[Tensor]:
        """Logits with the weights at `places` that make the channels at zero if `silent`, else drawn anew, and those
        that read them at zero unless `read`."""
        touched = {place.layer: self._network.get_submodule(place.layer) for place in places}
        saved = [(parameter, parameter.clone()) for module in touched.values() for parameter in module.parameters()]
        try:
            for place in places:
                if place.role != "reads":
                    self._make(touched[place.layer], place, silent=silent)
            for place in places:
                if place.role == "reads" and not read:
                    place.weight(self._network).movedim(place.axis, 0)[place.at] = 0
            with torch.no_grad():
                return models.all_logits(self._network, self._image_NCHW)
        finally:
            for parameter, before in saved:
                parameter.copy_(before)

    def _make(self, layer: nn.Module, place: Place, *, silent: bool) -> None:
        for name, parameter in layer._parameters.items():
            if parameter is not None:
                axis = place.axis if name == "weight" else 0
                drawn = torch.zeros_like(parameter) if silent else self._fresh(name, parameter)
                parameter.movedim(axis, 0)[place.at] = drawn.movedim(axis, 0)[place.at]

    def _fresh(self, name: str, parameter: Tensor) -> Tensor:
        """Values that let signals through: kernels as He et al. (2015) draw them, scales and biases above zero."""
        if name not in ("weight", "bias"):
            return parameter.detach().clone()
        if parameter.ndim > 1:
            deviation: float = (2 / max(parameter[0].numel(), 1)) ** 0.5
            return torch.randn(parameter.shape, generator=self._generator) * deviation
        return torch.rand(parameter.shape, generator=self._generator) + 0.5
