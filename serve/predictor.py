"""The seam between HTTP and the model: tests put another predictor here, and so could another runtime."""

import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol, Self

from export.bundle import Bundle
from export.errors import BundleError
from export.images import U8
from export.manifest import Manifest
from export.providers import chosen
from export.refine import Figures
from export.runtime import CPU, OnnxModel
from export.sessions import MemoryPool
from serve.folders import ModelFolders, newest, verify
from serve.settings import ServeSettings

logger = logging.getLogger(__name__)

USUAL_SIZE: Final = (512, 512)
"""Height and width that are assumed of the images of a bundle that names no size."""


@dataclass(frozen=True)
class SessionSettings:
    """How the runtime's session of every bundle runs."""

    threads: int = 1
    """Threads of one run."""
    memory_pool: MemoryPool = "shrink"
    providers: Sequence[str] = (CPU,)
    """ONNX Runtime's names; the first that supports an operator runs it."""
    concurrency: int = 1
    """Runs at once."""
    max_pixels: int = sys.maxsize
    """Of one run."""

    @classmethod
    def of(cls, settings: ServeSettings) -> Self:
        """How a server with these settings runs its models.

        Raises UsageError when none of the providers is installed.
        """
        return cls(
            settings.threads_per_run,
            settings.memory_pool,
            chosen(settings.providers),
            settings.concurrency,
            settings.max_pixels,
        )


class Predictor(Protocol):
    """What answers requests for one model. Several threads call it at once."""

    @property
    def manifest(self) -> Manifest:
        """Name, channels, geometry and classes: what the server needs to know around the model."""

    def predict(self, images_NHWC: U8) -> U8:
        """Class indices NHW of images that are resized and padded as the manifest says."""

    def logits(self, images_NHWC: U8) -> Figures:
        """Logits NKHW of such images; called only if the manifest lists them among the outputs."""


class BundlePredictor:
    """A bundle's graph in one ONNX Runtime session, shared by all threads."""

    def __init__(self, bundle: Bundle, session: SessionSettings, model: OnnxModel | None = None) -> None:
        """`model` is the bundle's model, if that has been opened already, with `session`."""
        self.manifest = bundle.manifest
        self._model = model or _opened(bundle, session)
        runs_on = [name for name in session.providers if name in self._model.providers]
        if runs_on[:1] != list(session.providers[:1]):
            logger.warning(
                "%s: %s could not be started; %s serves instead", bundle.path, session.providers[0], runs_on[0]
            )

    def predict(self, images_NHWC: U8) -> U8:
        return self._model.masks(images_NHWC)

    def logits(self, images_NHWC: U8) -> Figures:
        return self._model.logits(images_NHWC)


def _opened(bundle: Bundle, session: SessionSettings) -> OnnxModel:
    return replace(bundle, providers=tuple(session.providers)).model(
        threads=session.threads,
        memory_pool=session.memory_pool,
        usual_pixels=min(math.prod(bundle.manifest.own_size or USUAL_SIZE), session.max_pixels),
        runs_at_once=session.concurrency,
    )


def open_bundle(path: Path, name: str, version: str, session: SessionSettings) -> BundlePredictor:
    """Load the bundle in `path`, which must have this name and version, and verify it as it will serve: the golden
    answers are compared with those of the session that the predictor then uses.

    Raises BundleError for one that must not serve.
    """
    verified = verify(path, name, version, open_model=lambda bundle: _opened(bundle, session))
    for warning in verified.warnings:
        logger.warning("%s: %s", verified.bundle.path, warning)
    return BundlePredictor(verified.bundle, session, verified.model)


def open_newest(folders: ModelFolders, session: SessionSettings) -> list[BundlePredictor]:
    """Open the newest version of every model.

    Raises BundleError with everything that is wrong in any of them.
    """
    opened, errors = [], []
    for name, versions in folders.models().items():
        try:
            version = newest(list(versions))
            opened.append(open_bundle(versions[version], name, version, session))
        except BundleError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        where = ", ".join(str(error.where) for error in errors)
        raise BundleError(where, [f"{error.where}: {problem}" for error in errors for problem in error.problems])
    return opened
