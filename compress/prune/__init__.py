"""Cut channels and recover. `prune` is what the command calls, and `analyze` what it calls before there is a goal."""

from compress.prune.analyze import analyze
from compress.prune.prune import prune

__all__ = ["analyze", "prune"]
