"""Networks, and the list of factories that checkpoints name; a name with a colon is a user's own (`own`).

A factory takes plain keyword arguments and returns an `nn.Module` from normalised images NCHW to logits NKHW; the full
contract is in `contract`. A checkpoint stores the factory's name and arguments, never code.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from compress.models import own
from compress.models.contract import all_logits, size_multiple
from compress.models.encoder_unet import EncoderUNet
from compress.models.encoders import Encoder
from compress.models.unet import UNet
from compress.models.unetpp import UNetPlusPlus
from compress.own import FORMS, is_own
from export.errors import UsageError

__all__ = [
    "FACTORIES",
    "all_logits",
    "build",
    "counterpart",
    "size_multiple",
    "source_sha256",
    "start_from_pretrained",
]

FACTORIES: Mapping[str, Callable[..., nn.Module]] = {
    "unet": UNet,
    "unetpp": UNetPlusPlus,
    "encoder-unet": EncoderUNet,
}


def build(factory: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A freshly initialised network.

    Raises UsageError for an unknown factory, TypeError or ValueError for arguments that a built-in network does not
    take, and ModelError for anything wrong with a user's own network.
    """
    if is_own(factory):
        return own.build(factory, arguments)
    if factory not in FACTORIES:
        raise UsageError(f"no network is called {factory!r}; known: {', '.join(FACTORIES)}, and your own as {FORMS}")
    return FACTORIES[factory](**arguments)


def source_sha256(factory: str) -> str | None:
    """SHA-256 of the file that holds a user's own factory; None for a built-in one.

    Raises ModelError when there is no such file.
    """
    return own.network_code(factory).source_sha256() if is_own(factory) else None


def start_from_pretrained(network: nn.Module) -> None:
    """Load pretrained weights into the encoder if `network` was built with `pretrained`.

    Raises MissingExtraError or RecipeError when there are none, WorkFailedError when they cannot be fetched.
    """
    if isinstance(network, EncoderUNet) and network.pretrained:
        network.load_pretrained()


def counterpart(network: nn.Module, state: Mapping[str, Tensor]) -> tuple[nn.Module, Mapping[str, Tensor]]:
    """The module of `network` that a state dict is for, and the state under that module's names.

    The state of a bare classifier is for the encoder, if there is one; any other is for the whole network.
    """
    encoder = getattr(network, "encoder", None)
    if isinstance(encoder, Encoder) and not any(name.startswith("encoder.") for name in state):
        return encoder, encoder.from_classifier(state)
    return network, state
