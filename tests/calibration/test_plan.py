import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from networks import plan_of

from edgecls.calibration.collect import collect_histograms
from edgecls.calibration.graph import Graph
from edgecls.calibration.plan import QuantPlan, activations, channel_bounds, make_plan
from edgecls.export.trace import probe_pictures
from edgecls.runtime import InputError
from edgecls.runtime.bundle import CalibrationRecord


def edited(plan, **changes):
    return msgspec.structs.replace(plan, **changes)


def first_tensor(plan, **changes):
    name, tensor = next(iter(plan.tensors.items()))
    return edited(plan, tensors={**plan.tensors, name: msgspec.structs.replace(tensor, **changes)})


def test_it_survives_being_written_and_read(small, tmp_path):
    _, graph, plan = small
    path = tmp_path / "plan.json"
    path.write_bytes(plan.to_json())
    again = QuantPlan.read(path, graph)
    assert again == plan
    assert again.digest == plan.digest


def test_it_covers_every_activation_and_every_weight(small):
    _, graph, plan = small
    model = graph.ir_model()
    assert set(plan.tensors) == {value.name for value in activations(model)}
    weighted = [node.name for node in model.graph if node.op_type in {"Conv", "Gemm"}]
    assert sorted(plan.weights) == sorted(weighted)
    assert "stem.0" in plan.weights
    assert len(plan.weights["stem.0"]) == 16


def test_a_hard_swish_input_is_not_covered_below_minus_three(small):
    _, graph, plan = small
    inputs = {node.inputs[0].name for node in graph.ir_model().graph if node.op_type == "HardSwish"}
    assert inputs
    for name in inputs:
        assert plan.tensors[name].minimum < -3
        assert plan.tensors[name].asymmetric[0] >= -3


def test_a_hard_sigmoid_is_flat_beyond_what_its_attributes_say():
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]>
        g (uint8[n, 8, 8, 3] image) => (float[n, 192] logits)
        { f = Cast<to = 1>(image) x = Flatten(f) logits = HardSigmoid<alpha = 0.01, beta = 0.5>(x) }"""
    )
    graph = Graph.from_ir(ir.from_proto(onnx.shape_inference.infer_shapes(model)))
    pictures = np.minimum(probe_pictures(8, 4), 40)
    assert plan_of(graph, pictures).tensors["x"].asymmetric[1] > 30


def test_what_moves_the_values_of_a_gate_is_a_gate():
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]>
        g (uint8[n, 8, 8, 3] image) => (float[n, 192] logits)
        { f = Cast<to = 1>(image) x = Flatten(f) g = Sigmoid(x) h = Unsqueeze(g, one) i = Squeeze(h, one)
          logits = Mul(x, i) }"""
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "one"))
    graph = Graph.from_ir(ir.from_proto(onnx.shape_inference.infer_shapes(model)))
    tensors = plan_of(graph, probe_pictures(8, 4)).tensors
    assert {tensors[name].asymmetric_by for name in ("g", "h", "i")} == {"gate"}


def test_a_transposed_convolution_has_no_integer_weights():
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]>
        g (uint8[n, 8, 8, 3] image) => (float[n, 192] logits)
        <float[3, 1, 1, 1] w = {1, 2, 3}> { p = Transpose<perm = [0, 3, 1, 2]>(image) f = Cast<to = 1>(p)
          c = ConvTranspose<group = 3>(f, w) logits = Flatten(c) }"""
    )
    model.graph.node[2].name = "c"
    graph = Graph.from_ir(ir.from_proto(onnx.shape_inference.infer_shapes(model)))
    assert plan_of(graph, probe_pictures(8, 4)).weights == {}


def test_what_a_gate_gives_lies_between_0_and_1_whatever_was_seen(small):
    _, graph, plan = small
    gates = [node.outputs[0].name for node in graph.ir_model().graph if node.op_type == "HardSigmoid"]
    assert len(gates) == 2
    assert {(plan.tensors[name].asymmetric, plan.tensors[name].symmetric) for name in gates} == {((0.0, 1.0), 1.0)}


def test_the_shares_of_a_flat_attention_have_a_grid_of_their_size():
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]>
        g (uint8[n, 8, 8, 3] image) => (float[n, 192] logits) <float[1] small = {0.0001}, float[1] large = {10}>
        { f = Cast<to = 1>(image) l = Flatten(f) m = Mul(l, small) flat = Softmax(m) n2 = Mul(l, large)
          sharp = Softmax(n2) logits = Add(flat, sharp) }"""
    )
    graph = Graph.from_ir(ir.from_proto(onnx.shape_inference.infer_shapes(model)))
    pictures = np.minimum(probe_pictures(8, 4), 200)
    pictures[:, 0, 0, 0] = 255
    tensors = plan_of(graph, pictures).tensors
    flat, sharp = tensors["flat"], tensors["sharp"]
    assert 1 / 192 < flat.maximum < flat.asymmetric[1] == flat.symmetric < 1.2 * flat.maximum < 0.01
    assert flat.asymmetric[0] == 0
    assert sharp.asymmetric == (0, 1)


@pytest.mark.parametrize("ranges", ["auto", "minmax", "percentile", "entropy"])
def test_every_way_to_choose_ranges_makes_a_plan_that_fits(small, tmp_path, ranges):
    _, graph, _ = small
    pictures = probe_pictures(32, 8)
    histograms = collect_histograms(graph, [pictures], lambda steps: None, threads=1)
    record = CalibrationRecord(sha256="0" * 64, seed=0, images=())
    plan = make_plan(graph, histograms, record, ranges=ranges, weights="per-tensor", crops=[pictures])
    (tmp_path / "plan.json").write_bytes(plan.to_json())
    assert QuantPlan.read(tmp_path / "plan.json", graph) == plan
    methods = {tensor.asymmetric_by for tensor in plan.tensors.values()} - {"gate"}
    assert methods == {ranges} if ranges != "auto" else len(methods) > 1
    assert all(len(set(bounds)) == 1 for bounds in plan.weights.values())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"channel_scales": {"nothing": (1.0,)}}, "no tensor 'nothing'"),
        ({"bias_shifts": {"openvino x86": {"stem.0": (1.0,)}}}, "needs 16 finite bias shifts for openvino x86"),
        ({"bias_shifts": {"openvino x86": {"none": (1.0,)}}}, "'none'"),
    ],
)
def test_corrections_that_do_not_fit_are_refused(small, tmp_path, change, said):
    _, graph, plan = small
    (tmp_path / "plan.json").write_bytes(edited(plan, **change).to_json())
    with pytest.raises(InputError, match=said):
        QuantPlan.read(tmp_path / "plan.json", graph)


@pytest.fixture
def scaled():
    """A graph whose first convolution and layer norm can be rescaled, and a plan that does."""
    graph = Graph(
        onnx.shape_inference.infer_shapes(
            onnx.parser.parse_model(
                """<ir_version: 10, opset_import: ["": 20]>
                g (uint8[n, 4, 4, 3] image) => (float[n, 2, 1] logits) <
                    float[2, 3, 1, 1] w = {1, 2, 3, 4, 5, 6}, float[2, 2, 1, 1] v = {1, 2, 3, 4},
                    float[16] gain = {1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8}, int64[3] shape = {0, 2, -1},
                    float[16, 1] m = {1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8}>
                {
                    t = Transpose<perm = [0, 3, 1, 2]>(image)
                    f = Cast<to = 1>(t)
                    [conv] first = Conv(f, w)
                    r = Relu(first)
                    [next] second = Conv(r, v)
                    s = Reshape(second, shape)
                    [norm] normed = LayerNormalization(s, gain)
                    [fc] logits = MatMul(normed, m)
                }"""
            )
        ).SerializeToString()
    )
    scales = {"first": (1.0, 2.0), "normed": (2.0,) * 16}
    pictures = probe_pictures(4, 8)
    histograms = collect_histograms(graph, [pictures], lambda steps: None, threads=1)
    record = CalibrationRecord(sha256="0" * 64, seed=0, images=())
    return graph, edited(make_plan(graph, histograms, record), channel_scales=scales)


def test_scales_of_an_output_that_only_a_relu_reads_fit(scaled, tmp_path):
    graph, plan = scaled
    assert "first" not in plan.tensors
    (tmp_path / "plan.json").write_bytes(plan.to_json())
    assert QuantPlan.read(tmp_path / "plan.json", graph) == plan


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"first": (1.0,)}, "'first' needs 2 positive channel scales"),
        ({"first": (1.0, -2.0)}, "'first' needs 2 positive channel scales"),
        ({"normed": (1.0, 2.0)}, "'normed' needs 16 positive channel scales"),
        ({"second": (1.0, 2.0)}, "no tensor 'second' whose channels could be scaled"),
        ({"r": (1.0, 2.0)}, "no tensor 'r' whose channels could be scaled"),
    ],
)
def test_scales_that_do_not_fit_are_refused(scaled, tmp_path, change, said):
    graph, plan = scaled
    (tmp_path / "plan.json").write_bytes(edited(plan, channel_scales=change).to_json())
    with pytest.raises(InputError, match=said):
        QuantPlan.read(tmp_path / "plan.json", graph)


def test_a_dead_channel_still_has_a_bound(small):
    _, graph, _ = small
    model = graph.ir_model()
    stem = next(node for node in model.graph if node.op_type == "Conv")
    weight = stem.inputs[1].const_value.numpy().copy()
    weight[3] = 0
    stem.inputs[1].const_value = ir.tensor(weight)
    assert channel_bounds(model)[stem.name][3] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: edited(p, graph_sha256="f" * 64), "made from graph ffffffffffff"),
        (lambda p: edited(p, float_nodes={"no such": "because"}), "no node 'no such'"),
        (lambda p: edited(p, tensors=dict(list(p.tensors.items())[1:])), "no range for the tensor"),
        (lambda p: edited(p, tensors={**p.tensors, "no such": next(iter(p.tensors.values()))}), "no tensor 'no such'"),
        (lambda p: first_tensor(p, asymmetric=(0.5, 1.0)), "must hold zero"),
        (lambda p: first_tensor(p, asymmetric=(0.0, 0.0)), "must hold zero"),
        (lambda p: first_tensor(p, symmetric=0.0), "must be positive"),
        (lambda p: edited(p, weights={**p.weights, "stem.0": (1.0,)}), "needs 16 positive weight bounds"),
        (lambda p: edited(p, weights={**p.weights, "stem.0": (-1.0,) * 16}), "needs 16 positive weight bounds"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_with_the_reason(small, tmp_path, change, message):
    _, graph, plan = small
    path = tmp_path / "plan.json"
    path.write_bytes(change(plan).to_json())
    with pytest.raises(InputError, match=message):
        QuantPlan.read(path, graph)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema": "edgecls.plan/9"}', '{"schema": "edgecls.plan/1"}', "\xff"]
)
def test_a_file_that_is_no_plan_is_refused(small, tmp_path, text):
    path = tmp_path / "plan.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match="cannot read the quantization plan"):
        QuantPlan.read(path, small[1])


def test_ranges_come_from_the_values_that_were_seen(small):
    _, _, plan = small
    for tensor in plan.tensors.values():
        if tensor.asymmetric_by == "gate":
            continue
        low, high = tensor.asymmetric
        assert min(tensor.minimum, 0) - 1e-6 <= low <= 0 <= high <= max(tensor.maximum, 0) + 1e-6
        assert 0 < tensor.symmetric <= max(-tensor.minimum, tensor.maximum) * (1 + 1e-3) + 1e-6
        assert np.isfinite([low, high]).all()
