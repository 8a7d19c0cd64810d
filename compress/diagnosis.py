"""Diagnose a finished training from its figures, and name settings to try. Rules over plain values; no torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log
from statistics import fmean
from typing import Any

from compress.settings.train import TrainSettings

GAP = 0.1
"""mIoU on training images less that on validation: above this, the network learned the images and not the classes."""
FALL = 0.02
"""mIoU lost from the best epoch to the last: above this, training went on too long."""
RISE = 0.01
"""mIoU gained over the last quarter: above this, training ended too early."""
LOW = 0.5
"""mIoU on its own training images: below this, the network could not learn them."""
DEAD = 0.1
"""Share of a layer's channels that are always zero: above this, the layer is reported."""
DIVERGED = 2.0
"""Times the loss of a network that knows nothing: no training that went downhill ends above this."""
EXPLODED = 10.0
"""Times `clip_norm`: above this, clipping leaves of most gradients only the direction."""
VANISHED = 1e-5
"""Norm of all gradients together: below this, they have vanished."""

RAISED = frozenset(
    {"data.rare_images", "model.dropout", "train.augment.cutmix", "train.loss.lovasz_weight", "train.warmup"}
)
"""Settings that findings raise and never lower."""


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
    """One entry per epoch, as in `history.json`."""
    best_epoch: int
    miou: float
    """Of the weights that are kept, on the validation split."""
    miou_train: float | None
    """Of the same weights on some training images, not augmented; None where all of these are void."""
    dead: Mapping[str, tuple[int, int]]
    """By layer: the number of channels that are zero on all these images, and of all channels."""
    averaged: bool = False
    """The equal average is kept instead of an epoch; its metrics are `swa` in the last entry of the history."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """All settings, by their dotted names; a network of the user's own has few under `model`."""

    @property
    def judged(self) -> list[Mapping[str, Any]]:
        """The epochs that were validated."""
        return [epoch for epoch in self.history if epoch.get("miou") is not None]

    @property
    def longer(self) -> str:
        """The setting with which training would have gone on."""
        epochs, settings = len(self.history), self.settings
        stopped = settings.patience is not None and epochs < settings.epochs
        return "train.patience=none" if stopped else f"train.epochs={2 * epochs}"

    @property
    def kept(self) -> Mapping[str, Any]:
        """The metrics of the weights that are kept; empty where there are none."""
        if self.averaged:
            metrics: Mapping[str, Any] = self.history[-1]["swa"]
            return metrics
        return next((epoch for epoch in self.judged if epoch["epoch"] == self.best_epoch), {})


def diagnosed(trained: Trained) -> list[Finding]:
    """The findings, the worst first; for a training that diverged only that, because all else follows from it."""
    rules = (_never_predicted, _gradients, _dead_channels, _learned_by_heart, _not_learned)
    found = [*_diverged(trained)] or [finding for rule in rules for finding in rule(trained)]
    return [
        replace(finding, tries=tuple(setting for setting in finding.tries if _is_new(setting, trained.recipe)))
        for finding in found
    ]


def _is_new(setting: str, recipe: Mapping[str, Any]) -> bool:
    """Whether the network has this setting, and the recipe does not do as much already."""
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
    # The scale of a user's own loss is unknown, and so is that of attention maps.
    if not losses or not classes or loss.own is not None or settings.attention_weight:
        return
    late = fmean(losses[-max(1, len(losses) // 4) :])
    pixel = 0.0 if loss.pixel == "none" else (1 + loss.cross_entropy_weight) * log(classes)
    blind = pixel + loss.dice_weight + loss.tversky_weight + loss.lovasz_weight
    if late > DIVERGED * blind:
        clipped = () if settings.clip_norm <= 1 else ("train.clip_norm=1",)
        yield Finding(
            "divergence",
            f"the training loss averages {late:.3g} over the last epochs, and a network that knows nothing has "
            f"{blind:.2g}: the steps are too long",
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
            f"{', '.join(missing)} occur in the validation split and nowhere in the predictions",
            (
                *(["train.loss.class_weights=balanced"] if trained.settings.loss.pixel != "none" else []),
                *("data.rare_images=0.3", "train.loss.lovasz_weight=1"),
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
            f"their norm averages {fmean(late):.3g} over the last epochs, and is clipped to {clip:g}",
            (f"train.learning_rate={rate / 3:.2g}", "train.warmup=0.2"),
        )
    elif skipped > len(trained.history) and trained.settings.precision != "float16":
        yield Finding(
            "exploding gradients",
            f"{skipped} steps were skipped, because their loss or gradient was not finite",
            (f"train.learning_rate={rate / 3:.2g}", "train.precision=float32"),
        )
    elif late and fmean(late) < VANISHED and trained.miou_train is not None and trained.miou_train < 1 - RISE:
        yield Finding(
            "vanishing gradients",
            f"their norm averages {fmean(late):.1g} over the last epochs, and there is something left to learn",
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
            f"mIoU is {trained.miou_train:.3f} on its training images and {trained.miou:.3f} on validation",
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
    # Of the last epoch itself: an average that is better than every epoch does not show that the epochs improved.
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
