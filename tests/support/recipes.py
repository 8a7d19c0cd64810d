"""A recipe with which a whole run takes seconds."""

from compress.recipe import Recipe

TINY_SETTINGS = [
    "model.base=16",
    "model.depth=2",
    "train.epochs=8",
    "train.batch_size=4",
    "train.learning_rate=0.01",
    "train.ema_decay=0.9",
    "train.precision=float32",
    "prune.ratio=0.5",
    "prune.channel_multiple=8",
    "prune.finetune.epochs=3",
    "prune.finetune.batch_size=4",
    "prune.finetune.ema_decay=0.9",
    "quantize.calibration_images=4",
    "quantize.force=true",
    "quantize.max_drop=0.2",
    "quantize.rewrites=false",
    "quantize.equalise=false",
    "quantize.bias_correction=false",
    "bench.rounds=3",
    "bench.threads=1",
]
"""As `--set` takes them. `force`, because so small a network is not always faster in INT8. Its operators are not timed
in other forms, and nothing is equalised or corrected: that would take longer than the rest."""

TINY_RECIPE = Recipe.load(None, TINY_SETTINGS)


def by_speedup(*settings: str) -> Recipe:
    """The tiny recipe without its ratio, and without a latency table, whose layers take a minute to measure."""
    without_ratio = [setting for setting in TINY_SETTINGS if not setting.startswith("prune.ratio")]
    return Recipe.load(None, [*without_ratio, "prune.finetune.epochs=1", "prune.search=ratio", *settings])
