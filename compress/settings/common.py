"""What all settings have in common: how they are checked, and types that several sections use."""

from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
SizeHW = tuple[Positive, Positive]
LearningRate = Annotated[float, Field(gt=0, le=1000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
OwnName = Annotated[str, Field(pattern=r"^.+:[A-Za-z_][A-Za-z0-9_.]*$")]
"""The user's own code: `package.module:name` or `path/to/file.py:name`."""


class Settings(BaseModel):
    """One section of a recipe. Unknown names are refused, and each section checks its own values."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _none_by_its_name(cls, value: Any, info: ValidationInfo) -> Any:
        """`none` with `--set` unsets a setting. Where "none" is one of the allowed words, it means that word."""
        words = get_args(cls.model_fields[str(info.field_name)].annotation)
        return "none" if value is None and "none" in words else value
