"""Where the pixels of a picture lie in memory, for compiled code."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL import __version__ as pillow_version

_ARROW_IS_SAFE = int(pillow_version.split(".")[0]) >= 13
"""Pillow 11.2 to 12 exports aligned lines as if they were not, and crashes on an image that came from Arrow itself."""


class PixelMemory(NamedTuple):
    """Lines of pixels, readable as long as `owner` lives."""

    owner: object
    address: int
    line_bytes: int
    """From the beginning of one line to the next."""
    pixel_bytes: int
    """3 for RGB; 4 where an unused byte follows."""


class _ArrowArray(ctypes.Structure):
    """The beginning of `ArrowArray` in the Arrow C data interface."""


_ArrowArray._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
]


def pixel_memory(image: Image.Image | NDArray[np.uint8]) -> PixelMemory:
    """Finds the pixels of an RGB image, or of an array `uint8 [height, width, 3 or 4]`.

    Nothing is copied where lines follow each other (an array's may have gaps) and, of an image, where Pillow is 13 or
    newer and keeps the picture in one block, 16 MiB or 4 million pixels by default.
    """
    if isinstance(image, Image.Image):
        found = _arrow_memory(image)
        if found is not None:
            return found
        image = np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, 3)
    height, width, channels = image.shape
    if image.strides[1:] != (channels, 1) or image.strides[0] < channels * width:
        image = np.ascontiguousarray(image)
    # numpy gives an axis of one any stride.
    return PixelMemory(image, image.ctypes.data, image.strides[0] if height > 1 else channels * width, channels)


def _arrow_memory(image: Image.Image) -> PixelMemory | None:
    if not _ARROW_IS_SAFE:
        return None
    try:
        _, capsule = image.__arrow_c_array__()
    except ValueError:  # several blocks, or aligned lines
        return None
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    pixels = _ArrowArray.from_address(pointer(capsule, b"arrow_array"))
    if pixels.length != image.width * image.height or pixels.offset or pixels.n_children != 1:
        return None
    channels = pixels.children[0].contents
    if channels.length != 4 * pixels.length or channels.offset or channels.n_buffers != 2:
        return None
    return PixelMemory(capsule, channels.buffers[1], 4 * image.width, 4)
