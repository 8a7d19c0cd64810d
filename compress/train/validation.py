"""Score a network while it trains: every figure of the validation split, in torch float32.

N batch, C channels, K classes, H height, W width.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compress.checkpoint import normalised
from compress.data.loader import ValidationImages
from compress.train.memory import free, is_out_of_memory
from export.errors import WorkFailedError
from export.scoring import ConfusionMatrix, Score


def validate(network: nn.Module, validation: ValidationImages, device: torch.device) -> Score:
    """The confusion matrix of every validation image, at the size of its mask; leaves `network` in eval mode.

    Raises WorkFailedError when a single image does not fit into memory.
    """
    network.eval()

    @torch.inference_mode()
    def masks_of(images_NCHW: Tensor) -> NDArray[np.uint8]:
        images = normalised(images_NCHW.to(device)).contiguous(memory_format=torch.channels_last)
        masks: NDArray[np.uint8] = network(images).argmax(1).to(torch.uint8).cpu().numpy()
        return masks

    def in_parts(images_NCHW: Tensor) -> NDArray[np.uint8]:
        """Halve a batch that does not fit: whole images need more memory than the crops of training."""
        try:
            return masks_of(images_NCHW)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Not in the handler: the error's traceback holds the activations of the pass that failed.
        count, _, height, width = images_NCHW.shape
        if count == 1:
            raise WorkFailedError(
                f"out of memory when validating a single image of {height}x{width}, which is not cropped; set a "
                "smaller data.size or model.base"
            )
        free(device)
        return np.concatenate([in_parts(part) for part in torch.split(images_NCHW, -(-count // 2))])

    names, counts = [], []
    for name, truth, prediction in validation.predictions(in_parts):
        matrix = ConfusionMatrix(len(validation.classes))
        matrix.update(truth, prediction)
        names.append(name)
        counts.append(matrix.counts)
    return Score(validation.classes, tuple(names), np.stack(counts))
