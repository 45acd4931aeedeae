"""From the bytes that a device sees to the floats that a network was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgecls.runtime.preprocess import Preprocess

if TYPE_CHECKING:
    import torch


def normalized(pictures: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.float32]:
    """What a network outside a bundle takes; in a bundle the graph does this.

    Args:
        pictures: `uint8 [batch, height, width, 3]`, RGB, as `Preprocess.pixels` gives them.
        preprocess: Its mean, std and order of colours.

    Returns:
        `float32 [batch, 3, height, width]`: (x / 255 − mean) / std, rounded once, contiguous.
    """
    codes = ((np.arange(256)[:, None] / 255.0 - preprocess.mean) / preprocess.std).astype(np.float32)
    channels = (2, 1, 0) if preprocess.colour == "bgr" else (0, 1, 2)
    return np.stack([codes[:, place][pictures[..., channel]] for place, channel in enumerate(channels)], axis=1)


def normalized_on_device(pixels: torch.Tensor, preprocess: Preprocess) -> torch.Tensor:
    """The same for a batch that is trained on, where it lies; `normalized` rounds once, this in float32 at each step.

    Args:
        pixels: `uint8 [batch, 3, height, width]`, RGB.
        preprocess: Its mean, std and order of colours.

    Returns:
        `float32 [batch, 3, height, width]`, `channels_last`.
    """
    import torch

    scaled = pixels.float() / 255
    if preprocess.colour == "bgr":
        scaled = scaled.flip(1)
    mean, std = (scaled.new_tensor(values).view(3, 1, 1) for values in (preprocess.mean, preprocess.std))
    return ((scaled - mean) / std).contiguous(memory_format=torch.channels_last)
