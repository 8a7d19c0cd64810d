"""Which versions of a model a load request asks for, in the terms of Triton's repository extension.

Source: Triton Inference Server, model_config.proto, ModelVersionPolicy.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from serve.folders import newest
from serve.problems import ProblemError

Choice = Callable[[Sequence[str]], list[str]]

_CONFIG = "config"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Latest(_Part):
    num_versions: int = Field(default=1, ge=1)


class _Specific(_Part):
    versions: list[int | str] = Field(min_length=1)


class _VersionPolicy(_Part):
    latest: _Latest | None = None
    all: dict[str, Any] | None = None
    specific: _Specific | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if sum(choice is not None for choice in (self.latest, self.all, self.specific)) > 1:
            raise ValueError("these are alternatives")
        return self


class _Config(_Part):
    version_policy: _VersionPolicy = _VersionPolicy()


def newest_version(there: Sequence[str]) -> list[str]:
    """The newest alone: what is served when nothing else is asked for."""
    return [newest(there)] if there else []


def choice_of(parameters: Mapping[str, object]) -> Choice:
    """The choice that the parameters of a load request make. The only one is `config`: JSON with only a version_policy,
    which is latest, all or specific.

    Raises ProblemError 400.
    """
    if set(parameters) - {_CONFIG}:
        # Triton takes files here, to serve in place of those in the folder. Any other parameter would be ignored.
        detail = f"a load takes only the parameter {_CONFIG!r}; put files into the folder of models"
        raise ProblemError(400, "parameter", detail)
    config = parameters.get(_CONFIG)
    if not config:
        return newest_version
    try:
        policy = _Config.model_validate(json.loads(config) if isinstance(config, str) else config).version_policy
    except (ValidationError, ValueError, RecursionError) as error:
        raise ProblemError(
            400,
            "parameter",
            "config takes only a version_policy: one of latest, all and specific, spelled as Triton does",
        ) from error
    if policy.specific is not None:
        wanted = [str(version) for version in policy.specific.versions]
        return lambda _there: wanted
    if policy.all is not None:
        return list
    return _latest(policy.latest.num_versions if policy.latest else 1)


def _latest(count: int) -> Choice:
    def choose(there: Sequence[str]) -> list[str]:
        left, chosen = list(there), list[str]()
        while left and len(chosen) < count:
            chosen.append(newest(left))
            left.remove(chosen[-1])
        return chosen

    return choose
