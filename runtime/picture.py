"""Pictures as they come (files, bytes, arrays, Pillow images), decoded to RGB or refused with the reason."""

from __future__ import annotations

import importlib
import io
import os
from typing import IO, Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgecls.runtime import fast
from edgecls.runtime.errors import InputError
from edgecls.runtime.frame import DlpackArray, Frame, stored_pixels
from edgecls.runtime.picture_limits import DEFAULT_LIMITS, PictureLimits

Picture: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | NDArray[np.uint8] | DlpackArray | Frame | Image.Image"
)
"""What can be classified: a path, encoded bytes, a Pillow image, or an array `uint8`, 0..255: `[height, width, 3]` RGB,
`[height, width, 4]` RGBA (the alpha is dropped), `[height, width]` or `[height, width, 1]` grey. An array may be
numpy's, contiguous or not, or another library's in the CPU's memory (DLPack: torch, JAX); `Frame(array, "bgr")` says
that blue comes first."""

Exif: TypeAlias = Literal["ignore", "apply"]

EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
"""Suffixes of picture files in lower case; what a file really is, its first bytes decide."""

_TOO_DEEP = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_ORIENTATION = 0x0112
_TIFF_TILE = (322, 323)
"""Tags of a tile's width and height."""

_PLAIN_FRAMES = (0xC0, 0xC1, 0xC2)
"""JPEG markers of baseline, extended sequential and progressive frames, Huffman coded."""

_PLAIN_SAMPLINGS = ((1, 1), (2, 1), (2, 2))
"""Of the luma, where both chromas have (1, 1): 4:4:4, 4:2:2, 4:2:0. Versions of libjpeg-turbo decode them alike."""


def open_picture(picture: Picture, exif: Exif = "ignore", limits: PictureLimits = DEFAULT_LIMITS) -> Image.Image:
    """Opens and fully decodes a picture, without resizing it.

    JPEG, PNG, WebP, BMP, GIF and TIFF are recognised by their first bytes. The pixels are those of Pillow's
    `Image.open(...).convert("RGB")`, also where the picture is odd:

    - Grey, 1 bit, palette, CMYK and YCbCr become RGB. Transparency is dropped, which shows colours hidden below it.
    - Of an animation or a TIFF of several pages the first frame counts; of a Pillow image its current one.
    - Colours of 16 bits a channel (PNG, TIFF) keep their high byte. Grey of 16 or 32 bits and float are refused:
      Pillow would clip them to white or to black without a word.
    - A truncated file is refused (unless the embedding program set Pillow's `LOAD_TRUNCATED_IMAGES`).
    - What is past the limits is refused before decoding. `Image.MAX_IMAGE_PIXELS` plays no part.

    Args:
        picture: See `Picture`.
        exif: `apply` turns the picture as its EXIF orientation says; without a readable one it stays as it is. TIFF
            files are turned in either case, by Pillow itself.
        limits: What a picture may cost.

    Returns:
        A loaded Pillow image of mode RGB. It is `picture` itself where that is one already.

    Raises:
        InputError: The picture cannot be read, or is of a kind that would be silently misread. The message names it.
    """
    image = read_picture(picture, exif, limits)
    return image if isinstance(image, Image.Image) else Image.fromarray(image)


def read_picture(
    picture: Picture, exif: Exif = "ignore", limits: PictureLimits = DEFAULT_LIMITS
) -> Image.Image | NDArray[np.uint8]:
    """As `open_picture`, without a Pillow image where the pixels can be had more cheaply.

    Returns:
        A loaded Pillow image of mode RGB, or `uint8 [height, width, 3]`, RGB, with the same pixels: `picture` itself or
        a view of it where that is a coloured array, and plain JPEG files where simplejpeg is installed.

    Raises:
        InputError: As `open_picture`.
        UnsupportedError: simplejpeg is installed but cannot be used.
    """
    pixels, blue_first = read_stored(picture, exif, limits)
    if isinstance(pixels, Image.Image) or (pixels.shape[2] == 3 and not blue_first):
        return pixels
    return pixels[:, :, 2::-1] if blue_first else pixels[:, :, :3]


def read_stored(
    picture: Picture, exif: Exif = "ignore", limits: PictureLimits = DEFAULT_LIMITS, enough_px: int | None = None
) -> tuple[Image.Image | NDArray[np.uint8], bool]:
    """As `read_picture`, with coloured arrays as they are: a crop is cheaper to put right than a whole frame.

    Args:
        picture, exif, limits: As for `open_picture`.
        enough_px: Pixels of the shorter side that suffice: JPEG files are decoded at 1/2, 1/4 or 1/8 of their size, the
            smallest that has as many. None decodes every pixel.

    Returns:
        A loaded Pillow image of mode RGB, or `uint8 [height, width, 3 or 4]`, whose fourth channel means nothing; and
        whether blue comes first in it.

    Raises:
        InputError, UnsupportedError: As `read_picture`.
    """
    if isinstance(picture, (np.ndarray, DlpackArray)):
        picture = Frame(picture, "rgb")
    if not isinstance(picture, Frame):
        return _read_encoded(picture, exif, limits, enough_px), False
    array, blue_first = stored_pixels(picture)
    limits.check_size(array.shape[1], array.shape[0], f"<array {list(array.shape)}>")
    return (Image.fromarray(array).convert("RGB"), False) if array.ndim == 2 else (array, blue_first)


def _read_encoded(
    picture: Picture, exif: Exif, limits: PictureLimits, enough_px: int | None
) -> Image.Image | NDArray[np.uint8]:
    if isinstance(picture, Image.Image):
        return _decoded(picture, _name(picture), exif, limits)
    if isinstance(picture, memoryview):
        try:
            picture = bytes(picture)
        except ValueError as error:
            raise InputError(f"cannot classify a memoryview: {error}; classify it before it is released") from error
    if isinstance(picture, (bytes, bytearray)):
        return _pixels_from_file(io.BytesIO(bytes(picture)), _name(picture), exif, limits, enough_px)
    if isinstance(picture, (str, os.PathLike)):
        try:
            with open(picture, "rb") as file:
                seekable = file if file.seekable() else io.BytesIO(file.read(limits.max_bytes + 1))
                return _pixels_from_file(seekable, _name(picture), exif, limits, enough_px)
        except IsADirectoryError as error:
            raise InputError(f"{_name(picture)} is a folder; name the pictures in it") from error
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"cannot open {_name(picture)}: {reason}; give an existing, readable picture") from error
    raise InputError(f"cannot classify a {type(picture).__name__}; give a path, bytes, a uint8 array or a Pillow image")


def _name(picture: Picture) -> str:
    if isinstance(picture, Image.Image):
        return f"<{picture.mode} image of {picture.width}x{picture.height} px>"
    if isinstance(picture, (bytes, bytearray)):
        return f"<{len(picture)} bytes>"
    return repr(os.fspath(cast("str", picture)))


def _pixels_from_file(
    file: IO[bytes], name: str, exif: Exif, limits: PictureLimits, enough_px: int | None
) -> Image.Image | NDArray[np.uint8]:
    limits.check_bytes(file.seek(0, os.SEEK_END), name)
    file.seek(0)
    prefix = file.read(16)
    if not prefix:
        raise InputError(f"{name} is empty (0 bytes); replace or remove it")
    file.seek(0)
    plugin = _plugin_from_prefix(prefix)
    if plugin is None:
        raise InputError(f"{name} is not a JPEG, PNG, WebP, BMP, GIF or TIFF picture; convert or remove it")
    limits.check_format(plugin, name)
    # Not Image.open: its size check warns, by the embedding program's limit, and warnings can only be silenced for all
    # threads at once.
    module = importlib.import_module(f"PIL.{plugin}ImagePlugin")
    opener = getattr(module, f"{plugin}ImageFile")
    try:
        image = cast("Image.Image", opener(file))
    except Exception as error:  # Damaged headers make Pillow raise nearly anything.
        raise _unreadable(name, error) from error
    limits.check_size(image.width, image.height, name)
    if plugin == "Tiff":
        _check_tiles(image, name, limits)
    if plugin == "Jpeg":
        file.seek(0)
        data = file.read()
        limits.check_scans(data, name)
        if enough_px is not None and min(image.size) >= 2 * enough_px:
            image.draft(None, (enough_px, enough_px))
        elif (pixels := _pixels_from_jpeg(image, data, exif)) is not None:
            return pixels
    return _decoded(image, name, exif, limits)


def _check_tiles(image: Any, name: str, limits: PictureLimits) -> None:
    """A tile is decoded whole, however few of its pixels lie inside the TIFF picture."""
    width, height = (image.tag_v2.get(tag, 1) for tag in _TIFF_TILE)
    if not isinstance(width, int) or not isinstance(height, int):
        raise _unreadable(name, ValueError("the sides of its tiles are no numbers"))
    limits.check_size(width, height, f"a tile of {name}")


def _pixels_from_jpeg(image: Image.Image, data: bytes, exif: Exif) -> NDArray[np.uint8] | None:
    """A plain JPEG file by simplejpeg. None where Pillow has to decode it, or to say what is wrong with it."""
    decode = fast.jpeg_decoder()
    if decode is None or image.mode != "RGB" or (exif == "apply" and _orientation(image) in _TURNS):
        return None
    if not _is_plain_jpeg(data):
        return None
    try:
        pixels: NDArray[np.uint8] = decode(data, "RGB")
    except ValueError:  # every warning is one; Pillow knows which of them are errors
        return None
    return pixels if pixels.shape == (image.height, image.width, 3) else None


def _is_plain_jpeg(data: bytes) -> bool:
    """Whether the frame is one that every libjpeg-turbo decodes to the same three channels."""
    at = 2
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        kind = data[at + 1]
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # tables, an extension, arithmetic conditioning
            samplings = [divmod(factors, 16) for factors in data[at + 11 : at + 20 : 3]]
            return kind in _PLAIN_FRAMES and samplings[1:] == [(1, 1), (1, 1)] and samplings[0] in _PLAIN_SAMPLINGS
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def _plugin_from_prefix(prefix: bytes) -> str | None:
    if prefix.startswith(b"\xff\xd8\xff"):
        return "Jpeg"
    if prefix.startswith(b"\x89PNG\r\n\x1a\n"):
        return "Png"
    if prefix.startswith(b"RIFF") and prefix[8:12] == b"WEBP":
        return "WebP"
    if prefix.startswith((b"GIF87a", b"GIF89a")):
        return "Gif"
    if prefix.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "Tiff"
    return "Bmp" if prefix.startswith(b"BM") else None


def _decoded(image: Image.Image, name: str, exif: Exif, limits: PictureLimits) -> Image.Image:
    limits.check_size(image.width, image.height, name)
    if image.mode in _TOO_DEEP:
        raise InputError(
            f"{name} has pixels of mode {image.mode} (16 bits or more), which would be clipped; convert it to 8 bits"
        )
    try:
        image.load()
        # Pillow has turned a TIFF while loading it; versions before 10.1 leave the tag behind.
        turn = _TURNS.get(_orientation(image)) if exif == "apply" and image.format != "TIFF" else None
        if image.mode != "RGB":
            image = _rgb(image)
        return image if turn is None else image.transpose(turn)
    except MemoryError:
        raise
    except Exception as error:  # As above: decoders raise OSError, SyntaxError, ValueError, struct.error, …
        raise _unreadable(name, error) from error


def _orientation(image: Image.Image) -> int:
    try:
        # Not `image.getexif()`, which some versions of Pillow fill from XMP where EXIF says nothing.
        tags, info = Image.Exif(), image.info
        if "exif" not in info and "Raw profile type exif" in info:  # PNG files of ImageMagick
            info = {"exif": bytes.fromhex("".join(info["Raw profile type exif"].split("\n")[3:]))}
        tags.load(info.get("exif") or b"")
        return int(tags.get(_EXIF_ORIENTATION, 1))
    except Exception:  # EXIF is a foreign format inside the file; what cannot be read asks for nothing.
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    """As `convert("RGB")`, which warns of transparency in a palette that it then drops."""
    if "transparency" in image.info:
        info, image = image.info, image.copy()
        image.info = {key: value for key, value in info.items() if key != "transparency"}
    return image.convert("RGB")


def _unreadable(name: str, error: Exception) -> InputError:
    return InputError(
        f"cannot decode {name}: {error or type(error).__name__}; the file is damaged, replace or remove it"
    )
