"""The importance of channels by training images: how much the loss would change, or how much a channel fires."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress import models
from compress.checkpoint import normalised
from compress.data.loader import TrainingImages
from compress.models.places import ChannelGroup, Place
from compress.progress import task
from compress.settings.fit import FitSettings
from compress.train.losses import class_weights
from compress.train.objective import Objective, Part

IMAGES = 160
"""About how many are used: the ranking of channels settles with far fewer than that of networks does."""


@dataclass(frozen=True)
class Evidence:
    """Training images, not augmented, and the loss on them."""

    images: TrainingImages
    classes: int
    settings: FitSettings
    """Gives the loss, the batch size, and the seed for the order of the images (and for their windows, where training
    uses crops)."""
    device: torch.device

    def taylor(self, network: nn.Module, groups: Mapping[str, ChannelGroup]) -> dict[str, Tensor | None]:
        """First-order change of the loss when a channel is removed: gradient times weight, summed over all weights that
        read the channel, then squared; mean over the batches. Comparable between groups.

        Layers read channels linearly, so that sum is the derivative with respect to a factor on the channel, whatever
        makes it. BatchNorm uses its running statistics: channels are removed from the network as it is.

        Source: Molchanov et al. 2019 (arXiv:1906.10771), equation 8. None for a group that no layer reads.
        """

        def change(place: Place) -> Tensor:
            weight = place.weight(network)
            # A head that the loss does not see has no gradient.
            gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
            return (place.rows(weight) * place.rows(gradient)).sum(1)

        means, objective = _Means(groups), self._objective()
        for images_NCHW, masks_NHW in self._batches(network):
            network.zero_grad(set_to_none=True)
            part = Part(images_NCHW, masks_NHW)
            objective.loss(objective.logits(network, part), part).backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                means.add(lambda group: _squared(group.total(change, roles=["reads"])))
        return means.result()

    def activation(self, network: nn.Module, groups: Mapping[str, ChannelGroup]) -> dict[str, Tensor | None]:
        """The mean absolute activation of a channel as the layers that read it see it, after BatchNorm and ReLU,
        summed over them. Source: Molchanov et al. 2017 (arXiv:1611.06440), section 2.2.

        None for a group that no layer reads.
        """
        seen: dict[str, Tensor] = {}
        names = {place.layer for group in groups.values() for place in group.places if place.role == "reads"}

        def remember(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                axis = -1 if isinstance(module, nn.Linear) else 1
                found = inputs[0].abs().movedim(axis, 0).flatten(1).mean(1)
                seen[name] = seen[name] + found if name in seen else found  # a module may be used more than once

            return hook

        hooks = [network.get_submodule(name).register_forward_pre_hook(remember(name)) for name in sorted(names)]
        means = _Means(groups)
        for images_NCHW, _ in self._batches(network):
            seen.clear()
            with torch.no_grad():
                models.all_logits(network, images_NCHW)
                means.add(lambda group: group.total(lambda place: seen[place.layer][place.at], roles=["reads"]))
        for handle in hooks:
            handle.remove()
        return means.result()

    def _objective(self) -> Objective:
        pixels_K = self.images.class_pixels(self.classes)
        weights_K = class_weights(self.settings.loss, pixels_K, self.settings.SECTION)
        return Objective(self.settings.loss, None if weights_K is None else weights_K.to(self.device), teacher=None)

    def _batches(self, network: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and masks on the device; `network` is moved there and put in eval mode."""
        network.to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        count = -(-IMAGES // self.settings.batch_size)
        with task("importance", count) as bar:
            for batch in self.images.drawn(count, self.settings.batch_size, seed=self.settings.seed):
                images_NCHW = normalised(batch.images_NCHW.to(self.device))
                yield images_NCHW.contiguous(memory_format=torch.channels_last), batch.masks_NHW.to(self.device)
                bar.advance()


class _Means:
    """Mean scores of each group over the batches, in float64."""

    def __init__(self, groups: Mapping[str, ChannelGroup]) -> None:
        self._groups = groups
        self._sums: dict[str, Tensor | None] = dict.fromkeys(groups)
        self._count = 0

    def add(self, scores_of: Callable[[ChannelGroup], Tensor | None]) -> None:
        self._count += 1
        for name, group in self._groups.items():
            scores, before = scores_of(group), self._sums[name]
            if scores is not None:
                self._sums[name] = scores.double().cpu() + (0 if before is None else before)

    def result(self) -> dict[str, Tensor | None]:
        return {name: None if total is None else total / self._count for name, total in self._sums.items()}


def _squared(scores: Tensor | None) -> Tensor | None:
    return None if scores is None else scores.square()
