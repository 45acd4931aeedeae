import dataclasses
import sys
import types
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from networks import SmallNet, classifier, settle

from edgecls.calibration.graph import INPUT, OUTPUT, Graph
from edgecls.export.trace import OPSET, probe_pictures, run_onnx, trace
from edgecls.runtime import EngineError, InputError, UnsupportedError


def interface(graph: Graph):
    session = onnxruntime.InferenceSession(graph.proto, providers=["CPUExecutionProvider"])
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    return (given.name, given.type, given.shape), (made.name, made.type, made.shape)


def test_the_graph_takes_bytes_and_gives_logits(small):
    _, graph, _ = small
    assert interface(graph) == (
        (INPUT, "tensor(uint8)", ["batch", 32, 32, 3]),
        (OUTPUT, "tensor(float)", ["batch", 7]),
    )
    model = onnx.load_model_from_string(graph.proto)
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == OPSET
    kinds = {node.op_type for node in model.graph.node}
    assert "BatchNormalization" not in kinds
    assert "GlobalAveragePool" in kinds


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_any_batch_gives_the_same_rows(small, batch):
    _, graph, _ = small
    pictures = probe_pictures(32, 5)
    whole = run_onnx(graph.proto, pictures)
    np.testing.assert_allclose(run_onnx(graph.proto, pictures[:batch]), whole[:batch], atol=1e-5)


def test_the_same_network_gives_the_same_graph(small):
    opened, graph, _ = small
    again = trace(opened)
    assert again.graph.digest == graph.digest
    assert again.parity_max_abs <= 1e-4


def test_an_onnx_file_with_batch_norms_and_fixed_batch_gives_the_same_logits(small, tmp_path):
    opened, graph, _ = small
    path = tmp_path / "net.onnx"
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            opened.source,
            (torch.zeros(1, 3, 32, 32),),
            path,
            dynamo=True,
            optimize=False,
            opset_version=18,
            input_names=["x"],
            external_data=False,
            verbose=False,
        )
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert "BatchNormalization" in kinds
    traced = trace(dataclasses.replace(opened, source=path))
    assert traced.parity_max_abs <= 1e-4
    from_file = traced.graph
    model = onnx.load_model_from_string(from_file.proto)
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert interface(from_file) == interface(graph)
    pictures = probe_pictures(32, 3)
    np.testing.assert_allclose(run_onnx(from_file.proto, pictures), run_onnx(graph.proto, pictures), atol=1e-4)


def exported(module, path, **options):
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            module, (torch.zeros(1, 3, 32, 32),), path, dynamo=True, opset_version=18, input_names=["x"],
            external_data=False, verbose=False, **options,
        )  # fmt: skip
    return path


@pytest.mark.parametrize("as_file", [False, True])
def test_a_softmax_at_the_end_is_left_to_the_session(as_file, small, tmp_path):
    opened, graph, _ = small
    source = torch.nn.Sequential(opened.source, torch.nn.Softmax(1)).eval()
    source = exported(source, tmp_path / "net.onnx") if as_file else source
    traced = trace(dataclasses.replace(opened, source=source))
    pictures = probe_pictures(32, 3)
    np.testing.assert_allclose(run_onnx(traced.graph.proto, pictures), run_onnx(graph.proto, pictures), atol=1e-4)


class Biased(torch.nn.Module):
    """Adds a constant that is brought into shape while the graph runs."""

    def __init__(self, body):
        super().__init__()
        self.body = body
        self.offset = torch.nn.Parameter(torch.arange(7.0), requires_grad=False)

    def forward(self, x):
        return self.body(x) + self.offset.reshape(1, 7)


def test_a_constant_that_is_reshaped_has_no_batch(small, tmp_path):
    opened, _, _ = small
    path = exported(Biased(opened.source).eval(), tmp_path / "net.onnx", optimize=False)
    model = onnx.load(path)
    weights = {weight.name for weight in model.graph.initializer}
    assert any(node.op_type == "Reshape" and node.input[0] in weights for node in model.graph.node)
    assert trace(dataclasses.replace(opened, source=path)).parity_max_abs <= 1e-4


class Forgetful(torch.nn.Module):
    """Computes something else while it is exported."""

    def __init__(self):
        super().__init__()
        self.body = SmallNet()

    def forward(self, x):
        return self.body(x) * (2.0 if torch.compiler.is_exporting() else 1.0)


def test_a_graph_that_misses_parity_is_an_error_with_the_numbers():
    with pytest.raises(EngineError, match=r"differ by up to [\d.]+ where [\d.e-]+ is allowed"):
        trace(classifier(settle(Forgetful())))


class Undecided(torch.nn.Module):
    """Branches on a value, which no static graph can follow."""

    def __init__(self):
        super().__init__()
        self.body = SmallNet()

    def forward(self, x):
        return self.body(x) if float(x.sum()) > 0 else self.body(-x)


def test_a_network_that_cannot_be_exported_is_refused_with_the_reason():
    with pytest.raises(UnsupportedError, match=r"torch\.onnx\.export cannot export"):
        trace(classifier(Undecided().eval()))


def test_broken_weights_are_refused():
    module = settle(SmallNet())
    module.fc.bias[0] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        trace(classifier(module))


def test_the_exporter_keeps_quiet(small, capfd):
    trace(small[0])
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert isinstance(sys.modules["torch"], types.ModuleType)


def onnx_file(path, text, ir_version=8, opset=17):
    onnx.save(onnx.parser.parse_model(f"""<ir_version: {ir_version}, opset_import: ["": {opset}]> {text}"""), path)
    return dataclasses.replace(classifier(torch.nn.Identity(), crop_px=8, classes=2), source=path)


WEIGHTS = "float[2, 3, 1, 1] w = {1, 2, 3, 4, 5, 6}"


def test_a_file_of_the_oldest_format_lists_its_weights_as_inputs(tmp_path):
    opened = onnx_file(
        tmp_path / "old.onnx",
        f"""g (float[2, 3, 1, 1] w, float[1, 3, 8, 8] x) => (float[1, 2] y) <{WEIGHTS}>
        {{ a = Conv(x, w) b = GlobalAveragePool(a) y = Flatten(b) }}""",
        ir_version=3,
        opset=7,
    )
    (given, _) = interface(trace(opened).graph)
    assert given == (INPUT, "tensor(uint8)", ["batch", 8, 8, 3])


def test_a_batch_that_cannot_be_freed_is_refused_with_the_remedy(tmp_path):
    opened = onnx_file(
        tmp_path / "token.onnx",
        f"""g (float[1, 3, 8, 8] x) => (float[1, 2] y) <{WEIGHTS}, float[1, 2, 1, 1] token = {{1, 2}}>
        {{ a = Conv(x, w) b = GlobalAveragePool(a) c = Concat<axis = 2>(token, b)
           y = ReduceMax<keepdims = 0, axes = [2, 3]>(c) }}""",
    )
    with pytest.raises(UnsupportedError, match="dynamic batch axis"):
        trace(opened)


def test_a_picture_whose_answer_depends_on_its_batch_misses_parity(tmp_path):
    opened = onnx_file(
        tmp_path / "mix.onnx",
        f"""g (float[n, 3, 8, 8] x) => (float[n, 2] y) <{WEIGHTS}>
        {{ a = Conv(x, w) b = GlobalAveragePool(a) c = Flatten(b) m = ReduceMean<axes = [0]>(c) y = Sub(c, m) }}""",
    )
    with pytest.raises(EngineError, match="the other pictures of a batch"):
        trace(opened)


@pytest.mark.parametrize(
    "swish",
    [
        "a = Add(c, three) k = Clip(a, zero, six) m = Mul(c, k) h = Div(m, six)",
        "a = Add(c, three) k = Clip(a, zero, six) d = Div(k, six) h = Mul(d, c)",
        "s = HardSigmoid<alpha = 0.16666667, beta = 0.5>(c) h = Mul(c, s)",
    ],
)
def test_a_hard_swish_that_is_spelled_out_is_one_operation(swish, tmp_path):
    text = f"""g (float[N, 3, 8, 8] x) => (float[N, 2] y)
        <float[2, 3, 8, 8] w = {{{", ".join(str(i % 7 - 3) for i in range(384))}}}, float three = {{3}},
         float zero = {{0}}, float six = {{6}}> {{ c = Conv(x, w) {swish} y = Flatten(h) }}"""
    kinds = [node.op_type for node in trace(onnx_file(tmp_path / "swish.onnx", text)).graph.ir_model().graph]
    assert "HardSwish" in kinds
    assert not {"Clip", "HardSigmoid", "Mul", "Div", "Add"} & set(kinds[kinds.index("Conv") :])


def test_a_quantized_file_is_refused(tmp_path):
    opened = onnx_file(
        tmp_path / "int8.onnx",
        f"""g (float[n, 3, 8, 8] x) => (float[n, 2] y) <{WEIGHTS}, float s = {{0.1}}, uint8 z = {{3}}>
        {{ q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) a = Conv(d, w) b = GlobalAveragePool(a)
           y = Flatten(b) }}""",
    )
    with pytest.raises(InputError, match="quantized already"):
        trace(opened)


def test_parallel_branches_of_timm_are_merged():
    from edgecls.models import torchvision_operators  # noqa: F401 (timm imports torchvision)

    timm = pytest.importorskip("timm")
    network = settle(timm.create_model("repvgg_a0", num_classes=7))
    kinds = [node.op_type for node in onnx.load_model_from_string(trace(classifier(network)).graph.proto).graph.node]
    assert kinds.count("Conv") == 22
    assert "Add" not in kinds


class Standardised(torch.nn.Module):
    """Its weights are computed from its parameters, and so is what it adds: larger than optimisers like to fold."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 512, 3)
        self.mix = torch.nn.Conv2d(512, 7, 3, bias=False)
        self.register_buffer("table", torch.linspace(-1, 1, 7 * 100).reshape(7, 100))

    def forward(self, x):
        weight = self.mix.weight
        y = torch.nn.functional.conv2d(self.conv(x).relu(), (weight - weight.mean()) / weight.std())
        return y.mean((2, 3)) + self.table.square().mean(1)


def test_what_does_not_depend_on_the_picture_is_a_constant():
    graph = trace(classifier(settle(Standardised()), crop_px=8)).graph
    nodes = onnx.load_model_from_string(graph.proto).graph.node
    assert [n.op_type for n in nodes] == [
        "Transpose", "Cast", "Sub", "Conv", "Relu", "Conv", "GlobalAveragePool", "Flatten", "Add",
    ]  # fmt: skip
