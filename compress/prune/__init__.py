"""Cut channels and recover. `prune` is what the command calls."""

from compress.prune.prune import prune

__all__ = ["prune"]
