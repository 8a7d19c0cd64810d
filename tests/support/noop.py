"""Replace one function of the program by one that does nothing, and run tests that must notice.

The name after the = says what "nothing" is; see `NOTHING`. A function that others import by name is replaced where it
is used: `compress.train.objective:distillation`, not `compress.train.losses:distillation`.
"""

import contextlib
import importlib
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from support import shared

NOTHING: Mapping[str, Callable[..., Any]] = {
    "none": lambda *_, **__: None,
    "false": lambda *_, **__: False,
    "true": lambda *_, **__: True,
    "empty": lambda *_, **__: [],
    "no options": lambda *_, **__: {},
    "no deadline": lambda _: float("inf"),
    "first": lambda first, *_, **__: first,
    "second": lambda _, second, *__, **___: second,
    "third": lambda _, __, third, *___, **____: third,
    "minmax": lambda *_, **__: "minmax",
    "as a whole": lambda *_, **__: importlib.import_module("serve.looks").Look(),
    "no parts": lambda *_, **__: importlib.import_module("compress.models.parts").NO_PARTS,
    "first two": lambda first, second, *_, **__: (first, second),
    "last two": lambda *given: given[-2:],
    "nothing apart": lambda student, _: sum(maps.sum() for maps in student.values()) * 0,
    "zero": lambda first, *_, **__: first.sum() * 0,
    "small norm": lambda parameters, *_, **__: sum(parameter.detach().sum() for parameter in parameters) * 0,
    "nearest": lambda *_: importlib.import_module("torch").nn.Upsample(scale_factor=2),
    "whole image": lambda _, size, *__: _window_of(size),
    "served": lambda network, images: [network(images)],
    "peak": lambda schedule, _: importlib.import_module("compress.train.schedule").Pace(schedule._peak),
    "whole": lambda _, images, masks, __, second: [_part(images, masks, second=second)],
    "no penalty": lambda _, network: sum(parameter.sum() for parameter in network.parameters()) * 0,
    "any share": lambda _, count: importlib.import_module("torch").rand(count),
    "without decay": lambda network, settings: importlib.import_module("compress.train.optimizer").adamw(
        network, settings.model_copy(update={"weight_decay": 0.0})
    ),
    "all at once": lambda freezing, epoch: 0 if epoch < freezing._settings.epochs else len(freezing._stages),
    "unmixed": lambda _, images, __: (images, None),
    "no change": lambda _, count, __: _no_change(count),
    "no fall": lambda *_: 1.0,
    "same rate": lambda optimizer, rate: [group.update(lr=rate) for group in optimizer.param_groups],
    "context": lambda *_, **__: contextlib.nullcontext(),
    "by magnitude": lambda _, network, *, channels, **__: _scores_of(network, channels=channels),
    "most important": lambda scores, ratio: scores._most_important(ratio),
}
"""`first`, `second` ... return that argument (self counts); the others return the least that callers can work with."""


def _scores_of(*given: Any, **named: Any) -> Any:
    return importlib.import_module("compress.prune.importance").scores_of(*given, **named)


def _part(*given: Any, **named: Any) -> Any:
    return importlib.import_module("compress.train.objective").Part(*given, **named)


def _window_of(size: tuple[int, int]) -> Any:
    crop = importlib.import_module("compress.data.crop")
    return crop.Window(*map(crop.Side.whole, size))


def _no_change(count: int) -> Any:
    change = importlib.import_module("compress.data.change")
    return change.Change(importlib.import_module("torch").zeros(len(change.FIELDS), count))


@dataclass(frozen=True)
class Trial:
    """A replacement, such as compress.train.losses:_focused=first, and the tests that must fail with it."""

    replaced: str
    tests: str


def run(trials: Sequence[Trial], *, root: Path, logs: Sequence[Path]) -> None:
    """Run the fast tests of each trial with its replacement, until one fails; what they print goes to the trial's log.

    All in one process, so that modules are imported once, forked from one that has imported the slowest of them.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["compress.pipeline", "kornia", "onnxscript", "hypothesis", "pytest"])
    process = context.Process(target=_run, args=(trials, root, logs))
    process.start()
    process.join()
    assert process.exitcode == 0, [log.read_text() for log in logs if log.exists()]


def _run(trials: Sequence[Trial], root: Path, logs: Sequence[Path]) -> None:
    os.chdir(root)
    # These runs take no settings from the worker that asked for them.
    for name in [name for name in os.environ if name.startswith("PYTEST_")]:
        del os.environ[name]
    quietly = ["-p", "no:xdist", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    graphs = Path(os.environ[shared.FOLDER])
    with TemporaryDirectory() as home:
        for index, (trial, log) in enumerate(zip(trials, logs, strict=True)):
            with log.open("wb") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            # Nor do they share what the whole program, or one with another replacement, has made; but for exported
            # graphs, because each is named after all that it was made from.
            own = Path(home) / str(index)
            own.mkdir()
            for graph in graphs.glob("*.onnx"):
                (own / graph.name).symlink_to(graph)
            tempfile.tempdir = os.environ[shared.FOLDER] = str(own)
            with _replaced(trial.replaced):
                pytest.main([*quietly, "-x", "-q", "-m", "not slow", trial.tests])
            sys.stdout.flush()


@contextlib.contextmanager
def _replaced(replaced: str) -> Iterator[None]:
    place, _, nothing = replaced.partition("=")
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    target: Any = importlib.import_module(module)
    for owner in owners:
        target = getattr(target, owner)
    # The attribute as the owner itself holds it, so that a static method stays one; None where a base class holds it.
    own = vars(target).get(name)
    getattr(target, name)  # raises for what is not there to be replaced
    setattr(target, name, NOTHING[nothing])
    try:
        yield
    finally:
        if own is None:
            delattr(target, name)
        else:
            setattr(target, name, own)
