import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgecls.calibration.graph import INPUT
from edgecls.calibration.walk import SCALE, ZERO_POINT, batches_of, model_of, session_of, walk
from edgecls.export.trace import probe_pictures, run_onnx

PICTURES = probe_pictures(32, 6)


def test_it_computes_what_the_whole_graph_computes(small):
    _, graph, _ = small
    *_, last = walk(graph.ir_model(), batches_of([PICTURES], 4))
    assert [len(output) for output in last.outputs] == [4, 2]
    np.testing.assert_allclose(np.concatenate(last.outputs), run_onnx(graph.proto, PICTURES), rtol=1e-4, atol=1e-5)


def test_what_is_changed_in_place_is_what_later_nodes_are_given(small):
    _, graph, _ = small
    for step in walk(graph.ir_model(), [PICTURES]):
        if step.node.op_type == "Gemm":
            assert not step.inputs[step.node.inputs[0]][0].any()
        elif step.node.outputs[0].uses():
            for output in step.outputs:
                output[...] = 0


def test_a_node_reads_one_input_through_a_grid(small):
    _, graph, _ = small
    model = graph.ir_model()
    node = next(node for node in model.graph if node.op_type == "Gemm")
    session = session_of(model_of(node, model, quantized=node.inputs[0]))
    rows = np.random.default_rng(0).uniform(-1, 1, (3, 24)).astype(np.float32)
    step = np.asarray(0.25, np.float32)
    got = session.run(None, {node.inputs[0].name: rows, SCALE: step, ZERO_POINT: np.asarray(128, np.uint8)})[0]
    plain = session_of(model_of(node, model)).run(None, {node.inputs[0].name: np.rint(rows / step) * step})[0]
    np.testing.assert_allclose(got, plain, rtol=1e-5, atol=1e-6)


def test_what_depends_on_no_picture_runs_once():
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (uint8[n, 2, 2, 3] image) => (float[n, 2, 2, 3] y)
    <float[1] scale = {0.5}, uint8[1] zero = {3}, uint8[1] codes = {7}>
    { offset = DequantizeLinear (codes, scale, zero)
      x = Cast <to = 1> (image)
      y = Add (x, offset) }"""
    steps = list(walk(ir.from_proto(onnx.parser.parse_model(text)), [np.ones((1, 2, 2, 3), np.uint8)] * 3))
    assert steps[0].outputs[0] is steps[0].outputs[2]
    assert [float(output.max()) for output in steps[-1].outputs] == [3.0, 3.0, 3.0]
    assert INPUT == "image"


@pytest.mark.parametrize(("size", "lengths"), [(4, [4, 2]), (6, [6]), (1, [1] * 6)])
def test_batches(size, lengths):
    made = batches_of([PICTURES[:1], PICTURES[1:]], size)
    assert [len(batch) for batch in made] == lengths
    assert (np.concatenate(made) == PICTURES).all()
