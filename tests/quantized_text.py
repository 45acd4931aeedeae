"""Small quantized graphs as ONNX text: a convolution, or a matrix product, of random weights."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser

from edgecls.calibration.graph import Graph


def _listed(values: np.ndarray) -> str:
    return ", ".join(f"{value:.9g}" for value in np.asarray(values).ravel())


_RNG = np.random.default_rng(1)
_CODES = _RNG.integers(-60, 61, 256)
_SCALES = _RNG.uniform(0.01, 0.1, 16)
_CONSTANTS = f"""
  float s = {{0.1}}, float so = {{2}}, uint8 z = {{128}}, uint8 z0 = {{0}}, int8 zi = {{0}}, int8 z3 = {{3}},
  float zero = {{0}}, float six = {{6}},
  float[16] ws = {{{_listed(_SCALES)}}}, int8[16] wz = {{{_listed(np.zeros(16))}}},
  uint8[16] uz = {{{_listed(np.full(16, 128))}}}, int32[16] b = {{{_listed(_RNG.integers(-900, 900, 16))}}},
  float[16] bs = {{{_listed(np.float32(_SCALES) * np.float32(0.1))}}},
  float[16] fb = {{{_listed(_RNG.normal(size=16))}}}
"""
"""z…: zero points, w…: of weights, b…: of biases, f…: floats."""

IN = "c = QuantizeLinear(image, s, z) x = DequantizeLinear(c, s, z)"
WEIGHT = "k = DequantizeLinear<axis = 0>(w, ws, wz)"
COLUMNS = "k = DequantizeLinear<axis = 1>(w, ws, wz)"
BIAS = "o = DequantizeLinear<axis = 0>(b, bs)"


def pair(value: str, into: str, scale: str = "so", zero_point: str = "z") -> str:
    """Text of a QuantizeLinear and a DequantizeLinear."""
    codes, grid = f"{into}_c", f"{scale}, {zero_point}"
    return f"{codes} = QuantizeLinear({value}, {grid}) {into} = DequantizeLinear({codes}, {grid})"


OUT = pair("y", "logits")


def planes(body: str) -> Graph:
    """A graph of `float [batch, 16, 8, 8]` → the same; its weight is `w [16, 16, 1, 1]`."""
    return _graph("float[batch, 16, 8, 8]", "batch, 16, 8, 8", "16, 16, 1, 1", body)


def pixels(body: str) -> Graph:
    """As `planes`, of `uint8 [batch, 8, 8, 16]`."""
    return _graph("uint8[batch, 8, 8, 16]", "batch, 16, 8, 8", "16, 16, 1, 1", body)


def rows(body: str) -> Graph:
    """A graph of `float [batch, 16]` → the same; its weight is `w [16, 16]`."""
    return _graph("float[batch, 16]", "batch, 16", "16, 16", body)


def _graph(image: str, logits: str, weight: str, body: str) -> Graph:
    floats, codes = _listed(_CODES / 30), _listed(_CODES)
    return _named(
        f"g ({image} image) => (float[{logits}] logits) <{_CONSTANTS}, int8[{weight}] w = {{{codes}}}, "
        f"uint8[{weight}] wu = {{{_listed(_CODES + 60)}}}, int8[{weight}] wide = {{{_listed(_CODES * 2)}}}, "
        f"float[{weight}] fw = {{{floats}}}> {{ {body} }}"
    )


def _named(text: str) -> Graph:
    """The graph of a text, each node called as its output, unused constants dropped."""
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 20]> {text}')
    used = {name for node in model.graph.node for name in node.input}
    for node in model.graph.node:
        node.name = node.output[0]
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.checker.check_model(model, full_check=True)
    return Graph(model.SerializeToString())


def inputs(graph: Graph) -> np.ndarray:
    """Three random inputs, most of them within the grid."""
    given = graph.ir_model().graph.inputs[0]
    shape = [side if isinstance(side, int) else 3 for side in given.shape]
    values = np.random.default_rng(0).uniform(-12, 12, shape)
    if given.dtype.numpy() == np.uint8:
        return (values + 100).astype(np.uint8)
    return values.astype(np.float32)


def unoptimised(graph: Graph) -> np.ndarray:
    """What a graph computes, node for node in float."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(graph.proto, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": inputs(graph)})[0]
