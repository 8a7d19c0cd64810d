"""How good a network is while it trains: every figure of the validation split, in torch float32.

N batch, C channels, K classes, H height, W width.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compress.checkpoint import normalised
from compress.data.loader import ValidationImages
from export.metrics import Metrics
from export.scoring import ConfusionMatrix


def validate(network: nn.Module, validation: ValidationImages, device: torch.device) -> Metrics:
    """One confusion matrix over the validation split, at the size of the masks; leaves `network` in eval mode."""
    network.eval()

    @torch.inference_mode()
    def masks_of(images_NCHW: Tensor) -> NDArray[np.uint8]:
        images = normalised(images_NCHW.to(device)).contiguous(memory_format=torch.channels_last)
        masks: NDArray[np.uint8] = network(images).argmax(1).to(torch.uint8).cpu().numpy()
        return masks

    matrix = ConfusionMatrix(len(validation.classes))
    for _, truth, prediction in validation.predictions(masks_of):
        matrix.update(truth, prediction)
    return Metrics(validation.classes, matrix.counts)
