"""Findings about a dataset: one line for each kind, however many files share it."""

SHOWN = 20
"""Names that one line lists before it only counts."""


class Findings:
    """Collects (what is wrong, where) and says each kind once, with the places it was found at."""

    def __init__(self) -> None:
        self._places: dict[str, list[str]] = {}

    def add(self, what: str, *places: str) -> None:
        """`what` names the fault and what to do; `places` are files relative to the dataset folder."""
        self._places.setdefault(what, []).extend(places)

    def lines(self) -> list[str]:
        """`place, place and 3 more: what`, in the order in which the kinds were first found."""
        return [f"{shortened(places)}: {what}" for what, places in self._places.items() if places]

    def __bool__(self) -> bool:
        return any(self._places.values())


def shortened(names: list[str]) -> str:
    """The first `SHOWN` names, and how many more there are."""
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more ({len(names)} in all)"
