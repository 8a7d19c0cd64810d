"""A user's own network, named `package.module:factory` or `path/to/file.py:factory`.

The contract: `factory(channels=, classes=, **arguments)` returns an `nn.Module` from float images NCHW, normalised to
about -1..1, to logits NKHW of the same height and width. Without an attribute `size_multiple` (the number that height
and width must be multiples of), that number is found by trial.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from compress.models.contract import found_multiple, problems
from compress.own import OwnCode
from export.errors import ModelError


def network_code(factory: str) -> OwnCode:
    """The user's code that `factory` names; all its errors are ModelErrors."""
    return OwnCode(factory, "a network", ModelError)


def build(factory: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A freshly initialised network in eval mode, checked against the contract.

    Raises ModelError with everything that is wrong.
    """
    code = network_code(factory)
    if isinstance(made := code.found(), nn.Module):
        raise code.is_none(f"a network already, of type {type(made).__name__}")
    network = code.called(arguments)
    if not isinstance(network, nn.Module):
        raise code.wrong(f"it returns something of type {type(network).__name__}; it must return a torch.nn.Module")
    channels, classes = int(arguments["channels"]), int(arguments["classes"])
    if not hasattr(network, "size_multiple"):
        network.size_multiple = found_multiple(network, channels)  # type: ignore[assignment]
    wrong = problems(network, channels=channels, classes=classes)
    if wrong:
        raise ModelError(factory, wrong)
    return network
