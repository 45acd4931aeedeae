"""Small files that ask for a lot: more time, memory or pixels than their bytes let expect."""

from __future__ import annotations

import struct
import zlib


def segment(kind: int, body: bytes) -> bytes:
    """Of a JPEG file."""
    return bytes([0xFF, kind]) + struct.pack(">H", len(body) + 2) + body


def chunk(kind: bytes, body: bytes) -> bytes:
    """Of a PNG file."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def jpeg_of_scans(side_px: int, scans: int) -> bytes:
    """A grey progressive JPEG whose scans are all empty: a dozen bytes each, and each goes over all pixels."""
    frame = struct.pack(">BHHB", 8, side_px, side_px, 1) + b"\1\x11\0"
    tables = segment(0xDB, b"\0" + b"\1" * 64) + segment(0xC2, frame)
    tables += segment(0xC4, b"\0\1" + bytes(15) + b"\0") + segment(0xC4, b"\x10\1" + bytes(15) + b"\xe0")
    first = segment(0xDA, b"\1\1\0\0\0\0") + bytes(16)
    return b"\xff\xd8" + tables + first + (segment(0xDA, b"\1\1\0\1\x3f\0") + bytes(4)) * (scans - 1) + b"\xff\xd9"


def jpeg_of_comments(count: int) -> bytes:
    """A small JPEG after so many empty segments."""
    whole = jpeg_of_scans(8, 1)
    return whole[:2] + segment(0xFE, b"") * count + whole[2:]


def png_of_chunks(count: int) -> bytes:
    """A PNG of one pixel after so many empty chunks."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(4))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"prIv", b"") * count + pixels


def png_of_text(size_bytes: int) -> bytes:
    """A PNG of one pixel with a compressed text."""
    whole = png_of_chunks(0)
    return whole[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(size_bytes), 9)) + whole[33:]


def tiff(tags: list[tuple[int, int, int, int]], payload: bytes = b"", big_endian: bool = False) -> bytes:
    """A TIFF of one directory; tags are (tag, type, count, value), payload follows the directory, which ends at
    `10 + 12 * len(tags) + 4`."""
    order = ">" if big_endian else "<"
    entries = b"".join(struct.pack(f"{order}HHLL", *tag) for tag in sorted(tags))
    magic = b"MM\0*" if big_endian else b"II*\0"
    return magic + struct.pack(f"{order}LH", 8, len(tags)) + entries + bytes(4) + payload


def tiff_of_tile(side_px: int) -> bytes:
    """One grey pixel in a compressed tile of so many."""
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(side_px)) for _ in range(side_px)) + packer.flush()
    end = 10 + 12 * 9 + 4
    tags = [(256, 3, 1, 1), (257, 3, 1, 1), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1)]
    tags += [(322, 4, 1, side_px), (323, 4, 1, side_px), (324, 4, 1, end), (325, 4, 1, len(rows))]
    return tiff(tags, rows)


def tiff_of_tags(count: int, size_bytes: int) -> bytes:
    """Tags that all have the same bytes for a value."""
    end = 10 + 12 * count + 4
    return tiff([(1000 + index, 7, size_bytes, end) for index in range(count)], bytes(size_bytes))


def webp_of_canvas() -> bytes:
    """An animation on the largest canvas, without a frame."""
    canvas = struct.pack("<4sIB3x3s3s", b"VP8X", 10, 2, b"\xff\x3f\0", b"\xff\x3f\0")
    body = b"WEBP" + canvas + b"ANIM" + struct.pack("<I", 6) + bytes(6)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def gif_of_comment(size_bytes: int) -> bytes:
    """A comment in blocks of one byte, and no picture."""
    return b"GIF89a\1\0\1\0\0\0\0!\xfe" + b"\1x" * (size_bytes // 2) + b"\0;"


def bmp_of_runs(side_px: int) -> bytes:
    """A run-length coded BMP that ends where it begins."""
    header = struct.pack("<IiiHHIIiiII", 40, side_px, side_px, 1, 8, 1, 2, 0, 0, 1, 0)
    return struct.pack("<2sIII", b"BM", 60, 0, 58) + header + bytes(4) + b"\0\1"
