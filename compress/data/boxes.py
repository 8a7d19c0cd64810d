"""Random rectangles, one for each image of a batch. N batch, H height, W width."""

import torch
from torch import Tensor


def boxes(sides_2N: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks [N, H, W], true inside one box each.

    Heights and widths are `sides_2N`, as shares of the frame. Centres are drawn anywhere in the frame, so its edge may
    cut a box off.
    """
    centres_2N = torch.rand(2, sides_2N.shape[1], device=sides_2N.device)
    low_2N, high_2N = centres_2N - sides_2N / 2, centres_2N + sides_2N / 2
    rows, columns = (
        (place >= low_N[:, None]) & (place < high_N[:, None])
        for place, low_N, high_N in zip(
            ((torch.arange(length, device=sides_2N.device) + 0.5) / length for length in size),
            low_2N,
            high_2N,
            strict=True,
        )
    )
    inside: Tensor = rows[:, :, None] & columns[:, None, :]
    return inside
