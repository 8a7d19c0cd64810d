"""The seam between HTTP and the model: tests put something else here, and so may another runtime."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from export.bundle import Bundle, verify
from export.errors import BundleError, UsageError
from export.images import U8
from export.manifest import Manifest

logger = logging.getLogger(__name__)


class Predictor(Protocol):
    """What answers requests for one model. Several threads call it at once."""

    @property
    def manifest(self) -> Manifest:
        """Name, channels, geometry and classes: what the server needs to know around the model."""

    def predict(self, images_NHWC: U8) -> U8:
        """Class indices NHW of images that are resized and padded as the manifest says."""


class BundlePredictor:
    """A bundle's graph in one ONNX Runtime session, shared by all threads."""

    def __init__(self, bundle: Bundle, *, threads: int) -> None:
        self.manifest = bundle.manifest
        self._model = bundle.model(threads=threads)

    def predict(self, images_NHWC: U8) -> U8:
        return self._model.masks(images_NHWC)


def open_bundles(paths: Sequence[Path], *, threads: int) -> list[BundlePredictor]:
    """Verify bundles and load them.

    Raises BundleError with everything that is wrong in any of them.
    """
    opened, errors = [], []
    for path in paths:
        try:
            verified = verify(path, threads=threads)
        except BundleError as error:
            errors.append(error)
            continue
        for warning in verified.warnings:
            logger.warning("%s: %s", path, warning)
        opened.append(BundlePredictor(verified.bundle, threads=threads))
    if len(errors) == 1:
        raise errors[0]
    if errors:
        where = ", ".join(str(error.where) for error in errors)
        raise BundleError(where, [f"{error.where}: {problem}" for error in errors for problem in error.problems])
    return opened


def by_name(predictors: Sequence[Predictor]) -> dict[str, Predictor]:
    """Predictors under the names by which requests ask for them.

    Raises UsageError when there is none, or when two have one name.
    """
    if not predictors:
        raise UsageError("there is nothing to serve; name at least one bundle")
    named: dict[str, Predictor] = {}
    for predictor in predictors:
        name = predictor.manifest.name
        if name in named:
            raise UsageError(f"two bundles are named {name}; serve one of them, or export one under another name")
        named[name] = predictor
    return named
