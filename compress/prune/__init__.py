"""Cut channels and recover: `prune` is behind `compress prune`, `analyze` behind `compress prune --analyze`."""

from compress.prune.analyze import analyze
from compress.prune.prune import prune

__all__ = ["analyze", "prune"]
