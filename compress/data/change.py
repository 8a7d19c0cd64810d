"""How much each image of a batch is changed, drawn from the ranges that a recipe gives.

F fields, N batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.settings.augment import AugmentSettings

FIELDS = (
    *("angle", "shear_x", "shear_y", "shift_x", "shift_y", "zoom"),
    *("brightness", "contrast", "gamma", "saturation", "hue", "noise"),
)
"""Degrees for angle and shear, shares of the side for shift, of the colour circle for hue; zoom is the logarithm of
the factor, so that 0 means "no change" in every field and changes add up."""

WIDEST: Mapping[str, float] = {
    **{"angle": 15.0, "shear_x": 8.0, "shear_y": 8.0, "shift_x": 0.1, "shift_y": 0.1, "zoom": 0.2},
    **{"brightness": 0.3, "contrast": 0.3, "gamma": 0.3, "saturation": 0.5, "hue": 0.05, "noise": 0.1},
}
"""The most that one operation of a policy changes an image, in either direction. Milder than the published lists, which
are for classifiers: those shear by 17 degrees, shift by a third, and invert colours."""

SMALLEST_FACTOR = 0.05


@dataclass(frozen=True)
class Change:
    """How much every image is changed, by field; zero is no change."""

    values_FN: Tensor

    def __getitem__(self, field: str) -> Tensor:
        """The values of one field [N]."""
        return self.values_FN[FIELDS.index(field)]

    def factor(self, field: str) -> Tensor:
        """1 + the change of each image [N]: what its pixels are multiplied by, or raised to.

        Kept positive: changes that add up may go below zero, where light would turn to dark and no such power exists.
        """
        return (1 + self[field]).clamp(min=SMALLEST_FACTOR)

    def __add__(self, other: "Change") -> "Change":
        return Change(self.values_FN + other.values_FN)

    @classmethod
    def drawn(cls, settings: AugmentSettings, count: int, device: torch.device) -> "Change":
        """Every field within ± its setting, drawn for each image separately, plus what the policy adds."""
        spreads = {
            "angle": settings.rotate_degrees,
            "shear_x": settings.shear_degrees,
            "shear_y": settings.shear_degrees,
            "brightness": settings.brightness,
            "contrast": settings.contrast,
            "gamma": settings.gamma,
            "saturation": settings.saturation,
            "hue": settings.hue,
            "noise": settings.noise,
        }
        spread_F = torch.tensor([spreads.get(field, 0.0) for field in FIELDS]).to(device, non_blocking=True)
        drawn_FN = torch.rand(len(FIELDS), count, device=device) * 2 - 1
        low, high = settings.scale
        zoom_N = (low + (high - low) * (drawn_FN[FIELDS.index("zoom")] + 1) / 2).log()
        values_FN = drawn_FN * spread_F[:, None]
        values_FN[FIELDS.index("zoom")] = zoom_N
        change = cls(values_FN)
        return change if settings.policy == "none" else change + _of_policy(settings, count, device)


def _of_policy(settings: AugmentSettings, count: int, device: torch.device) -> Change:
    """Operations drawn for each image separately, within `WIDEST`.

    trivial: one, of any strength (Müller and Hutter 2021, arXiv:2103.10158). rand: `policy_operations`, all of the same
    strength, in either direction (Cubuk et al. 2019, arXiv:1909.13719); one that is drawn twice adds up.
    """
    widest_F = torch.tensor([WIDEST[field] for field in FIELDS]).to(device, non_blocking=True)
    values_FN = torch.zeros(len(FIELDS), count, device=device)
    for _ in range(1 if settings.policy == "trivial" else settings.policy_operations):
        operation_N = torch.randint(len(FIELDS), (count,), device=device)
        strength_N = torch.rand(count, device=device) * 2 - 1
        if settings.policy == "rand":
            strength_N = torch.where(strength_N < 0, -1.0, 1.0)
        change_N = settings.policy_strength * strength_N * widest_F[operation_N]
        values_FN.scatter_add_(0, operation_N[None], change_N[None])
    return Change(values_FN)
