"""What all settings have in common: how they are checked, and types that several sections use."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
SizeHW = tuple[Positive, Positive]
LearningRate = Annotated[float, Field(gt=0, le=1000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
OwnName = Annotated[str, Field(pattern=r"^.+:[A-Za-z_][A-Za-z0-9_.]*$")]
"""Code of the user's own: `package.module:name` or `path/to/file.py:name`."""


class Settings(BaseModel):
    """One branch of the tree: unknown names are refused, values are checked where they stand."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )
