"""The two passes against Pillow's own resize of the whole picture, and against its arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image, __version__

from edgecls.runtime import resize
from edgecls.runtime.resize import resized_crop

SIDES = st.one_of(st.integers(1, 4), st.integers(1, 60), st.integers(1, 500))
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
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


@pytest.mark.parametrize("whole_axis_limit", [0, 8, 1 << 40], ids=["own arithmetic", "as shipped", "Pillow only"])
@settings(max_examples=400, deadline=None)
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


@settings(max_examples=150, deadline=None)
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
