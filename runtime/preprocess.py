"""From a picture to the pixels that a classifier sees: one description, one implementation."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

Picture: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | NDArray[np.uint8] | Image.Image"
"""What can be classified: a path, encoded bytes, an array `uint8 [height, width, 3]` RGB or `[height, width]`, a Pillow image."""


class Preprocess(msgspec.Struct, frozen=True, kw_only=True):
    """What is done to a picture before the graph, and what the graph does to the bytes first."""

    mode: Literal["shorter", "squash"] = "shorter"
    """`shorter`: resize the shorter side to `resize_px`; `squash`: both sides. The centre crop follows in both."""
    resize_px: int
    """Side after the resize, pixels."""
    crop_px: int
    """Side of the square centre crop, pixels: the input of the graph."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Pillow's antialiased filter."""
    mean: tuple[float, float, float]
    """Subtracted from RGB in 0..1, inside the graph."""
    std: tuple[float, float, float]
    """Divided by after `mean`, inside the graph."""
    colour: Literal["rgb", "bgr"] = "rgb"
    """Order of the channels that the network was trained on. Pixels are RGB always; the graph swaps. `mean` and
    `std` are given in the network's own order."""
    exif: Literal["ignore", "apply"] = "ignore"
    """Whether a picture is first turned as its EXIF orientation says. Training code ignores it, so this does."""

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON, hex."""
        raise NotImplementedError

    def pixels(self, picture: Picture) -> NDArray[np.uint8]:
        """Decodes, resizes and crops one picture.

        Returns:
            `uint8 [crop_px, crop_px, 3]`, RGB, 0..255, contiguous; bit-identical to torchvision's `Resize` and
            `CenterCrop` on the same Pillow image.

        Raises:
            InputError: The picture cannot be read, or is of a kind that would be silently misread.
        """
        raise NotImplementedError


def open_picture(picture: Picture) -> Image.Image:
    """Opens and fully decodes a picture as a Pillow image of mode RGB, without resizing it."""
    raise NotImplementedError


_: Any = None
