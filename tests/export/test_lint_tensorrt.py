"""Every rule of the linter forbids what TensorRT, or the document that the rule cites, forbids."""

import onnx
import onnx.parser
import pytest

from edgecls.calibration.graph import Graph
from edgecls.export.lint import Finding, raise_findings
from edgecls.export.lint.tensorrt import RULES, lint
from edgecls.export.lint.tensorrt_rtx import build_ahead
from edgecls.runtime.engines.tensorrt_rtx import LIBRARY
from edgecls.runtime.errors import EngineError

FLOATS = "g (float[batch, 16, 8, 8] image) => (float[batch, 16, 8, 8] logits)"
BYTES = "g (uint8[batch, 8, 8, 16] image) => (float[batch, 16, 8, 8] logits)"
SIXTEEN = ", ".join(["1"] * 16)
MATRIX = ", ".join(["5"] * 256)
PAIR = "c = QuantizeLinear(image, s, z) logits = DequantizeLinear(c, s, z)"
GRID = "<float s = {0.1}, int8 z = {0}>"
WEIGHT = f"<float s = {{0.1}}, int8 z = {{0}}, int8[16, 16, 1, 1] w = {{{MATRIX}}}>"

# rule: what breaks it, and the opset.
BROKEN = {
    "zero-point": (f"{FLOATS} <float s = {{0.1}}, int8 z = {{3}}> {{ {PAIR} }}", 20),
    "scale": (f"{FLOATS} <float s = {{0.0}}, int8 z = {{0}}> {{ {PAIR} }}", 20),
    "uint8-inside": (f"{BYTES} {{ t = Transpose<perm = [0, 3, 1, 2]>(image) logits = Cast<to = 1>(t) }}", 20),
    "operation": (
        f"{FLOATS} <float s = {{0.1}}, int8 z = {{0}}, int8[16, 16, 1, 1] w = {{{MATRIX}}}> "
        "{ c = QuantizeLinear(image, s, z) i = ConvInteger(c, w) logits = Cast<to = 1>(i) }",
        20,
    ),
    "second-output": (
        f"{FLOATS} {{ a, i = MaxPool<kernel_shape = [1, 1]>(image) f = Cast<to = 1>(i) logits = Add(a, f) }}",
        20,
    ),
    "type": (f"{FLOATS} {{ i = Cast<to = 5>(image) logits = Cast<to = 1>(i) }}", 20),
    "computed-weight": (f"{FLOATS} {{ w = GlobalAveragePool(image) logits = Conv(image, w) }}", 20),
    "dynamic-side": (
        "g (float[batch, 16, height, 8] image) => (float[batch, 16, height, 8] logits) { logits = Relu(image) }",
        20,
    ),
    "codes": (
        f"{FLOATS} <float s = {{0.1}}, int8 z = {{0}}, int8[16, 16, 1, 1] w = {{{MATRIX}}}, "
        f"int32[16] b = {{{SIXTEEN}}}> {{ c = QuantizeLinear(image, s, z) x = DequantizeLinear(c, s, z) "
        "k = DequantizeLinear(w, s, z) o = DequantizeLinear(b, s) logits = Conv(x, k, o) }",
        20,
    ),
    "mixed-types": (f"{FLOATS} {{ h = Cast<to = 10>(image) logits = Add(image, h) }}", 20),
    "scale-type": (
        f"{FLOATS} {GRID} {{ h = Cast<to = 10>(image) c = QuantizeLinear(h, s, z) "
        "logits = DequantizeLinear(c, s, z) }",
        20,
    ),
    "computed-scale": (f"{FLOATS} <int8 z = {{0}}> {{ s = ReduceMax<keepdims = 0>(image) {PAIR} }}", 20),
    "channel-scales": (
        f"{FLOATS} <float[16] s = {{{SIXTEEN}}}, int8[16] z = {{{SIXTEEN.replace('1', '0')}}}> {{ {PAIR} }}",
        20,
    ),
    "half-quantized": (f"{FLOATS} {WEIGHT} {{ k = DequantizeLinear(w, s, z) logits = Conv(image, k) }}", 20),
    "opset": (f"{FLOATS} {{ logits = Relu(image) }}", 21),
    "weight-codes": (
        f"{FLOATS} {WEIGHT} {{ c = QuantizeLinear(image, s, z) x = DequantizeLinear(c, s, z) "
        "k = DequantizeLinear(w, s, z) logits = Conv(x, k) }",
        17,
    ),
    "float16-body": (f"{FLOATS} {{ h = Cast<to = 10>(image) r = Relu(h) logits = Cast<to = 1>(r) }}", 17),
}
LEGAL = {
    "floats": (f"{FLOATS} {{ logits = Relu(image) }}", 17),
    "bytes": (f"{BYTES} {{ f = Cast<to = 1>(image) logits = Transpose<perm = [0, 3, 1, 2]>(f) }}", 17),
    "pair": (f"{FLOATS} {GRID} {{ {PAIR} }}", 17),
}

needs_rtx = pytest.mark.skipif(LIBRARY.version() is None, reason="TensorRT-RTX is not installed")


def parsed(text, opset):
    version = {17: 8, 20: 9, 21: 10}[opset]
    return onnx.parser.parse_model(f'<ir_version: {version}, opset_import: ["": {opset}]> {text}')


def graph(text, opset):
    return Graph(parsed(text, opset).SerializeToString())


def named(name):
    return [rule for rule in RULES if rule.name == name]


def test_every_rule_has_a_graph_that_breaks_it():
    assert set(BROKEN) == {rule.name for rule in RULES}


@pytest.mark.parametrize("name", BROKEN)
def test_the_linter_names_node_rule_and_remedy(name):
    for rule in named(name):
        findings = lint(graph(*BROKEN[name]), (rule.only or ("weak",))[0])
        found = [finding for finding in findings if finding.rule == name]
        assert found, findings
        assert all(finding.node and finding.problem and finding.remedy == rule.remedy for finding in found)


@pytest.mark.parametrize("name", LEGAL)
@pytest.mark.parametrize("dialect", ["weak", "strong"])
def test_a_legal_graph_has_no_findings(name, dialect):
    assert lint(graph(*LEGAL[name]), dialect) == ()


@needs_rtx
@pytest.mark.parametrize("name", LEGAL)
def test_the_real_builder_takes_a_legal_graph(name):
    assert build_ahead(graph(*LEGAL[name]), ())


@needs_rtx
@pytest.mark.parametrize("name", [rule.name for rule in RULES if rule.why == "parser"])
def test_the_real_parser_refuses_what_the_linter_refuses(name):
    with pytest.raises(EngineError, match="refuses the graph"):
        build_ahead(graph(*BROKEN[name]), ())


@needs_rtx
@pytest.mark.parametrize("name", [rule.name for rule in RULES if rule.why == "profile"])
def test_the_real_builder_has_no_profile_for_what_the_linter_refuses(name):
    with pytest.raises(RuntimeError, match="inconsistent"):
        build_ahead(graph(*BROKEN[name]), ())


@pytest.mark.parametrize("name", [rule.name for rule in RULES if rule.why == "ONNX checker"])
def test_the_onnx_checker_refuses_what_the_linter_refuses(name):
    with pytest.raises(onnx.shape_inference.InferenceError):
        onnx.checker.check_model(parsed(*BROKEN[name]), full_check=True)


@pytest.mark.parametrize("rule", [rule for rule in RULES if " " in rule.why], ids=lambda rule: rule.name)
def test_other_rules_cite_a_document(rule):
    assert rule.why == "ONNX checker" or rule.why.startswith(("TensorRT ", "ONNX-TensorRT's "))


def test_a_uint8_constant_is_found_too():
    text = f"{BYTES} <uint8 k = {{128}}> {{ f = Cast<to = 1>(image) logits = Transpose<perm = [0, 3, 1, 2]>(f) }}"
    (finding,) = lint(graph(text, 20), "strong")
    assert (finding.node, finding.rule) == ("k", "uint8-inside")


def test_a_dialect_has_rules_of_its_own():
    assert not [found for found in lint(graph(*BROKEN["weight-codes"]), "strong") if found.rule == "weight-codes"]


def test_findings_refuse_a_graph_of_ours():
    raise_findings((), "TensorRT")
    with pytest.raises(EngineError, match=r"conv1: zero point 3 \[zero-point\]; use symmetric grids"):
        raise_findings([Finding("conv1", "zero-point", "zero point 3", "use symmetric grids")], "TensorRT")
