"""The compiled resize and simplejpeg against what runs without them: the same bytes, the same refusals."""

from __future__ import annotations

import ctypes
import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL import __version__ as PILLOW

from edgecls.runtime import fast, resize
from edgecls.runtime.bundle import Padding
from edgecls.runtime.canvas import Canvas
from edgecls.runtime.errors import InputError, UnsupportedError
from edgecls.runtime.picture import open_picture, read_picture
from edgecls.runtime.pixel_memory import pixel_memory
from edgecls.runtime.preprocess import Preprocess
from edgecls.runtime.resize import resized_crop

SIDES = st.one_of(st.integers(1, 5), st.integers(1, 600))
HOW = "without it the pure path runs, which test_resize.py covers; `make install` builds it where there is a C compiler"


@pytest.fixture(scope="module")
def compiled():
    pytest.importorskip("edgecls_fast", reason=f"edgecls-fast is not installed: {HOW}")
    return fast.kernel()


@pytest.fixture(scope="module")
def simplejpeg():
    return pytest.importorskip("simplejpeg", reason="simplejpeg is not installed: pip install simplejpeg")


@pytest.fixture
def transforms():
    if int(PILLOW.split(".")[0]) < 13:
        pytest.skip("tall pictures follow Pillow 13's order of passes")
    pytest.importorskip("torch", reason="the reference is torchvision")
    import edgecls.models.torchvision_operators  # noqa: F401 - before torchvision

    return pytest.importorskip("torchvision.transforms")


@pytest.fixture
def fresh():
    """Forgets what was found before and after the test."""
    found = (fast._kernel, fast._jpeg_decoder)
    for cached in found:
        cached.cache_clear()
    yield
    for cached in found:
        cached.cache_clear()


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def pure(function, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGECLS_FAST", "0")
        return function(*arguments)


def check_everyone_agrees(transforms, width, height, resize_px, crop_px, mode, interpolation, seed):
    """Compiled (from Pillow's memory and from an array) == pure == torchvision."""
    if mode == "shorter" and resize_px**2 * max(width, height) // min(width, height) > 2_000_000:
        height = width  # the reference would resize all of it
    array = noise(width, height, seed)
    image = Image.fromarray(array)
    ours = Preprocess(
        resize_px=resize_px, crop_px=crop_px, mode=mode, interpolation=interpolation, mean=(0, 0, 0), std=(1, 1, 1)
    )
    pixels = ours.pixels(image)
    assert np.array_equal(pixels, ours.pixels(array))
    assert np.array_equal(pixels, pure(ours.pixels, image))
    size = resize_px if mode == "shorter" else (resize_px, resize_px)
    whole = transforms.Resize(size, transforms.InterpolationMode(interpolation))(image)
    assert np.array_equal(pixels, np.asarray(transforms.CenterCrop(crop_px)(whole)))


everything = given(
    width=SIDES,
    height=SIDES,
    resize_px=st.integers(1, 300),
    crop_px=st.integers(1, 320),
    mode=st.sampled_from(["shorter", "squash"]),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    seed=st.integers(0, 1 << 30),
)
shared = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=300, suppress_health_check=shared)
@everything
def test_everyone_agrees(compiled, transforms, **drawn):
    check_everyone_agrees(transforms, **drawn)


@pytest.mark.slow
@settings(max_examples=10_000, suppress_health_check=shared)
@everything
def test_everyone_agrees_often(compiled, transforms, **drawn):
    check_everyone_agrees(transforms, **drawn)


@settings(max_examples=150, suppress_health_check=shared)
@given(st.integers(1, 3), st.integers(1, 4000), st.integers(1, 64), st.booleans(), st.booleans())
def test_extreme_aspect(compiled, short, long, side, tall, bicubic):
    size, array = (side, side * long // short or 1), noise(short, long)
    if not tall:
        size, array = size[::-1], np.ascontiguousarray(array.transpose(1, 0, 2))
    arguments = (array, size, max(side - side // 8, 1), "bicubic" if bicubic else "bilinear")
    assert np.array_equal(resized_crop(*arguments), pure(resized_crop, *arguments))


@pytest.mark.parametrize(("width", "height"), [(3_000_000, 1), (1, 3_000_000)])
@pytest.mark.parametrize("size", [(7, 5), (256, 256)])
def test_lines_of_millions_of_pixels(compiled, width, height, size):
    arguments = (noise(width, height), size, 224, "bicubic")
    assert np.array_equal(resized_crop(*arguments), pure(resized_crop, *arguments))


def test_line_is_never_resized_as_a_whole(compiled):
    for width, height in ((100_000, 1), (1, 100_000)):
        size = (width * 256_000, 256) if width > height else (256, height * 256_000)
        pixels = resized_crop(Image.new("RGB", (width, height), (9, 8, 7)), size, 224, "bicubic")
        assert (pixels == (9, 8, 7)).all()


@pytest.mark.parametrize("pixel_bytes", [3, 4])
@pytest.mark.parametrize(("size", "crop"), [((341, 256), 224), ((100, 90), 224), ((256, 700), 224)])
def test_writes_inside_the_border_only(compiled, pixel_bytes, size, crop):
    border = Padding(top_px=1, left_px=2, bottom_px=3, right_px=4, value=(7, 8, 9), pixel_bytes=pixel_bytes)
    direct, filled = (Canvas((2, crop, crop, 3), border) for _ in range(2))
    crops = []
    for number, picture in enumerate((noise(500, 375), Image.fromarray(noise(300, 800)))):
        out = direct.inside[number]
        assert resized_crop(picture, size, crop, "bilinear", out) is out
        crops.append(pure(resized_crop, picture, size, crop, "bilinear"))
    expected = filled.fill(np.stack(crops))
    assert np.array_equal(direct.images[..., :3], expected[..., :3])


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize(
    "out",
    [
        np.zeros((24, 24, 3), np.int8), np.zeros((24, 25, 3), np.uint8), np.zeros((24, 24, 5), np.uint8),
        np.zeros((24, 24, 4), np.uint8)[..., :3], np.zeros((3, 24, 24), np.uint8).transpose(1, 2, 0),
    ],
)  # fmt: skip
def test_other_outputs_are_refused(out, on, monkeypatch):
    monkeypatch.setenv("EDGECLS_FAST", str(int(on)))
    with pytest.raises(ValueError, match="out is|lines of out"):
        resized_crop(noise(50, 40), (32, 28), 24, "bilinear", out)


def test_output_without_the_kernel():
    out = np.zeros((24, 24, 4), np.uint8)
    pure(resized_crop, noise(50, 40), (32, 28), 24, "bilinear", out)
    assert np.array_equal(out[..., :3], pure(resized_crop, noise(50, 40), (32, 28), 24, "bilinear"))
    assert not out[..., 3].any()


def views(array: np.ndarray) -> list[np.ndarray]:
    rgba = np.dstack([array, array[..., 0]])
    turned = [array[::-1], array[:, ::-1], array[..., ::-1], np.asfortranarray(array)]
    parts = [array[::2, ::3], array[5:, 7:], array[:-5, :-7], array[:1], array[:, :1], rgba[..., :3]]
    return [*turned, *parts, np.broadcast_to(array[:1], array.shape), np.broadcast_to(array[:, :1], array.shape)]


def test_arrays_of_every_layout(compiled):
    for view in views(noise(150, 120)):
        arguments = (view, (90, 80), 64, "bilinear")
        assert np.array_equal(resized_crop(*arguments), resized_crop(np.ascontiguousarray(view), *arguments[1:]))


def test_array_is_not_copied():
    array = noise(50, 40)
    for view in (array, array[3:, 5:], array[:1]):
        assert pixel_memory(view).address == view.ctypes.data
        assert read_picture(view) is view


def memory_of(image: Image.Image) -> np.ndarray:
    found = pixel_memory(image)
    lines = (ctypes.c_uint8 * (found.line_bytes * image.height)).from_address(found.address)
    pixels = np.frombuffer(lines, np.uint8).reshape(image.height, found.line_bytes)[
        :, : found.pixel_bytes * image.width
    ]
    return pixels.reshape(image.height, image.width, found.pixel_bytes)[..., :3].copy()


@pytest.mark.parametrize("size", [(1, 1), (50, 40), (499, 375), (5000, 1000), (1, 5_000_000)])
def test_pixels_in_pillows_memory(size):
    array = noise(*size)
    assert np.array_equal(memory_of(Image.fromarray(array)), array)


@pytest.mark.parametrize("alignment", [4, 16, 64])
def test_aligned_lines_of_pillow(alignment):
    array = noise(49, 37)
    try:
        Image.core.set_alignment(alignment)
        assert np.array_equal(memory_of(Image.fromarray(array)), array)
    finally:
        Image.core.set_alignment(1)


def test_image_made_of_arrow():
    if not hasattr(Image, "fromarrow"):
        pytest.skip("Pillow before 11.2 has no Arrow")
    array = noise(60, 50)
    assert np.array_equal(memory_of(Image.fromarrow(Image.fromarray(array), "RGB", (60, 50))), array)


def test_threads(compiled):
    images = [Image.fromarray(noise(300 + number, 200, number)) for number in range(32)]
    with ThreadPoolExecutor(8) as pool:
        threaded = list(pool.map(lambda image: resized_crop(image, (96, 64), 56, "bicubic"), images))
    for pixels, image in zip(threaded, images, strict=True):
        assert np.array_equal(pixels, pure(resized_crop, image, (96, 64), 56, "bicubic"))


@pytest.mark.parametrize(
    ("across", "down", "stride", "pixel_bytes"),
    [((0, 4, 0, 4), (9, 4, 0, 4), 27, 3), ((9, 4, 1, 4), (9, 4, 0, 4), 27, 3), ((9, 4, 0, 4), (9, 4, -1, 4), 27, 3),
     ((9, 4, 0, 0), (9, 4, 0, 4), 27, 3), ((9, 4, 0, 4), (9, 4, 0, 4), 26, 3), ((9, 4, 0, 4), (9, 4, 0, 4), 27, 2)],
)  # fmt: skip
def test_kernel_refuses_contradictions(compiled, across, down, stride, pixel_bytes):
    pixels, out, window = np.zeros(300, np.uint8), np.zeros(300, np.uint8), ctypes.c_int64 * 4
    status = compiled.edgecls_resample(
        pixels.ctypes.data, stride, pixel_bytes, window(*across), window(*down), 0, 0, out.ctypes.data, 12, 3
    )
    assert status == 2


def test_names_what_runs(compiled, monkeypatch):
    assert resize.kernel() == f"edgecls-fast {sys.modules['edgecls_fast'].__version__}"
    monkeypatch.setenv("EDGECLS_FAST", "0")
    assert resize.kernel() == f"pillow {PILLOW}"
    assert fast.versions()["jpeg"] == f"pillow {PILLOW}"


@pytest.mark.parametrize("name", ["edgecls_fast", "simplejpeg"])
def test_absent(name, fresh, monkeypatch):
    find = fast.importlib.util.find_spec
    monkeypatch.setattr(fast.importlib.util, "find_spec", lambda asked: None if asked == name else find(asked))
    assert (fast.kernel if name == "edgecls_fast" else fast.jpeg_decoder)() is None
    assert fast.versions()["resize" if name == "edgecls_fast" else "jpeg"] == f"pillow {PILLOW}"


def install(monkeypatch, name: str, **attributes) -> None:
    """A package of that name, whatever is really installed."""
    package = ModuleType(name)
    vars(package).update(attributes, __spec__=SimpleNamespace())
    monkeypatch.setitem(sys.modules, name, package)


def unloadable() -> None:
    raise OSError("resample.so: wrong ELF class")


@pytest.mark.parametrize(
    ("package", "reason"),
    [
        ({"ABI_VERSION": 2, "__version__": "9.1"}, r"edgecls-fast 9\.1 has ABI 2, this edgecls needs 1: install"),
        ({"ABI_VERSION": 1, "__version__": "1.0", "load": unloadable}, r"\(resample\.so: wrong ELF class\): install"),
        ({}, "no attribute 'ABI_VERSION'"),
    ],
)
def test_broken_kernel_is_no_silent_fallback(package, reason, fresh, monkeypatch):
    install(monkeypatch, "edgecls_fast", **package)
    with pytest.raises(UnsupportedError, match=reason):
        resized_crop(noise(9, 9), (8, 8), 8, "bilinear")
    monkeypatch.setenv("EDGECLS_FAST", "0")
    assert resized_crop(noise(9, 9), (8, 8), 8, "bilinear").shape == (8, 8, 3)


def test_library_of_another_abi(compiled, monkeypatch):
    package = sys.modules["edgecls_fast"]
    monkeypatch.setattr(package, "ABI_VERSION", 77)
    with pytest.raises(OSError, match="has ABI 1, the package beside it 77"):
        package.load()


def test_broken_simplejpeg(fresh, monkeypatch):
    install(monkeypatch, "simplejpeg")
    with pytest.raises(UnsupportedError, match="simplejpeg is installed but cannot be used"):
        open_picture(encoded(Image.new("RGB", (8, 8))))


def test_importing_the_runtime_loads_neither():
    code = "import sys, edgecls.runtime; print({'edgecls_fast', 'simplejpeg'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "set()", done.stderr


SMOOTH = Image.fromarray(noise(9, 7)).resize((157, 113), Image.Resampling.BICUBIC)


def is_simplejpegs(data: bytes) -> bool:
    return isinstance(read_picture(data), np.ndarray)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("quality", [10, 75, 100])
@pytest.mark.parametrize("size", [(157, 113), (1, 1), (17, 8), (8, 17)])
def test_plain_jpeg(simplejpeg, progressive, subsampling, quality, size, tmp_path):
    data = encoded(SMOOTH.crop((0, 0, *size)), progressive=progressive, subsampling=subsampling, quality=quality)
    path = tmp_path / "picture.jpg"
    path.write_bytes(data)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    for picture in (data, memoryview(data), path):
        assert is_simplejpegs(picture)
        assert np.array_equal(read_picture(picture), expected)
        assert np.array_equal(np.asarray(open_picture(picture)), expected)


def test_jpeg_of_rgb_and_restart_markers(simplejpeg):
    for options in ({"keep_rgb": True}, {"restart_marker_blocks": 3}, {"optimize": True, "comment": b"x" * 99}):
        data = encoded(SMOOTH, **options)
        assert is_simplejpegs(data)
        assert np.array_equal(read_picture(data), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_jpeg_is_pillows(simplejpeg, mode):
    data = encoded(SMOOTH.convert(mode))
    assert not is_simplejpegs(data)
    assert np.array_equal(np.asarray(open_picture(data)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_jpeg(simplejpeg, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(SMOOTH, exif=exif)
    for rule in ("ignore", "apply"):
        assert np.array_equal(np.asarray(open_picture(data, rule)), np.asarray(pure(open_picture, data, rule)))


def answer(data: bytes) -> bytes | str:
    try:
        return open_picture(data).tobytes()
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("progressive", [False, True])
def test_truncated_jpeg_is_refused_in_pillows_words(simplejpeg, progressive):
    data = encoded(SMOOTH, progressive=progressive, quality=90)
    for kept in [*range(1, 40), *range(40, len(data), 97), *range(len(data) - 40, len(data))]:
        assert answer(data[:kept]) == pure(answer, data[:kept])


@pytest.mark.parametrize("progressive", [False, True])
def test_damaged_jpeg_is_answered_as_by_pillow(simplejpeg, progressive):
    data = encoded(SMOOTH, progressive=progressive, quality=90)
    rng = np.random.default_rng(1)
    for _ in range(400):
        damaged = np.frombuffer(data, np.uint8).copy()
        damaged[rng.integers(3, len(damaged), rng.integers(1, 5))] = rng.integers(0, 256)
        assert answer(damaged.tobytes()) == pure(answer, damaged.tobytes())


@given(st.binary(max_size=300))
def test_frames_of_rubbish(rubbish):
    from edgecls.runtime.picture import _is_plain_jpeg

    assert _is_plain_jpeg(b"\xff\xd8\xff" + rubbish) in (True, False)
