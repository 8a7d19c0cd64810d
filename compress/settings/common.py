"""What all settings have in common: how they are checked, and types that several sections use."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, get_args

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

    NEEDS: ClassVar[Mapping[str, tuple[str, str | None]]] = {}
    """Settings that have an effect only beside another one of their section: its name, and the value that it must have;
    None for any value that switches it on."""

    @field_validator("*", mode="before")
    @classmethod
    def _none_by_its_name(cls, value: Any, info: ValidationInfo) -> Any:
        """`none` with `--set` unsets a setting. Where "none" is one of the allowed words, it means that word."""
        words = get_args(cls.model_fields[str(info.field_name)].annotation)
        return "none" if value is None and "none" in words else value

    def without_effect(self, above: str = "") -> Iterator[str]:
        """A line on each setting that was changed and does nothing, in this section and those below.

        They are not refused: `--set` may switch off what a recipe has set up, and an ablation may start from it.
        """
        for name, value in self:
            if isinstance(value, Settings):
                yield from value.without_effect(f"{above}{name}.")
            elif name in self.NEEDS and value != type(self).model_fields[name].default:
                other, wanted = self.NEEDS[name]
                found = getattr(self, other)
                if found in (None, 0, "none") if wanted is None else found != wanted:
                    asked = f"{above}{other}" if wanted is None else f"{above}{other} = {wanted!r}"
                    is_now = "none" if found is None else repr(found)
                    yield f"{above}{name} has no effect without {asked}, which is {is_now} here"
