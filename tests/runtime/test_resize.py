"""The two passes against Pillow's own resize of the whole picture, and against its arithmetic."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pixel_digests
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image, __version__

from edgecls.runtime import resize
from edgecls.runtime.resize import resized_crop

SIDES = st.one_of(st.integers(1, 4), st.integers(1, 60), st.integers(1, 500))
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
OLDEST = "pillow==10.0.0"
PILLOW_13 = int(__version__.split(".")[0]) >= 13


@pytest.fixture(autouse=True, scope="module")
def without_the_kernel():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGECLS_FAST", "0")
        yield


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def crop_of_whole(image: Image.Image, size: tuple[int, int], crop: int, interpolation: str) -> np.ndarray:
    """Resizes everything, then crops as torchvision's CenterCrop does; one axis at a time, so for any Pillow."""
    shrinks = image.height - size[1]
    height_first = shrinks > 0 and shrinks > 2 * (image.width - size[0])
    between = (image.width, size[1]) if height_first else (size[0], image.height)
    whole = np.asarray(image.resize(between, FILTERS[interpolation]).resize(size, FILTERS[interpolation]))
    if PILLOW_13:
        assert np.array_equal(whole, np.asarray(image.resize(size, FILTERS[interpolation])))
    above, left = (max(crop - side, 0) for side in whole.shape[:2])
    whole = np.pad(whole, ((above // 2, (above + 1) // 2), (left // 2, (left + 1) // 2), (0, 0)))
    top, left = (round((side - crop) / 2.0) for side in whole.shape[:2])
    return whole[top : top + crop, left : left + crop]


def test_pixels_are_those_that_bundles_were_made_with():
    """On every machine and every Pillow: a change breaks the golden samples of all bundles that there are."""
    digest = hashlib.sha256(b"".join(pixel_digests.pixels(number) for number in range(160) if number % 4))
    assert digest.hexdigest() == "87545c504573afea5dfb6a847cad903be6dbb9f504215f5ec5c1650c6380e2ce"


@pytest.mark.slow
def test_the_oldest_pillow_gives_the_same_pixels(tmp_path):
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path), OLDEST]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"OLD PILLOW WAS NOT TRIED: {OLDEST} cannot be installed ({done.stderr.strip()[-300:]})")
    told = "import PIL, sys; print(PIL.__version__, file=sys.stderr)"
    script = f"{told}; sys.argv = ['pixel_digests.py', '400']; exec(open({pixel_digests.__file__!r}).read())"
    found = [
        subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, **path}, capture_output=True, text=True, check=True
        )
        for path in ({"PYTHONPATH": str(tmp_path)}, {})
    ]
    assert found[0].stderr.split() != found[1].stderr.split() == [__version__]
    assert json.loads(found[0].stdout)["sha256"] == json.loads(found[1].stdout)["sha256"]


@pytest.mark.parametrize("whole_axis_limit", [0, 8, 1 << 40], ids=["own arithmetic", "as shipped", "Pillow only"])
@settings(max_examples=400)
@given(
    SIDES,
    SIDES,
    st.tuples(SIDES, SIDES),
    st.integers(1, 300),
    st.sampled_from(sorted(FILTERS)),
    st.integers(0, 1 << 30),
)
@example(280, 700, (256, 640), 224, "bicubic", 0)
@example(500, 375, (341, 256), 224, "bilinear", 0)
@example(3, 393, (17, 17), 12, "bicubic", 0)
def test_equals_the_crop_of_the_whole(whole_axis_limit, width, height, size, crop, interpolation, seed):
    image = noise(width, height, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resize, "_WHOLE_AXIS_LIMIT", whole_axis_limit)
        pixels = resized_crop(image, size, crop, interpolation)
    assert np.array_equal(pixels, crop_of_whole(image, size, crop, interpolation))
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


@settings(max_examples=150)
@given(st.integers(1, 3), st.integers(1, 2000), st.integers(1, 64), st.booleans(), st.sampled_from(sorted(FILTERS)))
def test_extreme_aspect(short, long, side, tall, interpolation):
    longer = side * long // short
    assume(longer * side < 1_000_000)
    image = noise(short, long) if tall else noise(long, short)
    size = (side, longer) if tall else (longer, side)
    crop = max(side - side // 8, 1)
    assume(longer > 0)
    assert np.array_equal(
        resized_crop(image, size, crop, interpolation), crop_of_whole(image, size, crop, interpolation)
    )


@pytest.mark.parametrize(("width", "height"), [(100_000, 1), (1, 100_000)])
def test_line_is_never_resized_as_a_whole(width, height):
    image = Image.new("RGB", (width, height), (9, 8, 7))
    size = (width * 256_000, 256) if width > height else (256, height * 256_000)
    with pytest.raises((MemoryError, ValueError, OverflowError)):
        image.resize(size)
    assert (resized_crop(image, size, 224, "bicubic") == (9, 8, 7)).all()


def test_embedding_program_limits_pillow(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    image = noise(100, 80)
    assert np.array_equal(resized_crop(image, (40, 32), 24, "bilinear"), crop_of_whole(image, (40, 32), 24, "bilinear"))
