"""The record, and its pixels against torchvision's transforms."""

from __future__ import annotations

import hashlib
import io
import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL import __version__ as PILLOW

from edgecls.runtime.errors import InputError, InvalidRecordError
from edgecls.runtime.picture_limits import PictureLimits
from edgecls.runtime.preprocess import MAX_SIDE_PX, Preprocess

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def preprocess(**changes) -> Preprocess:
    return Preprocess(**{"resize_px": 256, "crop_px": 224, "mean": MEAN, "std": STD, **changes})


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def transforms():
    pytest.importorskip("torch", reason="the reference is torchvision")
    import edgecls.models.torchvision_operators  # noqa: F401 - before torchvision

    return pytest.importorskip("torchvision.transforms")


pillow_13 = pytest.mark.skipif(
    int(PILLOW.split(".")[0]) < 13, reason="tall pictures follow Pillow 13's order of passes"
)


@pillow_13
@settings(max_examples=250)
@given(
    width=st.one_of(st.integers(1, 5), st.integers(1, 700)),
    height=st.one_of(st.integers(1, 5), st.integers(1, 700)),
    resize=st.integers(1, 300),
    crop=st.integers(1, 320),
    mode=st.sampled_from(["shorter", "squash"]),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
def test_pixels_are_torchvisions(transforms, width, height, resize, crop, mode, interpolation):
    if mode == "shorter" and resize**2 * max(width, height) // min(width, height) > 4_000_000:
        width = height  # the reference would resize all of it
    image = noise(width, height)
    reference = transforms.Compose(
        [
            transforms.Resize(
                resize if mode == "shorter" else (resize, resize), transforms.InterpolationMode(interpolation)
            ),
            transforms.CenterCrop(crop),
        ]
    )
    ours = preprocess(resize_px=resize, crop_px=crop, mode=mode, interpolation=interpolation).pixels(image)
    assert np.array_equal(ours, np.asarray(reference(image)))


@pillow_13
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (256, 256), (224, 900), (3000, 200), (1, 1)])
@pytest.mark.parametrize(("interpolation", "resize", "crop"), [("bicubic", 256, 224), ("bilinear", 232, 224)])
def test_pixels_of_usual_sizes(transforms, size, interpolation, resize, crop):
    image = noise(*size)
    reference = transforms.CenterCrop(crop)(
        transforms.Resize(resize, transforms.InterpolationMode(interpolation))(image)
    )
    ours = preprocess(resize_px=resize, crop_px=crop, interpolation=interpolation).pixels(image)
    assert np.array_equal(ours, np.asarray(reference))


def test_pixels_do_not_depend_on_how_the_picture_comes(tmp_path):
    image = noise(320, 200)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    path = tmp_path / "picture.png"
    path.write_bytes(buffer.getvalue())
    description = preprocess()
    pixels = description.pixels(image)
    for picture in (path, str(path), buffer.getvalue(), bytearray(buffer.getvalue()), np.asarray(image)):
        assert np.array_equal(description.pixels(picture), pixels)
    assert pixels.shape == (224, 224, 3)
    assert pixels.dtype == np.uint8


def test_pixels_never_alias_the_input():
    array = np.full((224, 224, 3), 7, np.uint8)
    pixels = preprocess(resize_px=224).pixels(array)
    pixels[:] = 0
    assert (array == 7).all()


def test_pixels_in_threads():
    images = [noise(300 + number, 200, number) for number in range(16)]
    description = preprocess(resize_px=64, crop_px=56)
    with ThreadPoolExecutor(8) as pool:
        threaded = list(pool.map(description.pixels, images))
    assert all(np.array_equal(a, description.pixels(b)) for a, b in zip(threaded, images, strict=True))


def test_exif_rule():
    image = noise(90, 60)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    turned = image.transpose(Image.Transpose.ROTATE_270)
    ignoring = preprocess(resize_px=40, crop_px=32)
    applying = preprocess(resize_px=40, crop_px=32, exif="apply")
    assert np.array_equal(ignoring.pixels(buffer.getvalue()), ignoring.pixels(image))
    assert np.array_equal(applying.pixels(buffer.getvalue()), ignoring.pixels(turned))


def jpeg(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["shorter", "squash"])
@pytest.mark.parametrize(
    ("size", "scale"), [((500, 127), 1), ((128, 300), 2), ((257, 255), 2), ((256, 999), 4), ((600, 512), 8)]
)
def test_scaled_decode_keeps_twice_the_resize(mode, size, scale):
    data = jpeg(noise(*size))
    smaller = Image.open(io.BytesIO(data))
    smaller.draft(None, (size[0] // scale, size[1] // scale))
    assert smaller.size == tuple(-(-side // scale) for side in size)
    description = preprocess(mode=mode, resize_px=32, crop_px=28)
    scaled = msgspec.structs.replace(description, scaled_decode=True)
    assert np.array_equal(scaled.pixels(data), description.pixels(smaller.convert("RGB")))
    assert np.array_equal(scaled.pixels(data), description.pixels(data)) == (scale == 1)


def test_scaled_decode_is_of_encoded_jpeg_only():
    image = noise(300, 200)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    whole, scaled = (preprocess(resize_px=32, crop_px=32, scaled_decode=flag) for flag in (False, True))
    for picture in (buffer.getvalue(), image, np.asarray(image)):
        assert np.array_equal(scaled.pixels(picture), whole.pixels(picture))


def test_scaled_decode_turns_and_refuses_as_ever():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = jpeg(noise(300, 200), exif=exif)
    straight, turned = (
        preprocess(resize_px=32, crop_px=32, scaled_decode=True, exif=rule) for rule in ("ignore", "apply")
    )
    assert np.abs(np.rot90(straight.pixels(data), -1).astype(int) - turned.pixels(data)).max() <= 1
    with pytest.raises(InputError, match="damaged"):
        straight.pixels(data[: len(data) // 2])
    with pytest.raises(InputError, match="pixels"):
        straight.pixels(data, limits=PictureLimits(max_px=59_999))


def test_digest_of_records_from_before_scaled_decode():
    plain = msgspec.structs.asdict(preprocess())
    assert not plain.pop("scaled_decode")
    assert preprocess().digest == hashlib.sha256(msgspec.json.encode(plain, order="sorted")).hexdigest()
    assert msgspec.convert(plain, Preprocess) == preprocess()


records = st.builds(
    Preprocess,
    mode=st.sampled_from(["shorter", "squash"]),
    resize_px=st.integers(1, MAX_SIDE_PX),
    crop_px=st.integers(1, MAX_SIDE_PX),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    mean=st.tuples(*[st.floats(-10, 10)] * 3),
    std=st.tuples(*[st.floats(1e-4, 10)] * 3),
    colour=st.sampled_from(["rgb", "bgr"]),
    exif=st.sampled_from(["ignore", "apply"]),
    scaled_decode=st.booleans(),
)


@given(records)
def test_json_round_trip(record):
    again = msgspec.json.decode(msgspec.json.encode(record), type=Preprocess)
    assert again == record
    assert again.digest == record.digest


def test_digest_tells_every_field_apart():
    variants = [
        preprocess(),
        preprocess(mode="squash"),
        preprocess(resize_px=257),
        preprocess(crop_px=225),
        preprocess(interpolation="bicubic"),
        preprocess(mean=(0, 0, 0)),
        preprocess(std=(1, 1, 1)),
        preprocess(colour="bgr"),
        preprocess(exif="apply"),
        preprocess(scaled_decode=True),
    ]
    assert all(a.digest != b.digest for a, b in itertools.combinations(variants, 2))
    assert preprocess(mean=(0, 0, 0)).digest == preprocess(mean=[0.0, -0.0, np.float32(0)]).digest
    assert len(preprocess().digest) == 64


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("resize_px", 0),
        ("resize_px", MAX_SIDE_PX + 1),
        ("resize_px", 256.0),
        ("resize_px", True),
        ("crop_px", -1),
        ("crop_px", None),
        ("mode", "longer"),
        ("interpolation", "nearest"),
        ("colour", "RGB"),
        ("exif", ""),
        ("scaled_decode", 1),
        ("mean", (0.5, 0.5)),
        ("mean", (0.5, 0.5, math.nan)),
        ("mean", (123.675, 116.28, 103.53)),
        ("mean", "abc"),
        ("mean", 0.5),
        ("std", (0.2, 0.2, 0.0)),
        ("std", (0.2, -0.2, 0.2)),
        ("std", (0.2, math.inf, 0.2)),
        ("std", None),
    ],
)
def test_refused_fields(field, value):
    with pytest.raises(InvalidRecordError, match=field) as caught:
        preprocess(**{field: value})
    assert isinstance(caught.value, InputError)


def test_decoding_reports_a_bad_field_as_msgspec_does():
    good = msgspec.json.encode(preprocess())
    with pytest.raises(msgspec.ValidationError, match=r"crop_px is 0; .*pixels from 1"):
        msgspec.json.decode(good.replace(b'"crop_px":224', b'"crop_px":0'), type=Preprocess)
