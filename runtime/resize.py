"""Resize and centre crop in one, bit-identical to resizing with Pillow and cropping afterwards.

Pillow resamples one axis, rounds to bytes, then resamples the other. A crop needs less of both passes than the whole
picture does. `Image.resize(box=...)` cannot ask for less: it rounds the box to float32 and shifts the filter's phase.
"""

from __future__ import annotations

import ctypes
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgecls.runtime import fast
from edgecls.runtime.pixel_memory import pixel_memory

Interpolation = Literal["bilinear", "bicubic"]

_PILLOW_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_RADII = {"bilinear": 1.0, "bicubic": 2.0}
"""Source pixels that a filter reads to either side where it does not shrink."""

_PRECISION_BITS = 22
"""Fraction bits of Pillow's integer weights: 32, less 8 of the pixel and 2 against overshoot."""

_WHOLE_AXIS_LIMIT = 8
"""Pillow can only resize a whole axis. From this many times the crop on, we compute the crop's pixels ourselves: they
are few then, and the whole may be huge (a 10,000 x 1 picture becomes 2,560,000 x 256)."""


class _Window(NamedTuple):
    """The wanted part of one axis of a resized picture, pixels."""

    source: int
    resized: int
    first: int
    length: int

    @classmethod
    def centred(cls, source: int, resized: int, crop: int) -> _Window:
        """The middle `crop` pixels, rounded as torchvision does; the whole axis where it has no more than that."""
        if crop >= resized:
            return cls(source, resized, 0, resized)
        return cls(source, resized, round((resized - crop) / 2), crop)

    @property
    def scale(self) -> float:
        """Source pixels to a resized one. Pillow keeps the source's size in a float32."""
        return float(np.float32(self.source)) / self.resized

    def reads(self, index: int, radius: float) -> tuple[int, int]:
        """First and one past the last source pixel that make the resized pixel `index`."""
        centre = (index + 0.5) * self.scale
        reach = radius * max(self.scale, 1.0)
        return max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), self.source)

    def reads_all(self, radius: float) -> tuple[int, int]:
        """First and one past the last source pixel that make the window."""
        return self.reads(self.first, radius)[0], self.reads(self.first + self.length - 1, radius)[1]


def kernel() -> str:
    """What resizes here, with its version: edgecls-fast where that is installed, else Pillow. The bits are the same.

    Raises:
        UnsupportedError: edgecls-fast is installed but cannot be used; the message says why.
    """
    return fast.versions()["resize"]


def resized_crop(
    image: Image.Image | NDArray[np.uint8],
    size_px: tuple[int, int],
    crop_px: int,
    interpolation: Interpolation,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Resizes a picture and takes the square in its middle.

    Args:
        image: Mode RGB, loaded; or `uint8 [height, width, 3 or 4]`, RGB; a fourth channel is not looked at.
        size_px: Width and height to resize to.
        crop_px: Side of the square. Where it is larger than the resized picture, zeros surround that.
        interpolation: Pillow's antialiased filter.
        out: Where the pixels go, `uint8 [crop_px, crop_px, 3 or 4]`, each line contiguous, no part of `image`; the
            fourth byte of a pixel may get any value. By default a new array of three.

    Returns:
        `out`, or `uint8 [crop_px, crop_px, 3]`, RGB, contiguous, writable: what torchvision's `Resize` to that size and
        `CenterCrop` give on the same image with Pillow 13 (see `_height_first` for older ones).

    Raises:
        UnsupportedError: edgecls-fast is installed but cannot be used; the message says why.
    """
    if out is None:
        out = np.empty((crop_px, crop_px, 3), np.uint8)
    elif out.dtype != np.uint8 or out.shape not in ((crop_px, crop_px, 3), (crop_px, crop_px, 4)):
        raise ValueError(f"out is {out.dtype} {list(out.shape)}; give uint8 [{crop_px}, {crop_px}, 3 or 4]")
    elif out.strides[1:] != (out.shape[2], 1) or not out.flags.writeable:
        raise ValueError("the lines of out are not contiguous or not writable; give a view of whole pixels")
    width, height = image.size if isinstance(image, Image.Image) else image.shape[1::-1]
    across = _Window.centred(width, size_px[0], crop_px)
    down = _Window.centred(height, size_px[1], crop_px)
    inside = out
    if (down.length, across.length) != (crop_px, crop_px):
        out[...] = 0
        left, top = (crop_px - across.length) // 2, (crop_px - down.length) // 2
        inside = out[top : top + down.length, left : left + across.length]
    compiled = fast.kernel()
    if compiled is not None:
        _resample_compiled(compiled, image, across, down, interpolation, inside)
        return out
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image[:, :, :3])
    resample = _resample_whole if max(size_px) <= _WHOLE_AXIS_LIMIT * crop_px else _resample_window
    inside[..., :3] = resample(image, across, down, interpolation)
    return out


def _resample_compiled(
    library: ctypes.CDLL,
    image: Image.Image | NDArray[np.uint8],
    across: _Window,
    down: _Window,
    interpolation: Interpolation,
    out: NDArray[np.uint8],
) -> None:
    """Both passes of the crop, from Pillow's memory to `out`."""
    window = ctypes.c_int64 * 4
    source = pixel_memory(image)
    status = library.edgecls_resample(
        *(source.address, source.line_bytes, source.pixel_bytes),
        *(window(*across), window(*down), interpolation == "bicubic", _height_first(across, down)),
        *(out.ctypes.data, out.strides[0], out.shape[2]),
    )
    if status == 1:
        raise MemoryError(f"resampling {across.source}x{down.source} pixels")
    if status:
        raise ValueError(f"edgecls_resample refuses {across}, {down}, {source}, {out.shape}, {out.strides}")


def _height_first(across: _Window, down: _Window) -> bool:
    """Whether the height is resized before the width, as Pillow does since 13.0 where that shrinks a lot more.

    Older versions always begin with the width, which rounds tall pictures differently. A bundle must see the same
    bytes on every board, so we follow the one rule whatever Pillow is installed.
    """
    shrinks_px = down.source - down.resized
    return shrinks_px > 0 and shrinks_px > 2 * (across.source - across.resized)


def _resample_whole(
    image: Image.Image, across: _Window, down: _Window, interpolation: Interpolation
) -> NDArray[np.uint8]:
    """Pillow's passes, each over a whole axis but only on the rows or columns that the crop needs.

    Between the passes the pixels are put back where they stood, so that the second filter keeps the phase of the whole
    axis. What surrounds them stays empty and reaches only pixels that are cut off.
    """
    resample, radius = _PILLOW_FILTERS[interpolation], _RADII[interpolation]
    if _height_first(across, down):
        left, right = across.reads_all(radius)
        strip = _resized(_part(image, left, 0, right, image.height), right - left, down.resized, resample)
        rows = Image.new("RGB", (image.width, down.length), None)
        rows.paste(strip, (left, -down.first))
        return _array(_resized(rows, across.resized, down.length, resample))[:, across.first :][:, : across.length]
    top, bottom = down.reads_all(radius)
    strip = _resized(_part(image, 0, top, image.width, bottom), across.resized, bottom - top, resample)
    columns = Image.new("RGB", (across.length, image.height), None)
    columns.paste(strip, (-across.first, top))
    return _array(_resized(columns, across.length, down.resized, resample))[down.first :][: down.length]


def _resample_window(
    image: Image.Image, across: _Window, down: _Window, interpolation: Interpolation
) -> NDArray[np.uint8]:
    """Pillow's arithmetic on what the crop needs and nothing else."""
    radius = _RADII[interpolation]
    (left, right), (top, bottom) = across.reads_all(radius), down.reads_all(radius)
    pixels = _array(_part(image, left, top, right, bottom))
    if _height_first(across, down):
        pixels = _resample_axis(pixels, down, top, interpolation)
    pixels = _resample_axis(pixels.transpose(1, 0, 2), across, left, interpolation).transpose(1, 0, 2)
    if not _height_first(across, down):
        pixels = _resample_axis(pixels, down, top, interpolation)
    return pixels


def _resample_axis(
    lines: NDArray[np.uint8], window: _Window, offset: int, interpolation: Interpolation
) -> NDArray[np.uint8]:
    """Resamples the first axis of `lines`, whose first line is number `offset` of the source."""
    out = np.empty((window.length, *lines.shape[1:]), np.uint8)
    for row in range(window.length):
        first, last = window.reads(window.first + row, _RADII[interpolation])
        weights = _integer_weights(window, window.first + row, first, last, interpolation)
        total = np.tensordot(weights, lines[first - offset : last - offset].astype(np.int64), axes=1)
        out[row] = np.clip((total + (1 << (_PRECISION_BITS - 1))) >> _PRECISION_BITS, 0, 255)
    return out


def _integer_weights(
    window: _Window, index: int, first: int, last: int, interpolation: Interpolation
) -> NDArray[np.int64]:
    """Weights of source pixels `first` to `last` in the resized pixel `index`, `int64`, a fixed-point fraction.

    Every operation and its order are those of `precompute_coeffs` and `normalize_coeffs_8bpc` in Pillow's Resample.c.
    """
    centre = (index + 0.5) * window.scale
    x = np.abs((np.arange(first, last) - centre + 0.5) * (1.0 / max(window.scale, 1.0)))
    if interpolation == "bilinear":
        weights = np.where(x < 1.0, 1.0 - x, 0.0)
    else:
        near = (1.5 * x - 2.5) * x * x + 1
        far = (((x - 5) * x + 8) * x - 4) * -0.5
        weights = np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
    total = np.add.accumulate(weights)[-1]  # one after the other: np.sum adds in pairs
    if total != 0.0:
        weights = weights / total
    fixed: NDArray[np.int64] = np.trunc(weights * (1 << _PRECISION_BITS) + np.copysign(0.5, weights)).astype(np.int64)
    return fixed


def _resized(image: Image.Image, width: int, height: int, resample: Image.Resampling) -> Image.Image:
    return image if image.size == (width, height) else image.resize((width, height), resample)


def _part(image: Image.Image, left: int, top: int, right: int, bottom: int) -> Image.Image:
    """As `Image.crop`, which would apply the embedding program's `MAX_IMAGE_PIXELS` to a picture already accepted."""
    if (left, top, right, bottom) == (0, 0, *image.size):
        return image
    part = Image.new("RGB", (right - left, bottom - top), None)
    part.paste(image, (-left, -top))
    return part


def _array(image: Image.Image) -> NDArray[np.uint8]:
    return np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, 3)
