"""Channels of a tensor as a linear form in named groups of channels."""

from collections.abc import Mapping
from dataclasses import dataclass

from export.errors import UsageError


@dataclass(frozen=True)
class Linear:
    """`constant` plus the sum of multiplicity x width over groups."""

    constant: int = 0
    terms: tuple[tuple[str, int], ...] = ()
    """(group, multiplicity), sorted by group."""

    @classmethod
    def of(cls, group: str, multiplicity: int = 1) -> "Linear":
        """The width of one group."""
        return cls(0, ((group, multiplicity),))

    def __add__(self, other: "Linear") -> "Linear":
        terms = dict(self.terms)
        for group, multiplicity in other.terms:
            terms[group] = terms.get(group, 0) + multiplicity
        return Linear(self.constant + other.constant, tuple(sorted(terms.items())))

    def at(self, widths: Mapping[str, int]) -> int:
        """Channels when the groups have these widths.

        Raises UsageError for a group without a width.
        """
        channels = self.constant
        try:
            for group, multiplicity in self.terms:
                channels += multiplicity * widths[group]
        except KeyError as error:
            raise UsageError(f"no width is given for the group {error.args[0]}; give one for every group") from error
        return channels

    def divided(self, divisor: int) -> "Linear | None":
        """This form divided by `divisor`; None when that is not whole for every width."""
        if self.constant % divisor or any(multiplicity % divisor for _, multiplicity in self.terms):
            return None
        return Linear(self.constant // divisor, tuple((group, times // divisor) for group, times in self.terms))
