"""`compress prune --analyze`: how much each group of layers matters, found by cutting it alone."""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from compress.data.evaluation import drawn_by_name
from compress.progress import Task, say, task
from compress.prune.evidence import Evidence
from compress.prune.importance import scores_by
from compress.prune.scores import Scores, nearest_width
from compress.prune.step import PruneStep, inputs, opened
from compress.recipe import Recipe
from compress.sensitivity import Analysis, GroupSensitivity, SingleCut
from compress.steps import StepPlan, finished, running
from compress.train import own
from compress.train.batchnorm import reestimate
from compress.train.images import training_and_validation_images, window_settings
from compress.train.precision import pick_device
from compress.train.validation import validate
from export.files import write_json

ANALYSIS = "analysis.json"
SHARES = (0.75, 0.5, 0.25)


def analyze(
    parent: Path,
    data: Path,
    out: Path,
    recipe: Recipe | None = None,
    *,
    write: Callable[[Analysis, Path], None] = lambda *_: None,
) -> Analysis:
    """Cut each group of coupled layers of the checkpoint `parent` to three quarters, a half and a quarter of its
    channels, with the others whole, and score the result on the validation split of `data`. Nothing is fine-tuned.

    `write` adds a report to the folder, beside `analysis.json`. A run that was interrupted continues with the groups
    that are left. Raises CheckpointError, DatasetError, BusyError, UsageError.
    """
    recipe = recipe or Recipe()
    source, dataset = opened(parent, data, out)
    settings = recipe.prune
    plan = StepPlan(
        "analysis",
        {**inputs(source, dataset), **own.sources(settings.finetune, recipe.train.augment)},
        {
            "shares": SHARES,
            "importance": settings.importance,
            "multiple": settings.channel_multiple,
            "images": settings.analysis_images,
            "data": window_settings(recipe),
            "loss": settings.finetune.loss.model_dump(mode="json"),
            "batch_size": settings.finetune.batch_size,
            "seed": settings.finetune.seed,
            "device": recipe.train.device,
        },
    )
    if finished(out, plan):
        say(f"{out} is up to date")
    else:
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"size": source.card.size})})
        with running(out, plan) as folder:
            analysis = _Analyzer(PruneStep(folder, plan, source, dataset, recipe)).run()
            write(analysis, folder.path)
            folder.record(plan, {"miou_parent": analysis.miou_parent, "groups": len(analysis.groups)})
    return Analysis.model_validate_json((out / ANALYSIS).read_text(encoding="utf-8"))


class _Analyzer:
    """Cuts and scores group by group; each group's figures are saved as they come."""

    def __init__(self, step: PruneStep) -> None:
        self._step = step
        self._device = pick_device(step.recipe.train.device)
        self._network = step.parent.network()
        count, split = step.recipe.prune.analysis_images, step.dataset.split("val")
        self._images, self._validation = training_and_validation_images(
            step.dataset,
            step.recipe,
            step.parent.card.size_multiple,
            self._device,
            validated=None if count is None else drawn_by_name(split, count),
        )

    def run(self) -> Analysis:
        step, settings = self._step, self._step.recipe.prune
        evidence = Evidence(self._images, len(self._validation.classes), settings.finetune, self._device)
        scores = scores_by(settings, self._network, channels=step.parent.card.channels, evidence=evidence)
        widths = {name: _widths(len(raw), multiple=settings.channel_multiple) for name, raw in scores.raw.items()}
        analysis = self._begun()
        done = {group.group for group in analysis.groups}
        behind = sum(len(widths[name]) for name in done)
        with task("analyze", sum(map(len, widths.values())), done=behind) as bar:
            for name in [name for name in widths if name not in done]:
                group = self._group(scores, name, widths[name], bar)
                analysis = analysis.model_copy(update={"groups": (*analysis.groups, group)})
                write_json(step.folder.path / ANALYSIS, analysis.model_dump(mode="json"))
        return analysis

    def _begun(self) -> Analysis:
        """The analysis that an earlier run left, or one with the parent's score alone."""
        saved = self._step.folder.decided(ANALYSIS)
        if saved is not None:
            return Analysis.model_validate(saved)
        settings = self._step.recipe.prune
        return Analysis(
            parent=str(self._step.parent.path),
            data=str(self._step.dataset.path),
            images=len(self._validation),
            importance=settings.importance,
            multiple=settings.channel_multiple,
            shares=SHARES,
            miou_parent=self._miou(self._network),
            groups=(),
        )

    def _group(self, scores: Scores, name: str, widths: dict[int, float], bar: Task) -> GroupSensitivity:
        cuts = []
        for kept, share in widths.items():
            child = scores.plan_of({name: kept}).apply(self._network, channels=self._step.parent.card.channels)
            reestimate(child.to(self._device), self._images)
            cuts.append(SingleCut(share=share, kept=kept, miou=self._miou(child)))
            bar.advance(1, mIoU=cuts[-1].miou)
        return GroupSensitivity(group=name, width=len(scores.raw[name]), cuts=tuple(cuts))

    def _miou(self, network: nn.Module) -> float:
        return validate(network.to(self._device), self._validation, self._device).miou


def _widths(width: int, *, multiple: int) -> dict[int, float]:
    """The widths to try, with the share that each stands for; a width that two shares lead to belongs to the first."""
    found: dict[int, float] = {}
    for share in SHARES:
        kept = nearest_width(width, share * width, multiple)
        if kept < width:
            found.setdefault(kept, share)
    return found
