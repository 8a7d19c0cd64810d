"""Cut a UNet++ to a smaller depth: its head at that depth then serves exactly what it has learned."""

from pathlib import Path
from typing import Any

import torch

from compress import models
from compress.budget import Accuracy, Budget
from compress.checkpoint import ModelCard
from compress.data.loader import ValidationImages
from compress.models.unetpp import UNetPlusPlus
from compress.progress import say
from compress.prune.step import PruneStep
from compress.train.precision import pick_device
from compress.train.validation import validate
from export.errors import UsageError


def cut_levels(step: PruneStep) -> dict[str, Any]:
    """Keep `prune.levels` levels of the parent; nothing has to recover. Returns the step's result.

    Raises UsageError for a parent that cannot be cut to so many levels.
    """
    parent, levels = step.parent, step.recipe.prune.levels
    assert levels is not None
    network = parent.network()
    require_levels(network, levels, parent.path)
    card = restricted(parent.card, levels)
    child = card.build()
    state = network.state_dict()
    child.load_state_dict({name: state[name] for name in child.state_dict()})
    validation = ValidationImages(
        step.dataset,
        size=parent.card.size,
        multiple=parent.card.size_multiple,
        cache_gb=step.recipe.data.cache_gb,
    )
    probe = step.probe(network)
    device = pick_device(step.recipe.train.device)
    before = validate(network.to(device), validation, device)
    Budget.of(step.recipe.prune).look_at_floors(before.iou_per_class)
    measured = probe.measure(step.graph(child))
    measured.doubt()
    say(f"cut to depth {levels}: {measured.speedup:.2f}x faster than its parent")
    accuracy = Accuracy.of(before, validate(child.to(device), validation, device))
    result = {
        "speedup": measured.speedup,
        "disturbed": measured.disturbed,
        "latency_size": list(probe.size),
        "levels": levels,
        **accuracy.as_result(),
    }
    return step.keep(child, result, arguments=card.arguments, size_multiple=card.size_multiple, pruning=card.pruning)


def restricted(card: ModelCard, levels: int) -> ModelCard:
    """`card` for the part of its network that leads to depth `levels`, pruned as the whole was."""
    arguments = {**card.arguments, "levels": levels}
    network = models.build(card.factory, arguments)
    size_multiple = models.size_multiple(network)
    plans = []
    for plan in card.pruning:
        plans.append(plan.within(network, channels=card.channels))
        network = plans[-1].apply(network, channels=card.channels)
    return card.model_copy(update={"arguments": arguments, "pruning": tuple(plans), "size_multiple": size_multiple})


def require_levels(network: torch.nn.Module, levels: int, name: Path | str) -> None:
    """Raises UsageError when `network`, which is called `name`, cannot be cut to so many levels."""
    if not isinstance(network, UNetPlusPlus) or len(network.heads) < 2:
        raise UsageError(
            f"{name} has no smaller network inside; --levels cuts a UNet++ that was trained with deep "
            "supervision (model.factory=unetpp); give --speedup or --ratio"
        )
    if levels >= network.levels:
        raise UsageError(f"{name} has {network.levels} levels; --levels takes 1 to {network.levels - 1}")
