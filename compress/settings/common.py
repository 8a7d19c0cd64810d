"""What all settings have in common: how they are checked, and types that several sections use."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

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

    NEEDS: ClassVar[Mapping[str, tuple[str, str | None]]] = {}
    """Settings that mean something only beside another one of their section: its name, and the value that it must have;
    None for any value that switches it on."""

    @field_validator("*", mode="before")
    @classmethod
    def _none_by_its_name(cls, value: Any, info: ValidationInfo) -> Any:
        """`none` with `--set` unsets a setting. Where "none" is one of the allowed words, it means that word."""
        words = get_args(cls.model_fields[str(info.field_name)].annotation)
        return "none" if value is None and "none" in words else value

    @model_validator(mode="after")
    def _nothing_is_set_in_vain(self) -> Self:
        problems = []
        for name, (other, wanted) in self.NEEDS.items():
            found = getattr(self, other)
            is_met = found not in (None, 0, "none") if wanted is None else found == wanted
            if not is_met and getattr(self, name) != type(self).model_fields[name].default:
                asked = other if wanted is None else f"{other} = {wanted!r}"
                problems.append(f"{name} is for {asked}, but {other} is {found!r}: set {asked}, or leave {name} out")
        if problems:
            raise ValueError("; ".join(problems))
        return self
