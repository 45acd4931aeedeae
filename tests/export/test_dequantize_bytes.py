"""The order of Transpose and DequantizeLinear is exchanged, and nothing else."""

import numpy as np
from quantized_text import OUT, WEIGHT, pixels, planes, unoptimised

from edgecls.calibration.graph import Graph
from edgecls.export.passes.dequantize_bytes import dequantize_bytes

GRAPH = pixels(f"t = Transpose<perm = [0, 3, 1, 2]>(image) x = DequantizeLinear(t, s, z) {WEIGHT} y = Conv(x, k) {OUT}")


def test_bytes_are_dequantized_before_they_are_transposed():
    model = GRAPH.ir_model()
    assert dequantize_bytes(model)
    assert [node.op_type for node in model.graph][:2] == ["DequantizeLinear", "Transpose"]
    np.testing.assert_array_equal(unoptimised(Graph.from_ir(model)), unoptimised(GRAPH))


def test_other_graphs_stay_as_they_are():
    model = planes("logits = Relu(image)").ir_model()
    assert not dequantize_bytes(model)
    twice = GRAPH.ir_model()
    assert dequantize_bytes(twice)
    assert not dequantize_bytes(twice)
