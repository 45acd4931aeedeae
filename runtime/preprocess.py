"""From a picture to the pixels that a classifier sees: one description, one implementation."""

from __future__ import annotations

import hashlib
import math
from typing import Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgecls.runtime.errors import InvalidRecordError
from edgecls.runtime.picture import Exif, Picture, open_picture, read_picture, read_stored
from edgecls.runtime.picture_limits import DEFAULT_LIMITS, PictureLimits
from edgecls.runtime.resize import Interpolation, resized_crop

__all__ = ["Colour", "Exif", "Interpolation", "Mode", "Picture", "Preprocess", "open_picture", "read_picture"]

Mode = Literal["shorter", "squash"]
Colour = Literal["rgb", "bgr"]

MAX_SIDE_PX = 8192
"""Of the resize and of the crop; a bundle that asks for more wants our memory."""

_SCALED_MARGIN = 2
"""Times `resize_px` that a picture keeps when it is decoded scaled: libjpeg leaves out its fine detail instead of
averaging it, of which the resize, as it averages at least two by two pixels, shows little."""


class Preprocess(msgspec.Struct, frozen=True, kw_only=True):
    """What is done to a picture before the graph, and what the graph does to the bytes first.

    Raises:
        InvalidRecordError: A field is out of its range; the message says which (an `InputError`; when decoding JSON,
            msgspec's `ValidationError`).
    """

    mode: Mode = "shorter"
    """`shorter`: resize the shorter side to `resize_px`; `squash`: both sides. The centre crop follows in both."""
    resize_px: int
    """Side after the resize, pixels, 1 to `MAX_SIDE_PX`."""
    crop_px: int
    """Side of the square centre crop, pixels, 1 to `MAX_SIDE_PX`: the input of the graph. Zeros surround a smaller
    picture."""
    interpolation: Interpolation = "bilinear"
    """Pillow's antialiased filter."""
    mean: tuple[float, float, float]
    """Subtracted from RGB in 0..1, inside the graph; -10..10."""
    std: tuple[float, float, float]
    """Divided by after `mean`, inside the graph; 0.0001..10."""
    colour: Colour = "rgb"
    """Order of the channels that the network was trained on. Pixels are RGB always; the graph swaps. `mean` and
    `std` are given in the network's own order."""
    exif: Exif = "ignore"
    """Whether a picture is first turned as its EXIF orientation says. Training code ignores it, so this does."""
    scaled_decode: bool = False
    """Whether JPEG files with sides of at least 4 times `resize_px` are decoded at 1/2, 1/4 or 1/8 of their size, the
    least that keeps twice `resize_px`. Faster for pictures of many megapixels, but not the pixels of training code."""

    def __post_init__(self) -> None:
        for field, choices in (("mode", Mode), ("interpolation", Interpolation), ("colour", Colour), ("exif", Exif)):
            if getattr(self, field) not in get_args(choices):
                raise InvalidRecordError(f"{field} is {getattr(self, field)!r}; choose from {get_args(choices)}")
        if type(self.scaled_decode) is not bool:
            raise InvalidRecordError(f"scaled_decode is {self.scaled_decode!r}; choose from (True, False)")
        for field in ("resize_px", "crop_px"):
            side = getattr(self, field)
            if type(side) is not int or not 1 <= side <= MAX_SIDE_PX:
                raise InvalidRecordError(f"{field} is {side!r}; give a whole number of pixels from 1 to {MAX_SIDE_PX}")
        for field, least in (("mean", -10.0), ("std", 1e-4)):
            try:
                # Plain floats, so that (0, 0, 0) and (0.0, -0.0, 0.0) have one digest.
                values = tuple(float(value) + 0.0 for value in getattr(self, field))
            except (TypeError, ValueError):
                values = ()
            if len(values) != 3 or not all(math.isfinite(value) and least <= value <= 10.0 for value in values):
                raise InvalidRecordError(
                    f"{field} is {getattr(self, field)!r}; give three numbers from {least:g} to 10. "
                    "They are for pixels of 0..1: divide what is meant for 0..255 by 255"
                )
            msgspec.structs.force_setattr(self, field, values)

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON, hex."""
        fields = msgspec.structs.asdict(self)
        if not self.scaled_decode:  # younger than records that are about: theirs keep their digests
            del fields["scaled_decode"]
        return hashlib.sha256(msgspec.json.encode(fields, order="sorted")).hexdigest()

    def pixels(
        self, picture: Picture, out: NDArray[np.uint8] | None = None, *, limits: PictureLimits = DEFAULT_LIMITS
    ) -> NDArray[np.uint8]:
        """Decodes, resizes and crops one picture.

        Args:
            picture: See `Picture`; `open_picture` says what becomes of odd ones.
            out: Where the pixels go instead of a new array, `uint8 [crop_px, crop_px, 3 or 4]`, each line contiguous,
                no part of `picture`; the fourth byte of a pixel may get any value.
            limits: Which pictures are taken.

        Returns:
            `out`, or `uint8 [crop_px, crop_px, 3]`, RGB, 0..255, contiguous, writable; bit-identical to
            torchvision's `Resize` and `CenterCrop` on the same Pillow image, unless `scaled_decode` made it smaller.

        Raises:
            InputError: The picture cannot be read, or is of a kind that would be silently misread.
            UnsupportedError: edgecls-fast or simplejpeg is installed but cannot be used; the message says why.
        """
        return self.cropped(*self.decoded(picture, limits), out)

    def decoded(
        self, picture: Picture, limits: PictureLimits = DEFAULT_LIMITS
    ) -> tuple[Image.Image | NDArray[np.uint8], bool]:
        """The first half of `pixels`: what `cropped` takes, as `read_stored` gives it."""
        enough_px = _SCALED_MARGIN * self.resize_px if self.scaled_decode else None
        return read_stored(picture, self.exif, limits, enough_px)

    def cropped(
        self, image: Image.Image | NDArray[np.uint8], blue_first: bool, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """The second half of `pixels`."""
        width, height = image.size if isinstance(image, Image.Image) else image.shape[1::-1]
        crop = resized_crop(image, self._resized_size(width, height), self.crop_px, self.interpolation, out)
        if blue_first:  # channels are resized each for itself, so they may be put in order afterwards
            crop[:, :, :3] = crop[:, :, 2::-1]
        return crop

    def _resized_size(self, width: int, height: int) -> tuple[int, int]:
        side = self.resize_px
        if self.mode == "squash":
            return side, side
        if width <= height:
            return side, int(side * height / width)
        return int(side * width / height), side
