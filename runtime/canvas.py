"""What an engine takes, made of crops: the border around them, and four bytes a pixel where that is faster."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from edgecls.runtime.bundle import Padding


class Canvas:
    """A buffer for batches up to some size; its border is painted once, and using it allocates nothing.

    Attributes:
        capacity: Crops that it holds.
        images: The buffer, `uint8 [capacity, padded height, padded width, 3 or 4]`; a batch is the beginning of it.
        inside: The part of it within the border, `uint8 [capacity, height, width, 3 or 4]`.
        crops: Where crops are put before `painted`, `uint8 [capacity, height, width, 3]`; `inside` if that has 3 bytes.
    """

    def __init__(self, shape: tuple[int, ...], border: Padding | None) -> None:
        """Allocates the buffer for crops of `shape`, `[capacity, height, width, 3]`."""
        self.capacity, height, width, _ = shape
        self._words = self._inside_words = None
        if border is None:
            self.images = self.inside = self.crops = np.empty(shape, np.uint8)
            return
        rows = slice(border.top_px, border.top_px + height)
        columns = slice(border.left_px, border.left_px + width)
        size = (self.capacity, rows.stop + border.bottom_px, columns.stop + border.right_px)
        if border.pixel_bytes == 3:
            self.images = np.empty((*size, 3), np.uint8)
            self.images[:] = border.value
            self.inside = self.crops = self.images[:, rows, columns]
            return
        # Four bytes from each pixel's first are the pixel and a byte that nobody looks at: one copy of overlapping
        # words is five times as fast as one of three bytes a pixel.
        red, green, blue = border.value
        pixels = np.full(size, red | green << 8 | blue << 16, "<u4")
        flat = np.zeros(self.capacity * height * width * 3 + 1, np.uint8)
        self.images = pixels.view(np.uint8).reshape(*size, 4)
        self.inside = self.images[:, rows, columns]
        self.crops = flat[:-1].reshape(shape)
        self._words = np.ndarray(shape[:3], "<u4", flat, strides=(height * width * 3, width * 3, 3))
        self._inside_words = pixels[:, rows, columns]

    def fill(self, crops: Iterable[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Paints crops, `uint8 [height, width, 3]` each, at most `capacity`, into the buffer.

        Returns:
            As `painted`.
        """
        count = 0
        for count, crop in enumerate(crops, 1):
            self.crops[count - 1] = crop
        return self.painted(count)

    def painted(self, count: int) -> NDArray[np.uint8]:
        """What the engine takes, after crops were written to `crops`.

        Returns:
            The first `count` of `images`; the next use of the canvas paints over them.
        """
        if self._words is not None and self._inside_words is not None:
            self._inside_words[:count] = self._words[:count]
        return self.images[:count]
