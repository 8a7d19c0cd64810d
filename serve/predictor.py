"""The seam between HTTP and the model: tests put something else here, and so may another runtime."""

import logging
from typing import Protocol

from export.bundle import Bundle
from export.errors import BundleError
from export.images import U8
from export.manifest import Manifest
from serve.folders import ModelFolders, newest

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


def open_bundle(folders: ModelFolders, name: str, version: str, *, threads: int) -> BundlePredictor:
    """Verify a bundle and load it.

    Raises BundleError for one that must not serve.
    """
    verified = folders.verify(name, version, threads=threads)
    for warning in verified.warnings:
        logger.warning("%s: %s", verified.bundle.path, warning)
    return BundlePredictor(verified.bundle, threads=threads)


def open_newest(folders: ModelFolders, *, threads: int) -> list[BundlePredictor]:
    """The newest version of every model.

    Raises BundleError with everything that is wrong in any of them.
    """
    opened, errors = [], []
    for name, versions in folders.models().items():
        try:
            opened.append(open_bundle(folders, name, newest(list(versions)), threads=threads))
        except BundleError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        where = ", ".join(str(error.where) for error in errors)
        raise BundleError(where, [f"{error.where}: {problem}" for error in errors for problem in error.problems])
    return opened
