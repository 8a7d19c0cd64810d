"""Which models are served, in which versions, and why others are not.

For the event loop's thread only. A request gets its predictor once and keeps it, so a switch changes one entry in a
dictionary: requests in progress end on the model that they began with, and later ones find the new model.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from export.errors import UsageError
from serve.folders import ModelFolders, newest
from serve.predictor import Predictor
from serve.problems import ProblemError

NOT_LOADED = "not loaded"


@dataclass(frozen=True)
class Entry:
    """One version of one model, as the repository's index shows it."""

    name: str
    version: str
    is_served: bool
    reason: str
    """Why it is not served, or why what is in its folder now is not; otherwise empty."""


class Repository:
    """Predictors by name and version."""

    def __init__(self, folders: ModelFolders, predictors: Sequence[Predictor] = ()) -> None:
        """`predictors` are served beside the bundles in `folders`.

        Raises UsageError when there is nothing to serve, or when two models have the same name.
        """
        self.folders = folders
        self._served: dict[str, dict[str, Predictor]] = {}
        self._refused: dict[tuple[str, str], str] = {}
        for predictor in predictors:
            name = predictor.manifest.name
            if name in self._served or name in folders.models():
                raise UsageError(f"two models are named {name}; serve one of them")
            self._served[name] = {predictor.manifest.version: predictor}
        if not self._served and not folders.models():
            raise UsageError("there is nothing to serve; name at least one bundle")

    @property
    def served(self) -> dict[str, Predictor]:
        """The newest served version of each model, by name."""
        return {name: versions[newest(list(versions))] for name, versions in self._served.items() if versions}

    def all_served(self) -> list[Predictor]:
        """Every version of every model that is served."""
        return [predictor for versions in self._served.values() for predictor in versions.values()]

    def versions(self, name: str) -> Mapping[str, Predictor]:
        """The served versions of a model; empty for a model that is not served."""
        return self._served.get(name, {})

    def unknown(self, name: str) -> ProblemError:
        """What a client is told that asks for a model that is not served."""
        served = ", ".join(sorted(self.served)) or "none"
        return ProblemError(404, "unknown_model", f"no model {name!r} is served here; served: {served}")

    def predictor(self, name: str, version: str = "") -> Predictor:
        """The predictor of the version that is named, else of the newest.

        Raises ProblemError 404 if it is not served.
        """
        versions = self.versions(name)
        if not versions:
            raise self.unknown(name)
        version = version or newest(list(versions))
        if version not in versions:
            there = ", ".join(sorted(versions))
            raise ProblemError(404, "unknown_version", f"{name} is not served in version {version!r}; served: {there}")
        return versions[version]

    def switch(self, name: str, predictors: Sequence[Predictor]) -> list[Predictor]:
        """From now on serve these versions of a model, and no others; returns those that are no longer served."""
        before = self._served.get(name, {})
        self._served[name] = {predictor.manifest.version: predictor for predictor in predictors}
        for version in self._served[name]:
            self._refused.pop((name, version), None)
        return [predictor for predictor in before.values() if predictor not in predictors]

    def refuse(self, name: str, version: str, reason: str) -> None:
        """Remember why a version was refused; what is served stays."""
        self._refused[name, version] = reason

    async def index(self) -> list[Entry]:
        """Every version that is in the folders or is served."""
        models = await asyncio.to_thread(self.folders.models)
        there = {(name, version) for name, versions in models.items() for version in versions}
        served = {(name, version) for name, versions in self._served.items() for version in versions}
        found = []
        for which in sorted(there | served):
            is_served = which in served
            found.append(Entry(*which, is_served, self._refused.get(which, "" if is_served else NOT_LOADED)))
        return found
