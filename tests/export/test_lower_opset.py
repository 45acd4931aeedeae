"""Older opsets compute the same."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgecls.calibration.graph import Graph
from edgecls.export.passes.lower_opset import lower_opset
from edgecls.runtime.errors import UnsupportedError


def model_of(body, outputs="4, 8, 8"):
    text = (
        f'<ir_version: 9, opset_import: ["": 20]> g (float[batch, 4, 8, 8] image) => (float[batch, {outputs}] logits)'
    )
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(f"{text} {body}")))


def run(model):
    image = np.linspace(-6, 6, 512, dtype=np.float32).reshape(2, 4, 8, 8)
    session = ort.InferenceSession(Graph.from_ir(model).proto, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image})[0]


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("{ logits = HardSwish(image) }", "4, 8, 8"),
        ("{ logits = Gelu(image) }", "4, 8, 8"),
        ('{ logits = Gelu<approximate = "tanh">(image) }', "4, 8, 8"),
        ("<int64[2] axes = {2, 3}> { logits = ReduceMean<keepdims = 0>(image, axes) }", "4"),
        ("<int64[1] axes = {1}> { logits = ReduceMax(image, axes) }", "1, 8, 8"),
        ("{ a, b = Split<axis = 1, num_outputs = 2>(image) logits = Concat<axis = 1>(b, a) }", "4, 8, 8"),
        ("{ logits = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], dilations = [1, 1]>(image) }", "4, 8, 8"),
        ("{ h = Cast<to = 10, saturate = 1>(image) logits = Cast<to = 1>(h) }", "4, 8, 8"),
        ("<int64[3] s = {0, 4, 64}> { logits = Reshape(image, s) }", "4, 64"),
        (
            "<float[4] s = {1., 1., 0.5, 0.5}> { logits = "
            'Resize<mode = "nearest", keep_aspect_ratio_policy = "stretch">(image, , s) }',
            "4, 4, 4",
        ),
    ],
)
def test_the_answers_stay(body, outputs):
    expected = run(model_of(body, outputs))
    model = model_of(body, outputs)
    assert lower_opset(model, 17)
    assert model.graph.opset_imports[""] == 17
    np.testing.assert_allclose(run(model), expected, atol=1e-6)


def test_nothing_happens_to_an_old_graph():
    model = model_of("{ logits = Relu(image) }")
    assert not lower_opset(model, 20)


def test_the_ir_version_is_that_of_the_opset():
    model = model_of("{ logits = HardSwish(image) }")
    model.ir_version = 11
    assert lower_opset(model, 20)
    assert (model.ir_version, model.graph.opset_imports[""]) == (9, 20)
    assert [node.op_type for node in model.graph] == ["HardSwish"]


def test_what_the_older_opset_has_stays():
    model = model_of("<int64[2] axes = {2, 3}> { a = Gelu(image) logits = ReduceMean<keepdims = 0>(a, axes) }", "4")
    expected = run(model)
    lower_opset(model, 18)
    assert len(list(model.graph)[-1].inputs) == 2
    np.testing.assert_allclose(run(model), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("{ logits = Mish(image) }", "Mish 'n' .*came later"),
        (
            "{ logits = AveragePool<kernel_shape = [2, 2], dilations = [2, 2], pads = [1, 1, 1, 1]>(image) }",
            "dilations",
        ),
        ("<int64[1] one = {1}> { axes = Add(one, one) logits = ReduceMean(image, axes) }", "computed axes"),
    ],
)
def test_what_has_no_equivalent_is_refused(body, reason):
    model = model_of(body)
    for node in model.graph:
        node.name = "n"
    with pytest.raises(UnsupportedError, match=reason):
        lower_opset(model, 17)
