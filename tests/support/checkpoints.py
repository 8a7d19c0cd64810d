"""Checkpoint folders for tests, from networks that were never trained.

made = write_checkpoint(tmp_path / "ckpt", random_unet(), size=(32, 48))
"""

from pathlib import Path
from typing import Any

from support.networks import tiny
from torch import nn

from compress import checkpoint
from compress.checkpoint import Checkpoint, ModelCard
from compress.models import size_multiple

_COLOURS = ((0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115))


def write_checkpoint(
    path: Path,
    network: nn.Module,
    *,
    size: tuple[int, int] | None = None,
    pruning: tuple[Any, ...] = (),
    class_names: tuple[str, ...] | None = None,
    factory: str = "unet",
    **arguments: Any,
) -> Checkpoint:
    """Write `network`, as `factory` builds it from `arguments` (default: `TINY`) and the plans in `pruning` cut it."""
    full = tiny(factory, **arguments)
    names = class_names or tuple(f"class-{k}" for k in range(full["classes"]))
    card = ModelCard(
        factory=factory,
        arguments=full,
        pruning=pruning,
        channels=full["channels"],
        classes=names,
        colours=_COLOURS[: len(names)],
        size=size,
        size_multiple=size_multiple(network),
        parents={"data": "ab" * 32},
    )
    path.mkdir(parents=True)
    checkpoint.save(path, network, card)
    return checkpoint.load(path)
