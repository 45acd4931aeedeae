"""What a picture may cost, and that hostile ones cost no more."""

from __future__ import annotations

import io
import re
import struct
import subprocess
import sys

import hostile_pictures as hostile
import numpy as np
import pytest
from bundles import write_bundle
from PIL import Image

from edgecls.runtime import InputError, PictureLimits, Preprocess, Session
from edgecls.runtime.bundle import Bundle
from edgecls.runtime.errors import InvalidRecordError
from edgecls.runtime.picture import open_picture

DECODES = """
import resource, sys, warnings
from pathlib import Path
from edgecls.runtime import InputError
from edgecls.runtime.picture import open_picture
warnings.simplefilter("ignore")
open_picture(Path(sys.argv[2]).read_bytes())  # loads what decoding needs
data = Path(sys.argv[1]).read_bytes()
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
try:
    print(open_picture(data, "apply").size)
except InputError as error:
    print("refused:", error)
"""


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "fields",
    [
        {"max_bytes": 0},
        {"max_px": -1},
        {"max_aspect": 1.5},
        {"max_scans": True},
        {"formats": ()},
        {"formats": ("svg",)},
        {"formats": "jpeg"},
    ],
)
def test_limits_that_are_none(fields):
    with pytest.raises(InvalidRecordError, match=next(iter(fields))):
        PictureLimits(**fields)


def test_bytes_are_counted_wherever_they_come_from(tmp_path):
    data = encoded(Image.new("RGB", (30, 20)), "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(data)
    just, short = PictureLimits(max_bytes=len(data)), PictureLimits(max_bytes=len(data) - 1)
    for picture in (data, memoryview(data), path):
        assert open_picture(picture, limits=just).size == (30, 20)
        with pytest.raises(InputError, match=f"more than {len(data) - 1} bytes"):
            open_picture(picture, limits=short)


@pytest.mark.parametrize(("size", "allowed"), [((100, 1), True), ((101, 1), False), ((1, 101), False)])
def test_aspect(size, allowed):
    image = Image.new("RGB", size)
    for picture in (image, np.asarray(image), encoded(image, "PNG")):
        if allowed:
            assert open_picture(picture, limits=PictureLimits(max_aspect=100)).size == size
        else:
            with pytest.raises(InputError, match="one side more than 100 times the other"):
                open_picture(picture, limits=PictureLimits(max_aspect=100))


def test_formats_are_listed():
    limits = PictureLimits(formats=("jpeg", "png"))
    image = Image.new("RGB", (8, 8))
    for kind in ("JPEG", "PNG"):
        assert open_picture(encoded(image, kind), limits=limits).size == (8, 8)
    for kind in ("WEBP", "BMP", "GIF", "TIFF"):
        with pytest.raises(InputError, match=f"is a {kind} picture; only jpeg, png is taken"):
            open_picture(encoded(image, kind), limits=limits)


def test_scans_are_counted_but_not_those_of_the_payload():
    assert open_picture(hostile.jpeg_of_scans(64, 100)).size == (64, 64)
    for data in (hostile.jpeg_of_scans(64, 101), hostile.jpeg_of_scans(64, 2000)):
        with pytest.raises(InputError, match="more than 100 scans"):
            open_picture(data)
    plain = encoded(Image.new("RGB", (64, 64)), "JPEG")
    payload = hostile.segment(0xE1, b"\xff\xda" * 500)
    assert open_picture(plain[:2] + payload + plain[2:] + b"\xff\xda" * 500).size == (64, 64)
    hidden = hostile.jpeg_of_scans(64, 101)
    for standalone in (b"\xff\x01", b"\xff\xff\xff", b"\xff\xd0"):  # which are no segments: nothing hides behind them
        with pytest.raises(InputError, match="more than 100 scans|cannot decode"):
            open_picture(hidden.replace(b"\xff\xda", standalone + b"\xff\xda"))


@pytest.mark.filterwarnings("ignore:Metadata Warning")  # Pillow's, of a tag with too many numbers
def test_tiles_are_pictures_too():
    tiled = hostile.tiff_of_tile(64)
    assert open_picture(tiled, limits=PictureLimits(max_px=64 * 64)).size == (1, 1)
    with pytest.raises(InputError, match="a tile of <.* bytes> has 64x64 = 4096 pixels, more than 4095"):
        open_picture(tiled, limits=PictureLimits(max_px=64 * 64 - 1))
    for width in ((322, 4, 2, 8), (322, 2, 4, 0x41414141)):  # two numbers; a text
        odd = tiled.replace(struct.pack("<HHLL", 322, 4, 1, 64), struct.pack("<HHLL", *width))
        with pytest.raises(InputError, match="no numbers|cannot decode|a tile of"):
            open_picture(odd)


def test_a_session_has_limits_of_its_own(tmp_path):
    class Engine:
        def infer(self, images):
            return np.zeros((len(images), 3), np.float32)

    bundle = Bundle(write_bundle(tmp_path / "net.edgecls", b"", 8))
    session = Session(bundle, Engine(), PictureLimits(max_px=100))
    small, large = (encoded(Image.new("RGB", (side, side)), "PNG") for side in (10, 11))
    assert len(session.classify(small)) == 3
    for call in (session.classify, lambda picture: session.classify_batch([picture])):
        with pytest.raises(InputError, match="more than 100"):
            call(large)
    assert isinstance(next(session.classify_stream([large], errors="yield")), InputError)


BOMBS = {
    "scans": hostile.jpeg_of_scans(13_000, 100_000),
    "segments": hostile.jpeg_of_comments(50_000),
    "chunks": hostile.png_of_chunks(50_000),
    "text": hostile.png_of_text(200_000_000),
    "tile": hostile.tiff_of_tile(14_000),
    "tags": hostile.tiff_of_tags(3_000, 100_000),
    "canvas": hostile.webp_of_canvas(),
    "comment": hostile.gif_of_comment(1_000_000),
    "runs": hostile.bmp_of_runs(5_000),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_cost_no_more_than_docs_say(name, tmp_path):
    """24 bytes a pixel, 40 a byte of the file, and a little for decoders; in less than 30 s of CPU time."""
    bomb, warm = tmp_path / "bomb", tmp_path / "warm"
    bomb.write_bytes(BOMBS[name])
    warm.write_bytes(encoded(Image.new("RGB", (8, 8)), {"tile": "TIFF", "tags": "TIFF"}.get(name, "PNG")))
    pixels = {"runs": 25_000_000}.get(name, 1)
    room = 24 * pixels + 40 * len(BOMBS[name]) + 64_000_000
    command = [sys.executable, "-c", DECODES, str(bomb), str(warm), str(room)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert re.match(r"refused: |\(", done.stdout), done.stdout


@pytest.mark.parametrize("size", [(9_999, 1), (1, 9_999)])
def test_thin_pictures_are_cheap(size):
    preprocess = Preprocess(resize_px=256, crop_px=224, mean=(0, 0, 0), std=(1, 1, 1))
    assert preprocess.pixels(Image.new("RGB", size, (1, 2, 3))).max() == 3
