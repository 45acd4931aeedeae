"""HOG and a support vector machine as one ONNX graph of plain operators, from pixels to logits.

Histograms of oriented gradients (Dalal and Triggs, "Histograms of Oriented Gradients for Human Detection", CVPR 2005)
as `skimage.feature.hog` computes them. Which bin a gradient votes for is decided on integers that float32 holds exactly
(and whose constants float16 holds exactly), so that it is scikit-image's bin, always.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

MODEL = "hog-svm"
"""What the model is called on the command line and in a file's card."""

SIDE_PX = 64
CELL_PX = 8
ORIENTATIONS = 9
FEATURES = (SIDE_PX // CELL_PX - 1) ** 2 * 4 * ORIENTATIONS
"""Length of the descriptor: blocks of 2 × 2 cells, overlapping by one cell."""

FLOAT32_ONLY = (
    "HOG sorts integer gradients into bins, which neither 8 bits nor half-precision arithmetic can. Export it as fp32; "
    "where size or speed matters, train it with a linear kernel or fewer pictures"
)
"""Why other arithmetic is refused, and what to do instead."""

_HOG = """
    parts = Conv(pixels, grey_parts)
    grey256 = ReduceSum(parts, channels)
    grey_exact = Mul(grey256, one_256th)
    grey_rounded = Add(grey_exact, half)
    grey = Floor(grey_rounded)

    differences = Conv <pads = [1, 1, 1, 1]> (grey, difference)
    gradients = Mul(differences, inside)
    row, column = Split <axis = 1, num_outputs = 2> (gradients)
    squares = Mul(gradients, gradients)
    energy = ReduceSum(squares, channels)
    magnitude = Sqrt(energy)

    side = Conv(gradients, edges)
    side_upwards = Mul(side, row)
    is_beyond = Greater(side_upwards, zero)
    beyond = Cast <to = 1> (is_beyond)
    bins = Conv(beyond, steps, first_bin)
    votes = Mul(bins, magnitude)
    histograms = AveragePool <kernel_shape = [8, 8], strides = [8, 8]> (votes)

    cells = Transpose <perm = [0, 2, 3, 1]> (histograms)
    upper = Slice(cells, zero_rows, seven, rows)
    lower = Slice(cells, one, eight, rows)
    upper_left = Slice(upper, zero_rows, seven, columns)
    upper_right = Slice(upper, one, eight, columns)
    lower_left = Slice(lower, zero_rows, seven, columns)
    lower_right = Slice(lower, one, eight, columns)
    blocks = Concat <axis = 3> (upper_left, upper_right, lower_left, lower_right)
    blocks2 = Mul(blocks, blocks)
    norm2 = ReduceSum(blocks2, last)
    norm2_or_one = Max(norm2, flat)
    norm = Sqrt(norm2_or_one)
    normal = Div(blocks, norm)
    clipped = Min(normal, hysteresis)
    clipped2 = Mul(clipped, clipped)
    clipped_norm2 = ReduceSum(clipped2, last)
    clipped_norm2_or_one = Max(clipped_norm2, flat)
    clipped_norm = Sqrt(clipped_norm2_or_one)
    descriptor = Div(clipped, clipped_norm)
    features = Flatten(descriptor)
"""

_SCALER = """
    centred = Sub(features, feature_means)
    scaled = Mul(centred, feature_factors)
"""

_LINEAR = """
    logits = Gemm(scaled, weights, biases)
"""

# exp(−|u − v|² / 2), the square multiplied out; the scaler has taken sqrt(2 gamma) in. What a picture has in common
# with all support vectors cancels in the last product, and would cost a decimal digit there.
_RBF = """
    products = Gemm(scaled, support_vectors, half_squares)
    scaled2 = Mul(scaled, scaled)
    square = ReduceSum(scaled2, last)
    half_square = Mul(square, half)
    exponent = Sub(products, half_square)
    kernel = Exp(exponent)
    common = ReduceMean(kernel, last)
    distinct = Sub(kernel, common)
    logits = Gemm(distinct, weights, biases)
"""


@dataclass(frozen=True)
class SvmLogits:
    """A scaler, a support vector machine and the linear map from its decision values to logits, as one function.

    logits = weights · k(z) + biases with z = (features − means) · factors, where k(z) is z itself in a linear machine
    and exp(−gamma |z − support vector|²), one for each, in an RBF machine.
    """

    means: NDArray[np.float64]
    """`[features]`"""
    factors: NDArray[np.float64]
    """`[features]`, zero where a feature is not looked at."""
    weights: NDArray[np.float64]
    """`[classes, features]`; or `[classes, support vectors]`, whose rows sum to zero as those of an SVC do."""
    biases: NDArray[np.float64]
    """`[classes]`"""
    support_vectors: NDArray[np.float64] | None = None
    """`[support vectors, features]`, scaled; None in a linear machine."""
    gamma: float | None = None
    """Of the RBF kernel."""


def hog_onnx() -> onnx.ModelProto:
    """The descriptor alone.

    Returns:
        A model from `pixels`, float32 `[batch, 3, 64, 64]`, whole numbers 0..255, RGB, to `features`, float32
        `[batch, 1764]`: `skimage.feature.hog(grey, 9, (8, 8), (2, 2))` of the grey picture that Pillow's
        `convert("L")` makes.
    """
    return _model(_HOG, f"float[batch, {FEATURES}] features", _hog_constants())


def hog_svm_onnx(svm: SvmLogits) -> onnx.ModelProto:
    """Descriptor and classifier.

    skl2onnx writes scaler and SVM as operators of the domain ai.onnx.ml, which OpenVINO and TensorRT do not have, and
    libsvm's votes as hundreds of nodes; here they are matrix products, which every engine has. The tests compare them.

    Returns:
        A model from `pixels` as `hog_onnx` takes them to `logits`, float32 `[batch, classes]`.
    """
    factors = svm.factors
    constants = {"feature_means": svm.means, "weights": svm.weights.T, "biases": svm.biases}
    if svm.support_vectors is not None and svm.gamma is not None:
        vectors = svm.support_vectors * np.sqrt(2 * svm.gamma)
        factors = factors * np.sqrt(2 * svm.gamma)
        constants |= {"support_vectors": vectors.T, "half_squares": -np.square(vectors).sum(1) / 2}
    body = _HOG + _SCALER + (_LINEAR if svm.support_vectors is None else _RBF)
    constants |= {"feature_factors": factors}
    return _model(body, f"float[batch, {len(svm.biases)}] logits", _hog_constants() | constants)


def _hog_constants() -> dict[str, NDArray[np.generic]]:
    # Pillow: grey = (19595 R + 38470 G + 7471 B + 32768) >> 16, here in steps of 256 and of 1.
    shares = np.asarray([19595, 38470, 7471])
    # The gradient is zero along the border.
    inside = np.ones((1, 2, SIDE_PX, SIDE_PX))
    inside[0, 0, [0, -1]] = inside[0, 1, :, [0, -1]] = 0
    difference = np.zeros((2, 1, 3, 3))
    difference[0, 0, :, 1] = difference[1, 0, 1] = -1, 0, 1
    # Directions (column, row) of 20°, 40°, …, 160°, so near to them that no gradient of −255..255 lies between.
    edges = np.asarray(
        [(110, 40), (174, 146), (153, 265), (100, 567), (-100, 567), (-112, 194), (-230, 193), (-250, 91)]
    )
    # From "beyond the edge after bin k" to "in bin k".
    steps = np.eye(ORIENTATIONS, ORIENTATIONS - 1, -1) - np.eye(ORIENTATIONS, ORIENTATIONS - 1)
    floats = {
        "grey_parts": np.stack([shares // 256, shares % 256 / 256])[..., None, None],
        "one_256th": 1 / 256,
        "half": 0.5,
        "zero": 0,
        "difference": difference,
        "inside": inside,
        "edges": np.stack([edges[:, 0], -edges[:, 1]], 1)[..., None, None],
        "steps": steps[..., None, None],
        "first_bin": np.eye(ORIENTATIONS)[0],
        # Flat blocks are zero, not zero by zero. Others have squares above 2e-4 and then 0.04, where the 1e-10 that
        # scikit-image adds to them means nothing.
        "flat": 1e-4,
        "hysteresis": 0.2,
    }
    indices = {"channels": 1, "last": -1, "rows": 1, "columns": 2, "zero_rows": 0, "one": 1, "seven": 7, "eight": 8}
    constants: dict[str, NDArray[np.generic]] = {name: np.asarray(value, np.float32) for name, value in floats.items()}
    return constants | {name: np.asarray([value], np.int64) for name, value in indices.items()}


def _model(body: str, output: str, constants: dict[str, NDArray[np.generic]]) -> onnx.ModelProto:
    import onnx

    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]>\n'
        f"hog_svm (float[batch, 3, {SIDE_PX}, {SIDE_PX}] pixels) => ({output}) {{{body}}}"
    )
    for name, value in constants.items():
        value = value.astype(np.float32) if value.dtype == np.float64 else value
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))
    onnx.checker.check_model(model, full_check=True)
    return model
