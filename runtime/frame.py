"""Pictures that are arrays: from a camera, OpenCV, torch and whatever else speaks DLPack."""

from __future__ import annotations

from typing import Any, Literal, Protocol, get_args, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgecls.runtime.errors import InputError, InvalidRecordError

Order = Literal["rgb", "bgr"]


@runtime_checkable
class DlpackArray(Protocol):
    """A foreign array in the CPU's memory: torch, JAX, TensorFlow."""

    def __dlpack__(self, *arguments: Any, **options: Any) -> Any:
        """The array's memory, as the DLPack protocol hands it over."""
        ...

    def __dlpack_device__(self) -> tuple[Any, int]:
        """Where that memory is."""
        ...


class Frame(msgspec.Struct, frozen=True, eq=False):
    """An array and the order of its channels; OpenCV's are `Frame(array, "bgr")`, and so are picamera2's `RGB888`.

    Raises:
        InvalidRecordError: There is no such order.
    """

    pixels: NDArray[np.uint8] | DlpackArray
    """`uint8`, 0..255: `[height, width, 3]`, `[height, width, 4]` (the fourth channel is dropped), or grey,
    `[height, width]` or `[height, width, 1]`."""
    order: Order
    """Which channel comes first, red or blue."""

    def __post_init__(self) -> None:
        if self.order not in get_args(Order):
            raise InvalidRecordError(f"order is {self.order!r}; choose from {get_args(Order)}")


def stored_pixels(frame: Frame) -> tuple[NDArray[np.uint8], bool]:
    """The array of a frame, checked, and whether blue comes first in it. Nothing is copied.

    Raises:
        InputError: It is of another type or shape, or lies on another device.
    """
    array = frame.pixels if isinstance(frame.pixels, np.ndarray) else _array_from_dlpack(frame.pixels)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    coloured = array.ndim == 3 and array.shape[2] in (3, 4)
    if array.dtype != np.uint8 or not (coloured or array.ndim == 2) or array.size == 0:
        planes = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        raise InputError(
            f"cannot classify an array of {array.dtype} {list(array.shape)}; "
            "give uint8, 0..255: [height, width, 3] RGB, [height, width, 4] RGBA or [height, width] grey"
            + (" (channels come last: array.transpose(1, 2, 0), tensor.permute(1, 2, 0))" if planes else "")
        )
    blue_first = frame.order == "bgr"
    if array.shape[2:] == (3,) and array.strides[2] == -1:
        # `frame[..., ::-1]`, the usual way from BGR to RGB: the crop is cheaper to turn round than the frame.
        return array[:, :, ::-1], not blue_first
    return array, blue_first


def _array_from_dlpack(pixels: Any) -> NDArray[Any]:
    kind = type(pixels)
    name = f"{kind.__module__}.{kind.__qualname__}"
    try:
        return np.from_dlpack(pixels)
    except Exception as error:  # every library has its own for another device, a gradient, a strange type
        raise InputError(
            f"cannot classify a {name}: {error}; give uint8 in the CPU's memory (torch: tensor.cpu(), cupy: .get())"
        ) from error
