"""Which parts of a pretrained encoder learn: none at first, then one after another, the deepest first.

The first steps of a fresh decoder are large and arbitrary; an encoder that follows them forgets what it has learned.
Gradual unfreezing: Howard and Ruder 2018 (arXiv:1801.06146).
"""

from collections.abc import Iterator

from torch import nn

from compress.models.encoders import Encoder
from compress.settings.fit import FitSettings, FreezeSettings
from export.errors import RecipeError


class Freezing:
    """Which stages of `network` are frozen in which epoch: their weights, and the statistics of their BatchNorm."""

    def __init__(self, network: nn.Module, settings: FreezeSettings) -> None:
        self._settings = settings
        encoder = pretrained_encoder(network)
        self._stages = [] if encoder is None else list(stages(encoder))

    def apply(self, epoch: int) -> None:
        """Freeze the stages that do not learn in epoch 0, 1, ..., of a network just put into training mode."""
        if not self._settings.epochs:
            return
        learning = self.learning(epoch)
        for depth, stage in enumerate(self._stages):
            learns = depth >= len(self._stages) - learning
            for module in stage:
                module.requires_grad_(learns)
                if not learns:
                    module.eval()

    def learning(self, epoch: int) -> int:
        """How many stages learn, counted from the deepest."""
        if epoch < self._settings.epochs:
            return 0
        if self._settings.stage_epochs == 0:
            return len(self._stages)
        return min(len(self._stages), 1 + (epoch - self._settings.epochs) // self._settings.stage_epochs)


def require_encoder(network: nn.Module, settings: FitSettings) -> None:
    """Raises RecipeError when `settings` freeze stages, or give each its own rate, without a pretrained encoder."""
    asked = {
        "freeze.epochs": (settings.freeze.epochs > 0, "that could be frozen"),
        "layer_decay": (settings.layer_decay < 1, "whose stages could learn at rates of their own"),
    }
    for name, (is_asked, what_for) in asked.items():
        if is_asked and pretrained_encoder(network) is None:
            raise RecipeError(
                f"{settings.SECTION}.{name}",
                [f"the network has no pretrained encoder {what_for}; leave it out, or set model.pretrained"],
            )


def pretrained_encoder(network: nn.Module) -> nn.Module | None:
    """`network.encoder` where `network.pretrained` says that its weights come from elsewhere."""
    encoder = getattr(network, "encoder", None) if getattr(network, "pretrained", False) else None
    return encoder if isinstance(encoder, nn.Module) else None


def stages(encoder: nn.Module) -> Iterator[list[nn.Module]]:
    """The parts of an encoder that have weights, from the image on.

    They are its children, or the items of a child that is a list, or a sequence of sequences; a BatchNorm belongs to
    the part before it. An encoder without children is one stage.
    """
    found: list[list[nn.Module]] = []
    for child in (encoder.trunk if isinstance(encoder, Encoder) else encoder).children():
        for part in child.children() if _is_of_stages(child) else [child]:
            if isinstance(part, nn.BatchNorm2d) and found:
                found[-1].append(part)
            elif any(True for _ in part.parameters()):
                found.append([part])
    yield from found or [[encoder]]


def _is_of_stages(child: nn.Module) -> bool:
    nested = isinstance(child, nn.Sequential) and all(isinstance(part, nn.Sequential) for part in child)
    return nested or isinstance(child, nn.ModuleList)
