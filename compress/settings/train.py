"""The section `train`."""

from typing import Annotated, Literal

from pydantic import Field

from compress.settings.augment import AugmentSettings
from compress.settings.common import Settings
from compress.settings.fit import FitSettings


class SparsitySettings(Settings):
    """A penalty on weights beside the loss, so that those that are hardly needed come to nothing before they are cut.

    The loss that is shown is without it.
    """

    kind: Literal["none", "l1", "bn-scale", "group-lasso"] = "none"
    """l1: the sum of all absolute weights of kernels, which brings single ones to nothing, as `compress prune
    --unstructured` takes them; the others do whole channels. bn-scale: the sum of all absolute BatchNorm scales.
    Source: Liu et al. 2017 (arXiv:1708.06519). group-lasso: the sum of the L2 norms of all the weights that go with
    each channel. Source: Yuan and Lin 2006, over the coupled layers of Fang et al. 2023 (arXiv:2301.12900)."""
    weight: Annotated[float, Field(gt=0)] = 1e-4
    """What the penalty is multiplied by."""


class TrainSettings(FitSettings):
    """Training of the dense model."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the forward pass; auto: by device, on a CPU by a timed probe. The loss is always in float32."""
    device: str = "auto"
    """auto: CUDA where there is one."""
    augment: AugmentSettings = AugmentSettings()
    sparsity: SparsitySettings = SparsitySettings()
