"""The section `train`."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from compress.settings.augment import AugmentSettings
from compress.settings.common import Settings
from compress.settings.fit import FitSettings


class SparsitySettings(Settings):
    """A penalty on the weights, added to the loss, so that weights that are hardly needed shrink towards zero before
    they are cut.

    The loss that is shown excludes it.
    """

    NEEDS: ClassVar = {"weight": ("kind", None)}

    kind: Literal["none", "l1", "bn-scale", "group-lasso"] = "none"
    """l1: the sum of all absolute kernel weights. It shrinks single weights, which `compress prune --unstructured`
    cuts; the other kinds shrink whole channels. bn-scale: the sum of all absolute BatchNorm scales. Source: Liu et al.
    2017 (arXiv:1708.06519). group-lasso: the L2 norm of all weights that belong to a channel, summed over
    the channels. Source: Yuan and Lin 2006, over the coupled layers of Fang et al. 2023 (arXiv:2301.12900)."""
    weight: Annotated[float, Field(gt=0)] = 1e-4
    """Factor of the penalty."""


class TrainSettings(FitSettings):
    """Training of the dense model."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the forward pass. auto: chosen by device, on a CPU by a timed probe. The loss is always in
    float32."""
    device: str = "auto"
    """Device to train on, such as cpu or cuda. auto: CUDA if there is one, else the CPU."""
    augment: AugmentSettings = AugmentSettings()
    sparsity: SparsitySettings = SparsitySettings()
