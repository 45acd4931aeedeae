"""What becomes of every kind of picture, and what every kind of rubbish is told."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from edgecls.runtime import picture as module
from edgecls.runtime.errors import InputError
from edgecls.runtime.picture import open_picture
from edgecls.runtime.picture_limits import PictureLimits

RNG = np.random.default_rng(5)
RGB = Image.fromarray(RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def assert_same(image: Image.Image, other: Image.Image) -> None:
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.asarray(other))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_every_format(kind, tmp_path):
    data = encoded(RGB, kind)
    path = tmp_path / "misnamed.dat"
    path.write_bytes(data)
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    for picture in (data, bytearray(data), memoryview(data), memoryview(data + b"x")[:-1], path, str(path)):
        assert_same(open_picture(picture), expected)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("1", "PNG"), ("L", "PNG"), ("P", "PNG"), ("P", "GIF"), ("LA", "PNG"), ("RGBA", "PNG"), ("RGBA", "WEBP"),
        ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("RGBA", "TIFF"), ("L", "JPEG"), ("1", "TIFF"),
        ("P", "BMP"),
    ],
)  # fmt: skip
def test_modes_convert_as_pillow_does(mode, kind):
    data = encoded(RGB.convert(mode), kind)
    assert_same(open_picture(data), Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV"])
def test_modes_of_pillow_images(mode):
    image = RGB.convert("RGBA").convert(mode) if mode in ("RGBa", "PA") else RGB.convert(mode)
    assert_same(open_picture(image), image.convert("RGB"))


def test_rgb_image_is_not_copied_and_keeps_its_pixels():
    assert open_picture(RGB) is RGB


def test_hidden_colours_are_kept():
    hidden = Image.new("RGBA", (3, 3), (200, 100, 50, 0))
    assert_same(open_picture(encoded(hidden, "PNG")), Image.new("RGB", (3, 3), (200, 100, 50)))


@pytest.mark.parametrize("transparency", [3, bytes(range(16))])
def test_transparent_palette_does_not_warn(transparency):
    palette = RGB.quantize(16)
    data = encoded(palette, "PNG", transparency=transparency)
    image = Image.open(io.BytesIO(data))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(open_picture(data), palette.convert("RGB"))
        image.load()
        before = dict(image.info)
        open_picture(image)
    assert image.info == before


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_give_their_first_frame(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert_same(open_picture(data), frames[0])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind, orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(RGB, kind, exif=exif)
    unturned = Image.open(io.BytesIO(data))
    assert_same(open_picture(data), unturned.convert("RGB"))
    assert_same(open_picture(data, "apply"), ImageOps.exif_transpose(unturned).convert("RGB"))


@pytest.mark.parametrize("exif", ["ignore", "apply"])
def test_tiff_is_turned_once(exif):
    tags = Image.Exif()
    tags[0x0112] = 6
    data = encoded(RGB, "TIFF", exif=tags)
    assert_same(open_picture(data, exif), RGB.transpose(Image.Transpose.ROTATE_270))


def test_an_orientation_in_xmp_alone_turns_nothing():
    xmp = b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    plain = encoded(RGB, "JPEG")
    segment = b"http://ns.adobe.com/xap/1.0/\0" + xmp
    data = plain[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + plain[2:]
    assert_same(open_picture(data, "apply"), Image.open(io.BytesIO(plain)))


def test_damaged_exif_asks_for_nothing():
    data = encoded(RGB, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert_same(open_picture(data, "apply"), RGB)


@pytest.mark.parametrize(("mode", "dtype"), [("I;16", np.uint16), ("I", np.int32), ("F", np.float32)])
def test_deep_grey_is_refused(mode, dtype):
    image = Image.fromarray(np.arange(12, dtype=dtype).reshape(3, 4) * 1000)
    assert image.mode == mode
    for picture in (image, encoded(image, "TIFF")):
        with pytest.raises(InputError, match=r"clipped; convert it to 8 bits"):
            open_picture(picture)


def test_deep_grey_png_is_refused():
    with pytest.raises(InputError, match="16 bits"):
        open_picture(encoded(Image.fromarray(np.full((3, 4), 40_000, np.uint16)), "PNG"))


def test_deep_colours_keep_their_high_byte():
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    deep = np.array([[[0x1234, 0x56FF, 0xFFFF], [0x00FF, 0x8000, 0x7FFF]]], ">u2")
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    data += chunk(b"IDAT", zlib.compress(b"\0" + deep.tobytes())) + chunk(b"IEND", b"")
    assert np.array_equal(np.asarray(open_picture(data)), deep >> 8)


def test_damaged_pillow_image():
    data = encoded(Image.fromarray(RNG.integers(0, 256, (90, 90, 3), dtype=np.uint8)), "PNG")
    with pytest.raises(InputError, match="cannot decode <RGB image of 90x90 px>"):
        open_picture(Image.open(io.BytesIO(data[: len(data) // 2])))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_truncated_files(kind, kept):
    data = encoded(Image.fromarray(RNG.integers(0, 256, (90, 90, 3), dtype=np.uint8)), kind)
    with pytest.raises(InputError, match="decode"):
        open_picture(data[: int(len(data) * kept)])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_damage_never_escapes_as_anything_else(kind):
    data = encoded(RGB, kind)
    rng = np.random.default_rng(1)
    for _ in range(150):
        damaged = np.frombuffer(data, np.uint8).copy()
        damaged[rng.integers(4 if kind != "BMP" else 2, len(damaged), 6)] = rng.integers(0, 256, 6)
        with contextlib.suppress(InputError):
            assert open_picture(damaged.tobytes()).mode == "RGB"


def test_embedding_programs_truncation_flag_is_left_alone(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encoded(RGB, "JPEG")
    assert open_picture(data[:-20]).size == RGB.size
    assert ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("limit", [1, 500, None])
def test_embedding_programs_size_limit_plays_no_part(monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_picture(encoded(RGB, "PNG")).size == RGB.size


def test_size_is_checked_before_decoding():
    bomb = encoded(Image.new("1", (20_000, 10_000)), "PNG")
    assert len(bomb) < 50_000
    with pytest.raises(InputError, match=r"20000x10000 = 200000000 pixels, more than 178956970"):
        open_picture(bomb)


def test_size_of_arrays_and_images():
    for picture in (RGB, np.asarray(RGB), encoded(RGB, "BMP")):
        with pytest.raises(InputError, match="more than 599"):
            open_picture(picture, limits=PictureLimits(max_px=599))


def test_large_picture_below_the_limit_does_not_warn():
    data = encoded(Image.new("1", (10_000, 9_000)), "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.MonkeyPatch.context() as patch:  # without the 360 MB that decoding it would take
            patch.setattr(module, "_decoded", lambda opened, *_: opened)
            assert open_picture(data).size == (10_000, 9_000)


@pytest.mark.parametrize("shape", [(5, 7, 3), (5, 7), (5, 7, 4)])
def test_arrays(shape):
    array = RNG.integers(0, 256, shape, dtype=np.uint8)
    expected = Image.fromarray(array).convert("RGB")
    assert_same(open_picture(array), expected)
    assert_same(open_picture(array[::-1, ::-1]), expected.transpose(Image.Transpose.ROTATE_180))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint16),
        np.zeros((4, 4), bool),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((3, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(9, np.uint8),
    ],
)
def test_refused_arrays(array):
    with pytest.raises(InputError, match=r"give uint8, 0\.\.255"):
        open_picture(array)


@pytest.mark.parametrize("picture", [None, 3, 1.5, ["a.jpg"], object(), io.BytesIO(b"")])
def test_refused_types(picture):
    with pytest.raises(InputError, match=f"cannot classify a {type(picture).__name__}; give"):
        open_picture(picture)


def test_a_released_memoryview_is_refused():
    view = memoryview(b"gone")
    view.release()
    with pytest.raises(InputError, match="cannot classify a memoryview: .*released"):
        open_picture(view)


@pytest.mark.parametrize("content", [b"hello, this is text", b"%PDF-1.7 ", b"P6 1 1 255 abc", b"\0" * 64, b"\xff"])
def test_other_files(content, tmp_path):
    path = tmp_path / "text.jpg"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"text\.jpg' is not a JPEG"):
        open_picture(path)
    with pytest.raises(InputError, match=f"<{len(content)} bytes> is not a JPEG"):
        open_picture(content)


def test_empty(tmp_path):
    path = tmp_path / "empty.png"
    path.touch()
    with pytest.raises(InputError, match=r"empty\.png' is empty"):
        open_picture(path)
    with pytest.raises(InputError, match="<0 bytes> is empty"):
        open_picture(b"")


def test_paths_that_cannot_be_opened(tmp_path):
    with pytest.raises(InputError, match=r"missing\.jpg': No such file"):
        open_picture(tmp_path / "missing.jpg")
    with pytest.raises(InputError, match="is a folder"):
        open_picture(tmp_path)
    with pytest.raises(InputError, match="cannot open"):
        open_picture("nul\0.jpg")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_permission_denied(tmp_path):
    path = tmp_path / "secret.jpg"
    path.write_bytes(b"x")
    path.chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        open_picture(path)


def test_pipe():
    reader, writer = os.pipe()
    os.write(writer, encoded(RGB, "PNG"))
    os.close(writer)
    try:
        assert_same(open_picture(f"/dev/fd/{reader}"), RGB)
    finally:
        os.close(reader)
