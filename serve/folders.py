"""Where models are found: bundles that are named, and folders of models.

A folder holds bundles as NAME/VERSION, or as NAME where there is only one version. Names in requests are only compared
with what is found here; none becomes part of a path.

A link is followed if its target lies in the same folder, however deep, as in Kubernetes' volumes and atomic releases
(`tiny/2 -> ../.releases/a`). One that leads out of the folder is not followed: otherwise whoever may write into the
folder could have any other place read. Nor is one that is another name of its neighbour (`tiny/latest -> 2`): a bundle
is served once, under the name and version in its manifest. The log has a line for each link that is passed over.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from export import bundle as bundles
from export.bundle import Bundle, Verification
from export.errors import BundleError, UsageError
from export.runtime import OnnxModel

logger = logging.getLogger(__name__)

Versions = Mapping[str, Path]
"""Bundle folders by version."""


class ModelFolders:
    """Bundles by the name and version under which they may be served."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Each of `paths` is a bundle, or a folder of models.

        Raises UsageError for a path that is neither, and for two models with the same name.
        """
        self._bundles: dict[str, dict[str, Path]] = {}
        self._folders: list[Path] = []
        self._told: dict[Path, dict[Path, str]] = {}
        """By folder: the links that were passed over when it was last read, and why; the log has them."""
        for path in paths:
            if bundles.is_bundle(path) or not path.is_dir():
                name, version = _named(path, otherwise=(str(path), "1"))
                if name in self._bundles:
                    raise UsageError(
                        f"two bundles are named {name}; serve one of them, or export one under another name"
                    )
                self._bundles[name] = {version: path}
            else:
                self._folders.append(path)
                if not self._models_in(path):
                    raise UsageError(
                        f"{path} is neither a bundle nor a folder of models: bundles are looked for in it as "
                        "NAME/VERSION and as NAME, and links are followed only if they stay in it"
                    )
        by_place = self._by_place()
        for name in sorted({name for models in by_place.values() for name in models}):
            _check_is_one(name, by_place)

    def models(self) -> dict[str, Versions]:
        """All models that are there now; folders are read anew. Of two models with the same name it has the first."""
        found: dict[str, Versions] = {}
        for models in self._by_place().values():
            found = {**models, **found}
        return found

    def versions(self, name: str) -> Versions:
        """The versions of one model that are there now; empty for an unknown name.

        Raises UsageError when two models have that name.
        """
        by_place = self._by_place()
        _check_is_one(name, by_place)
        return next((models[name] for models in by_place.values() if name in models), {})

    def _by_place(self) -> dict[Path, dict[str, Versions]]:
        """The models in each bundle and folder that was named."""
        found: dict[Path, dict[str, Versions]] = {}
        for name, versions in self._bundles.items():
            found |= {path: {name: versions} for path in versions.values()}
        for folder in self._folders:
            found[folder] = self._models_in(folder)
        return found

    def _models_in(self, folder: Path) -> dict[str, Versions]:
        look = _Look(folder)
        for link, why in look.passed_over.items():
            if self._told.get(folder, {}).get(link) != why:
                logger.warning("%s is passed over: %s", link, why)
        self._told[folder] = look.passed_over
        return look.models


def _check_is_one(name: str, by_place: Mapping[Path, Mapping[str, Versions]]) -> None:
    places = [str(place) for place, models in by_place.items() if name in models]
    if len(places) > 1:
        where = " and in ".join(places)
        raise UsageError(
            f"two models are named {name}, in {where}; serve one of them, or export one under another name"
        )


def verify(path: Path, name: str, version: str, *, open_model: Callable[[Bundle], OnnxModel]) -> Verification:
    """Verify the bundle in `path`, which is to be served under this name and version; the model that `open_model` gives
    must reproduce its golden answers.

    Raises BundleError for one that must not serve.
    """
    verification = bundles.verify(path, open_model=open_model)
    manifest = verification.bundle.manifest
    if (manifest.name, manifest.version) != (name, version):
        says = f"its manifest says {manifest.name} version {manifest.version}, its place {name} version {version}"
        raise BundleError(path, [f"{says}; move it, or export it under that name and version"])
    return verification


def newest(versions: Sequence[str]) -> str:
    """The version with the greatest number; names that are not numbers rank below all numbers, alphabetically."""
    return max(versions, key=lambda version: (version.isdecimal(), int(version) if version.isdecimal() else 0, version))


class _Look:
    """What is found in a folder of models when it is read once."""

    def __init__(self, folder: Path) -> None:
        self.models: dict[str, Versions] = {}
        self.passed_over: dict[Path, str] = {}
        """Links that are not followed, and why."""
        self._root = Path(os.path.realpath(folder))
        for name, path in self._folders_in(folder).items():
            versions = (
                {_named(path, otherwise=(name, "1"))[1]: path} if bundles.is_bundle(path) else self._versions_in(path)
            )
            if versions:
                self.models[name] = versions

    def _versions_in(self, model: Path) -> dict[str, Path]:
        names: dict[Path, list[str]] = {}
        for name, path in self._folders_in(model).items():
            if bundles.is_bundle(path):
                names.setdefault(path, []).append(name)
        versions = {}
        for path, several in names.items():
            said = _named(path, otherwise=("", ""))[1] if len(several) > 1 else ""
            kept = said if said in several else several[0]
            versions[kept] = path
            self.passed_over |= {model / name: _another_name(kept) for name in several if name != kept}
        return versions

    def _folders_in(self, folder: Path) -> dict[str, Path]:
        """The folders in `folder` by name, those that links lead to included; none if it is gone or cannot be read.

        Names with a leading dot are not models or versions: such folders are targets of links, or belong to others.
        """
        try:
            children = [child for child in sorted(folder.iterdir()) if not child.name.startswith(".")]
            return {child.name: path for child in children if (path := self._followed(child)) and path.is_dir()}
        except OSError:
            return {}

    def _followed(self, child: Path) -> Path | None:
        """`child`, or where it leads if it is a link, resolved once: it may change while its bundle is read. None for a
        link that is passed over."""
        if not child.is_symlink():
            return child
        named, path = child.parent / child.readlink(), Path(os.path.realpath(child))
        if not path.is_relative_to(self._root):
            why = f"it leads out of {self._root}, and links are followed only if they stay in it"
        elif not path.is_dir():
            why = "" if path.is_file() else "it leads nowhere"
        elif os.path.realpath(named.parent) == os.path.realpath(child.parent) and not named.name.startswith("."):
            why = _another_name(named.name)
        else:
            return path
        if why:
            self.passed_over[child] = why
        return None


def _another_name(name: str) -> str:
    return f"it is another name of {name} beside it, which is served under that name only"


def _named(bundle: Path, *, otherwise: tuple[str, str]) -> tuple[str, str]:
    """Name and version in the manifest, or `otherwise` if it is invalid: that is reported when the bundle is verified,
    not while others are looked for."""
    try:
        manifest = bundles.load_manifest(bundle)
    except BundleError:
        return otherwise
    return manifest.name, manifest.version
