"""`compress train --find-lr`: which learning rate a training could use, before it is run."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

from compress.data.check import require_sound
from compress.progress import say, task
from compress.rates import RateTest, has_exploded
from compress.recipe import Recipe
from compress.train.clock import Clock
from compress.train.feed import Fed, Feed
from compress.train.freeze import Freezing, require_encoder
from compress.train.images import training_images
from compress.train.initial import initial_network
from compress.train.losses import class_weights
from compress.train.objective import Objective
from compress.train.precision import choose, pick_device
from compress.train.runtime import Runtime
from compress.train.schedule import Pace
from compress.train.sparsity import penalty_of
from compress.train.step import Stepper
from export.errors import WorkFailedError

STEPS = 100
LOWEST, HIGHEST = 1e-6, 1.0


def find_rate(data: Path, recipe: Recipe | None = None, *, init: Path | None = None) -> RateTest:
    """Train for up to `STEPS` steps while the learning rate rises from `LOWEST` to `HIGHEST`, then discard the network.

    Everything else is as the recipe says. It ends early when the loss explodes. Raises what `train` raises, and
    WorkFailedError when not even the first loss is finite.
    """
    recipe = recipe or Recipe()
    dataset = require_sound(data, recipe.data.channels)
    network, _, multiple = initial_network(recipe, dataset, init)
    device = pick_device(recipe.train.device)
    choice = choose(recipe.train.precision, device)
    say(f"trying learning rates on {device} in {choice.precision} ({choice.reason})")
    images = training_images(dataset, recipe, multiple, device)
    runtime = Runtime(device, choice.precision)
    network.to(device)
    weights_K = class_weights(recipe.train.loss, images.class_pixels(len(dataset.classes)))
    objective = Objective(
        recipe.train.loss,
        None if weights_K is None else weights_K.to(device),
        None,
        penalty_of(recipe.train.sparsity, network, dataset.channels),
    )
    stepper = Stepper(network, objective, recipe.train.model_copy(update={"ema_decay": 0.0}), runtime)
    network.train()
    require_encoder(network, recipe.train)
    Freezing(network, recipe.train.freeze).apply(0)
    batches = _endless(Feed(images, recipe.train, recipe.train.augment, runtime, Clock(runtime)))
    rates: list[float] = []
    losses: list[float] = []
    with task("learning rates", STEPS) as bar:
        for step, batch in enumerate(itertools.islice(batches, STEPS)):
            rate = LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1))
            loss = stepper.take(batch, Pace(rate))
            bar.advance(1, rate=rate, loss=math.nan if loss is None else loss)
            # float16 skips steps until it has found its scale; in other formats a loss that is not finite is the end.
            if loss is None and runtime.precision != "float16":
                break
            if loss is not None:
                rates.append(rate)
                losses.append(loss)
            if has_exploded(losses):
                break
    if not rates:
        raise WorkFailedError(
            f"the loss or its gradient is not finite at a learning rate of {LOWEST:g}, so the rate is not the cause; "
            "check the images, train.loss and train.augment, or set train.precision=float32"
        )
    return RateTest(data=str(data), rates=tuple(rates), losses=tuple(losses))


def _endless(feed: Feed) -> Iterator[Fed]:
    """Epoch after epoch."""
    for epoch in itertools.count():
        yield from feed.epoch(epoch, first=0)
