"""HOG as ONNX operators equals scikit-image's, and the SVM behind it scikit-learn's."""

import io

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from edgecls.models.hog_onnx import FEATURES, ORIENTATIONS, SvmLogits, hog_onnx, hog_svm_onnx
from edgecls.models.hog_svm import hog_features

SIDE = 64


def on_onnxruntime(model):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"pixels": planes(pixels)})[0]


def on_openvino(model, half=False, folder=None):
    core = openvino.Core()
    read = core.read_model(io.BytesIO(model.SerializeToString()))
    if half:
        openvino.save_model(read, folder / "half.xml", compress_to_fp16=True)
        read = core.read_model(folder / "half.xml")
    compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda pixels: compiled(planes(pixels))[0].copy()


def planes(pixels):
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32)


def varied_pictures():
    """Noise, smooth fields, few levels, flat ones, one dim dot, edges along the axes and the diagonals."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (8, 5, 5, 3), dtype=np.uint8)
    smooth = [np.asarray(Image.fromarray(c).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for c in coarse]
    dot = np.zeros((SIDE, SIDE, 3))
    dot[30, 31] = 1, 0, 3
    y, x = np.mgrid[:SIDE, :SIDE, :3][:2]
    drawn = [
        dot,
        np.zeros_like(dot),
        np.full_like(dot, 255),
        255 * (x < 20),
        255 * (y > 9),
        255 * (x > y),
        4 * (63 - x),
    ]
    noise = [rng.integers(0, levels, (SIDE, SIDE, 3)) for levels in (2, 3, 256)]
    return np.stack([*smooth, *drawn, *noise]).astype(np.uint8)


@pytest.fixture(scope="module")
def hog():
    return on_onnxruntime(hog_onnx())


def test_equals_scikit_image_in_both_engines(hog, tmp_path):
    pictures = varied_pictures()
    expected = np.stack([hog_features(picture) for picture in pictures])
    assert expected.shape[1] == FEATURES
    for run in (hog, on_openvino(hog_onnx()), on_openvino(hog_onnx(), half=True, folder=tmp_path)):
        np.testing.assert_allclose(run(pictures), expected, atol=1e-6, rtol=0)


@settings(max_examples=40)
@given(arrays(np.uint8, (8, 8, 3)), st.sampled_from([Image.Resampling.NEAREST, Image.Resampling.BICUBIC]))
def test_equals_scikit_image_on_any_picture(hog, coarse, filter_):
    pixels = np.array(Image.fromarray(coarse).resize((SIDE, SIDE), filter_))
    np.testing.assert_allclose(hog(pixels[None])[0], hog_features(pixels), atol=1e-6, rtol=0)


def test_every_gradient_votes_for_scikit_images_bin():
    """All 511 × 511 of them: the edges between bins are integers that stand for 20°, 40°, …"""
    constants = {entry.name: onnx.numpy_helper.to_array(entry) for entry in hog_onnx().graph.initializer}
    row, column = np.mgrid[-255:256, -255:256]
    beyond = np.tensordot(constants["edges"][..., 0, 0], np.stack([row, column]), 1) * row > 0
    bins = np.tensordot(constants["steps"][..., 0, 0], beyond.astype(np.float32), 1)
    bins += constants["first_bin"][:, None, None]
    degrees = np.rad2deg(np.arctan2(row.astype(float), column.astype(float))) % 180
    expected = degrees // (180 / ORIENTATIONS) == np.arange(ORIENTATIONS)[:, None, None]
    assert (bins == expected)[:, (row != 0) | (column != 0)].all()


def test_every_constant_of_hog_is_a_whole_one_in_float16():
    """But the limits 1e-4 and 0.2, of which the first only tells flat blocks from others."""
    for entry in hog_onnx().graph.initializer:
        value = onnx.numpy_helper.to_array(entry)
        assert entry.name in {"flat", "hysteresis"} or (value.dtype == np.int64) or (value == np.float16(value)).all()


def test_grey_is_pillows():
    """Every value of each channel, and the brightest and darkest pictures."""
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (6, SIDE, SIDE, 3), dtype=np.uint8)
    pixels[0] //= 255
    pixels[1] |= 0xFE
    model = hog_onnx()
    model.graph.output.append(onnx.helper.make_tensor_value_info("grey", onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (grey,) = session.run(["grey"], {"pixels": planes(pixels)})
    expected = np.stack([np.asarray(Image.fromarray(picture).convert("L")) for picture in pixels])
    assert (grey[:, 0] == expected).all()


@pytest.mark.parametrize("rbf", [True, False])
def test_the_svm_is_its_formula(rbf):
    rng = np.random.default_rng(2)
    pictures = varied_pictures()
    vectors = rng.normal(size=(30, FEATURES)) if rbf else None
    weights = rng.normal(size=(5, 30 if rbf else FEATURES)) / 30
    svm = SvmLogits(
        means=rng.uniform(0, 0.2, FEATURES),
        factors=rng.uniform(1, 20, FEATURES),
        weights=weights - weights.mean(1, keepdims=True),
        biases=rng.normal(size=5),
        support_vectors=vectors,
        gamma=1 / FEATURES if rbf else None,
    )
    z = (np.stack([hog_features(picture) for picture in pictures]) - svm.means) * svm.factors
    if vectors is not None:
        z = np.exp(-svm.gamma * np.square(z[:, None] - vectors).sum(2))
    expected = z @ svm.weights.T + svm.biases
    model = hog_svm_onnx(svm)
    assert {entry.domain for entry in model.opset_import} == {""}
    for run in (on_onnxruntime(model), on_openvino(model)):
        np.testing.assert_allclose(run(pictures), expected, atol=1e-5)
        np.testing.assert_allclose(run(pictures[:1]), expected[:1], atol=1e-5)
