"""How tests of `quantize` call it, and how they replace its parts.

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
"""A budget that the fixture `spoilt` misses, unless two layers stay in float."""


def recipe(*settings: str) -> Recipe:
    """The tiny recipe with `settings` added."""
    return Recipe.load(None, [*TINY_SETTINGS, *settings])


def patch(
    monkeypatch: pytest.MonkeyPatch, name: str, value: object, module: str = "compress.quantize.quantize"
) -> None:
    """Patch the module itself: as an attribute of its package, the name `quantize` is the function."""
    monkeypatch.setattr(import_module(module), name, value)


def interrupt(*_: object) -> Any:
    """Stands in for a function at which the run is killed."""
    raise KeyboardInterrupt
