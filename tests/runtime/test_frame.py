"""Arrays as cameras and libraries hand them over: the same crop as of the plain RGB picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from edgecls.runtime import Frame, InputError, PictureLimits, Preprocess
from edgecls.runtime.picture import open_picture, read_picture, read_stored

RGB = np.random.default_rng(7).integers(0, 256, (61, 83, 3), dtype=np.uint8)
ALPHA = np.dstack([RGB, np.full(RGB.shape[:2], 9, np.uint8)])
WIDE = np.zeros((61, 90, 3), np.uint8)
WIDE[:, 3:86] = RGB

KINDS = {
    "rgb": RGB,
    "rgb, marked": Frame(RGB, "rgb"),
    "bgr": Frame(RGB[:, :, ::-1].copy(), "bgr"),
    "bgr, turned by a view": RGB[:, :, ::-1].copy()[:, :, ::-1],
    "bgr, turned and marked": Frame(RGB[:, :, ::-1], "bgr"),
    "rgba": ALPHA,
    "bgra": Frame(ALPHA[:, :, [2, 1, 0, 3]], "bgr"),
    "three of four": ALPHA[:, :, :3],
    "lines with gaps": WIDE[:, 3:86],
    "bgr, lines with gaps": Frame(WIDE[:, :, ::-1].copy()[:, 3:86], "bgr"),
    "upside down": RGB[::-1].copy()[::-1],
    "mirrored": RGB[:, ::-1].copy()[:, ::-1],
    "planes": np.ascontiguousarray(RGB.transpose(2, 0, 1)).transpose(1, 2, 0),
    "column major": np.asfortranarray(RGB),
    "read only": np.frombuffer(RGB.tobytes(), np.uint8).reshape(RGB.shape),
    "torch": torch.from_numpy(RGB.copy()),
    "torch, planes": torch.from_numpy(RGB.transpose(2, 0, 1).copy()).permute(1, 2, 0),
    "torch, bgr": Frame(torch.from_numpy(RGB[:, :, ::-1].copy()), "bgr"),
    "torch, rgba": torch.from_numpy(ALPHA.copy()),
    "torch, lines with gaps": torch.from_numpy(WIDE.copy())[:, 3:86],
}


@pytest.fixture(params=["1", "0"], ids=["compiled", "pure"], autouse=True)
def fast(request, monkeypatch):
    monkeypatch.setenv("EDGECLS_FAST", request.param)


def preprocess(crop_px: int) -> Preprocess:
    return Preprocess(resize_px=24, crop_px=crop_px, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.mark.parametrize("crop_px", [20, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_pixels_of_the_rgb_picture(kind, crop_px):
    expected = preprocess(crop_px).pixels(Image.fromarray(RGB))
    np.testing.assert_array_equal(preprocess(crop_px).pixels(KINDS[kind]), expected)
    for channels in (3, 4):
        out = np.full((crop_px, crop_px, channels), 77, np.uint8)
        assert preprocess(crop_px).pixels(KINDS[kind], out) is out
        np.testing.assert_array_equal(out[:, :, :3], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_had_as_an_image_and_as_rgb(kind):
    np.testing.assert_array_equal(np.asarray(open_picture(KINDS[kind])), RGB)
    np.testing.assert_array_equal(read_picture(KINDS[kind]), RGB)


@pytest.mark.parametrize("kind", ["rgb", "bgr", "bgra", "rgba", "lines with gaps", "bgr, turned by a view", "planes"])
def test_nothing_is_copied(kind):
    picture = KINDS[kind]
    pixels, blue_first = read_stored(picture)
    assert np.shares_memory(pixels, picture.pixels if isinstance(picture, Frame) else picture)
    assert blue_first == kind.startswith("bgr")


def test_a_frame_is_not_changed():
    before = RGB[:, :, ::-1].copy()
    frame = before.copy()
    preprocess(20).pixels(Frame(frame, "bgr"))
    np.testing.assert_array_equal(frame, before)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("shape", [(61, 83), (61, 83, 1)])
def test_grey(shape, order):
    grey = RGB[:, :, 0].reshape(shape)
    expected = preprocess(20).pixels(Image.fromarray(RGB[:, :, 0]))
    for array in (grey, torch.from_numpy(grey.copy()), grey[::-1].copy()[::-1]):
        np.testing.assert_array_equal(preprocess(20).pixels(Frame(array, order)), expected)
        np.testing.assert_array_equal(preprocess(20).pixels(array), expected)


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (torch.zeros(4, 4, 3), r"array of float32 \[4, 4, 3\]; give uint8"),
        (
            torch.zeros(3, 40, 50, dtype=torch.uint8),
            r"\[3, 40, 50\]; .*channels come last: .*tensor.permute\(1, 2, 0\)",
        ),
        (np.zeros((1, 40, 50), np.uint8), r"array.transpose\(1, 2, 0\)"),
        (torch.zeros(2, 40, 50, 3, dtype=torch.uint8), r"\[2, 40, 50, 3\]; give"),
        (Frame(np.zeros((4, 4, 3), np.int16), "bgr"), "array of int16"),
        (torch.zeros(4, 4, 3, requires_grad=True), r"cannot classify a torch.Tensor: .*tensor.cpu\(\)"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8, device="meta"), "cannot classify a torch.Tensor"),
        (Frame([[1, 2, 3]], "bgr"), "cannot classify a builtins.list"),
    ],
)
def test_what_cannot_be_read_is_told(picture, reason):
    with pytest.raises(InputError, match=reason):
        preprocess(20).pixels(picture)


def test_there_are_two_orders():
    with pytest.raises(InputError, match=r"order is 'grb'; choose from \('rgb', 'bgr'\)"):
        Frame(RGB, "grb")


def test_the_size_of_a_frame_is_limited():
    limits = PictureLimits(max_px=5000)
    for frame in (RGB, Frame(RGB, "bgr"), torch.from_numpy(RGB.copy())):
        with pytest.raises(InputError, match="more than 5000"):
            preprocess(20).pixels(frame, limits=limits)
