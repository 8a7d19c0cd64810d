"""What a finished training looks like from outside, and the settings to try. Rules over plain figures; no torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log
from statistics import fmean
from typing import Any

from compress.settings.train import TrainSettings

GAP = 0.1
"""mIoU on training images less that on validation: beyond this it has learned the images and not the classes."""
FALL = 0.02
"""mIoU from the best epoch to the last."""
RISE = 0.01
"""mIoU over the last quarter, of a training that was not done."""
LOW = 0.5
"""mIoU on its own training images, of a network that could not learn them."""
DEAD = 0.1
"""Share of a layer's channels."""
DIVERGED = 2.0
"""Times the loss of a network that knows nothing: no end of a training that went downhill."""
EXPLODED = 10.0
"""Times `clip_norm`: the direction is then all that is left of most gradients."""
VANISHED = 1e-5
"""Norm of all gradients together."""

RAISED = frozenset(
    {"data.rare_images", "model.dropout", "train.augment.cutmix", "train.loss.lovasz_weight", "train.warmup"}
)
"""Settings of which findings ask for more, and never for less."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or could be better."""

    kind: str
    says: str
    tries: tuple[str, ...]
    """Settings, as `--set` takes them."""

    def __str__(self) -> str:
        return f"{self.kind}: {self.says}; try {', or '.join(f'--set {setting}' for setting in self.tries)}"


@dataclass(frozen=True)
class Trained:
    """All that the rules look at."""

    settings: TrainSettings
    history: Sequence[Mapping[str, Any]]
    """An entry an epoch, as `history.json` has them."""
    best_epoch: int
    miou: float
    """Of what is kept, on the validation split."""
    miou_train: float | None
    """Of the same on some training images, not augmented; None where nothing counted in them."""
    dead: Mapping[str, tuple[int, int]]
    """By layer: channels that are zero on all these images, and all."""
    averaged: bool = False
    """What is kept is no epoch's but the equal average's, whose metrics the last entry has as `swa`."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """All settings, by their dotted names; of a network of the user's own few are of `model`."""

    @property
    def judged(self) -> list[Mapping[str, Any]]:
        """The epochs that were validated."""
        return [epoch for epoch in self.history if epoch.get("miou") is not None]

    @property
    def longer(self) -> str:
        """The setting with which it would have gone on."""
        epochs, settings = len(self.history), self.settings
        stopped = settings.patience is not None and epochs < settings.epochs
        return "train.patience=none" if stopped else f"train.epochs={2 * epochs}"

    @property
    def kept(self) -> Mapping[str, Any]:
        """Metrics of what is kept, empty where nothing was."""
        if self.averaged:
            metrics: Mapping[str, Any] = self.history[-1]["swa"]
            return metrics
        return next((epoch for epoch in self.judged if epoch["epoch"] == self.best_epoch), {})


def diagnosed(trained: Trained) -> list[Finding]:
    """What is worst first; of one that diverged only that, whatever else follows from it."""
    rules = (_never_predicted, _gradients, _dead_channels, _learned_by_heart, _not_learned)
    found = [*_diverged(trained)] or [finding for rule in rules for finding in rule(trained)]
    return [
        replace(finding, tries=tuple(setting for setting in finding.tries if _is_new(setting, trained.recipe)))
        for finding in found
    ]


def _is_new(setting: str, recipe: Mapping[str, Any]) -> bool:
    """Whether the network has this setting, and the recipe does not do that much already."""
    name, _, value = setting.partition("=")
    if name.startswith("model.") and name not in recipe:
        return False
    if name in RAISED:
        return (recipe.get(name) or 0) < float(value)
    return recipe.get(name) != value


def _diverged(trained: Trained) -> Iterator[Finding]:
    settings, loss = trained.settings, trained.settings.loss
    classes = max((len(epoch.get("iou_per_class", ())) for epoch in trained.history), default=0)
    losses = [epoch["loss"] for epoch in trained.history if epoch["loss"] is not None]
    if not losses or not classes or loss.own is not None:  # nobody knows what one of the user's own comes to
        return
    late = fmean(losses[-max(1, len(losses) // 4) :])
    pixel = 0.0 if loss.pixel == "none" else (1 + loss.cross_entropy_weight) * log(classes)
    blind = pixel + loss.dice_weight + loss.tversky_weight + loss.lovasz_weight
    if late > DIVERGED * blind:
        clipped = () if settings.clip_norm <= 1 else ("train.clip_norm=1",)
        yield Finding(
            "divergence",
            f"the training loss is {late:.3g} on the mean of the last epochs, and {blind:.2g} for a network that knows "
            "nothing: its steps are too long",
            (f"train.learning_rate={min(settings.learning_rate / 10, 1e-3):.2g}", *clipped, "train.warmup=0.2"),
        )


def _never_predicted(trained: Trained) -> Iterator[Finding]:
    if "confusion" not in trained.kept:
        return
    names, confusion = list(trained.kept["iou_per_class"]), trained.kept["confusion"]
    seen = [name for name, row in zip(names, confusion, strict=True) if sum(row)]
    predicted = {name for name, column in zip(names, zip(*confusion, strict=True), strict=True) if sum(column)}
    missing = [name for name in seen if name not in predicted]
    if missing:
        yield Finding(
            "classes never predicted",
            f"{', '.join(missing)} occur on the validation split and are nowhere in the answers",
            (
                *("train.loss.class_weights=balanced", "data.rare_images=0.3", "train.loss.lovasz_weight=1"),
                trained.longer,
            ),
        )


def _gradients(trained: Trained) -> Iterator[Finding]:
    norms = [epoch["gradient_norm"] for epoch in trained.history if epoch.get("gradient_norm") is not None]
    rate, clip = trained.settings.learning_rate, trained.settings.clip_norm
    late = norms[-max(1, len(norms) // 4) :]
    skipped = sum(epoch.get("skipped", 0) for epoch in trained.history)
    if late and fmean(late) > EXPLODED * clip:
        yield Finding(
            "exploding gradients",
            f"their norm is {fmean(late):.3g} on the mean of the last epochs, and is cut down to {clip:g}",
            (f"train.learning_rate={rate / 3:.2g}", "train.warmup=0.2"),
        )
    elif skipped > len(trained.history) and trained.settings.precision != "float16":
        yield Finding(
            "exploding gradients",
            f"{skipped} steps had a loss or a gradient that is no number, and were skipped",
            (f"train.learning_rate={rate / 3:.2g}", "train.precision=float32"),
        )
    elif late and fmean(late) < VANISHED and trained.miou_train is not None and trained.miou_train < 1 - RISE:
        yield Finding(
            "vanishing gradients",
            f"their norm is {fmean(late):.1g} on the mean of the last epochs, and there is something left to learn",
            (f"train.learning_rate={min(1000.0, rate * 3):.2g}", "model.block=residual", "train.loss.pixel=ohem"),
        )


def _dead_channels(trained: Trained) -> Iterator[Finding]:
    worst = {name: found for name, found in trained.dead.items() if found[0] > DEAD * found[1]}
    if worst:
        named = ", ".join(f"{name} ({dead} of {width})" for name, (dead, width) in list(worst.items())[:4])
        more = f" and {len(worst) - 4} more layers" if len(worst) > 4 else ""
        yield Finding(
            "dead channels",
            f"always zero after their ReLU: {named}{more}; compress prune would take them first",
            (f"train.learning_rate={trained.settings.learning_rate / 3:.2g}", "train.warmup=0.2"),
        )


def _learned_by_heart(trained: Trained) -> Iterator[Finding]:
    settings = trained.settings
    decay = f"train.weight_decay={max(1e-3, settings.weight_decay * 10):.2g}"
    policy = ("train.augment.policy=trivial",) if settings.augment.policy == "none" else ("train.augment.cutmix=0.5",)
    patience = () if settings.patience is not None and settings.patience <= 10 else ("train.patience=10",)
    judged = trained.judged
    if trained.miou_train is not None and trained.miou_train < LOW:
        return
    if trained.miou_train is not None and trained.miou_train - trained.miou > GAP:
        yield Finding(
            "overfitting",
            f"mIoU is {trained.miou_train:.3f} on its training images and {trained.miou:.3f} on others",
            (*policy, decay, "model.dropout=0.1"),
        )
    elif judged and trained.miou - judged[-1]["miou"] > FALL and judged[-1]["epoch"] > trained.best_epoch:
        best = next((epoch for epoch in judged if epoch["epoch"] == trained.best_epoch), judged[-1])
        if None not in (best["loss"], judged[-1]["loss"]) and judged[-1]["loss"] < best["loss"]:
            yield Finding(
                "overfitting",
                f"mIoU on validation fell from {trained.miou:.3f} (epoch {trained.best_epoch}) to "
                f"{judged[-1]['miou']:.3f}, while the training loss went on falling",
                (*policy, f"train.epochs={max(1, trained.best_epoch)}", *patience),
            )


def _not_learned(trained: Trained) -> Iterator[Finding]:
    judged = trained.judged
    epochs = len(trained.history)
    before = [epoch["miou"] for epoch in judged if epoch["epoch"] <= epochs * 3 / 4]
    # Of the last epoch itself: an average that is better than every epoch is no sign that these were getting better.
    rise = judged[-1]["miou"] - max(before) if before else 0.0
    if rise > RISE and trained.best_epoch == judged[-1]["epoch"]:
        yield Finding(
            "underfitting",
            f"mIoU was still rising when training ended, by {rise:.3f} in the last quarter",
            (trained.longer,),
        )
    elif trained.miou_train is not None and trained.miou_train < LOW:
        base = trained.recipe.get("model.base")
        wider = () if base is None else (f"model.base={2 * base}",)
        yield Finding(
            "underfitting",
            f"mIoU is {trained.miou_train:.3f} even on the training images (compress train --find-lr suggests a rate)",
            (trained.longer, *wider),
        )
