"""From the bytes that a device sees to the floats that a network was trained on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgecls.runtime.preprocess import Preprocess


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
