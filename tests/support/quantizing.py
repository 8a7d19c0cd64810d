"""How tests of `quantize` call it, and what they put in the place of its parts.

patch(monkeypatch, "parity_images", interrupt)
with pytest.raises(KeyboardInterrupt):
    quantize(trained.path, discs, out, recipe("quantize.calibration=minmax"))
"""

from importlib import import_module
from typing import Any

import pytest
from support.recipes import TINY_SETTINGS

from compress.recipe import Recipe

BUDGET = ("quantize.calibration=minmax", "quantize.max_drop=0.01")
"""What the fixture `spoilt` misses, unless two layers stay in float."""


def recipe(*settings: str) -> Recipe:
    """The tiny one with `settings` besides."""
    return Recipe.load(None, [*TINY_SETTINGS, *settings])


def patch(
    monkeypatch: pytest.MonkeyPatch, name: str, value: object, module: str = "compress.quantize.quantize"
) -> None:
    """In the module, whose name in its package is that of its function."""
    monkeypatch.setattr(import_module(module), name, value)


def interrupt(*_: object) -> Any:
    """In the place of a function: the kill comes there."""
    raise KeyboardInterrupt
