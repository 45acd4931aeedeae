"""What a picture may cost: checked before it is decoded."""

from __future__ import annotations

import re

import msgspec

from edgecls.runtime.errors import InputError, InvalidRecordError

FORMATS = ("jpeg", "png", "webp", "bmp", "gif", "tiff")
"""Of pictures that can be read."""

_JPEG_MARKER = re.compile(rb"\xff+([^\x00\x01\xd0-\xd8\xff])", re.DOTALL)
"""The beginning of a segment that has a length; what is left out stands between coded bytes."""


class PictureLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Which pictures are decoded; a program that serves strangers sets its own.

    Raises:
        InvalidRecordError: A limit is not positive, or a format unknown.
    """

    max_bytes: int = 536_870_910
    """Of the encoded picture: as many as the most pixels have, three each."""
    max_px: int = 178_956_970
    """Width times height: Pillow's own hard limit, whatever the embedding program made of it."""
    max_aspect: int = 10_000
    """Longer side to shorter side."""
    max_scans: int = 100
    """Of a JPEG file. Each scan may go over all pixels and takes a dozen bytes; progressive files have about ten,
    and libtiff, which decodes JPEG inside of TIFF, draws the same line."""
    formats: tuple[str, ...] = FORMATS
    """Which are read at all; decoders differ in how much they let others spend."""

    def __post_init__(self) -> None:
        for field in ("max_bytes", "max_px", "max_aspect", "max_scans"):
            value = getattr(self, field)
            if type(value) is not int or value < 1:
                raise InvalidRecordError(f"{field} is {value!r}; give a whole number of at least 1")
        if not self.formats or not set(self.formats) <= set(FORMATS):
            raise InvalidRecordError(f"formats is {self.formats!r}; choose some of {FORMATS}")

    def check_bytes(self, count: int, name: str) -> None:
        """Refuses encoded pictures that are too long.

        Raises:
            InputError: It has more bytes; `name` is what the message calls it.
        """
        if count > self.max_bytes:
            raise InputError(f"{name} has more than {self.max_bytes} bytes; make it smaller")

    def check_format(self, plugin: str, name: str) -> None:
        """Refuses formats that are not listed, by the name of Pillow's plugin.

        Raises:
            InputError: It is another one.
        """
        if plugin.lower() not in self.formats:
            raise InputError(
                f"{name} is a {plugin.upper()} picture; only {', '.join(self.formats)} is taken: convert it"
            )

    def check_size(self, width: int, height: int, name: str) -> None:
        """Refuses pictures with no, too many or too oddly arranged pixels.

        Raises:
            InputError: It is past a limit.
        """
        if width < 1 or height < 1:
            raise InputError(f"{name} has no pixels ({width}x{height}); replace or remove it")
        if width * height > self.max_px:
            raise InputError(
                f"{name} has {width}x{height} = {width * height} pixels, more than {self.max_px}; make it smaller"
            )
        if max(width, height) > self.max_aspect * min(width, height):
            raise InputError(
                f"{name} has {width}x{height} pixels, one side more than {self.max_aspect} times the other; crop it"
            )

    def check_scans(self, data: bytes, name: str) -> None:
        """Refuses JPEG files that decode their pixels over and over.

        Raises:
            InputError: There are more scans.
        """
        if data.count(b"\xff\xda") <= self.max_scans:  # which they may be, or parts of thumbnails and other payload
            return
        at, scans = 2, 0
        while (marker := _JPEG_MARKER.search(data, at)) and marker[1] != b"\xd9":
            scans += marker[1] == b"\xda"
            if scans > self.max_scans:
                raise InputError(f"{name} is a JPEG file of more than {self.max_scans} scans; save it again")
            at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")


DEFAULT_LIMITS = PictureLimits()
