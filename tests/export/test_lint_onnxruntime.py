"""Every rule of the linter names what ONNX Runtime's own optimised graph shows, and a legal graph breaks none."""

import dataclasses

import msgspec
import numpy as np
import onnxruntime as ort
import pytest
from quantized_text import BIAS, COLUMNS, IN, OUT, WEIGHT, inputs, pair, planes, rows, unoptimised

from edgecls.calibration.graph import Graph
from edgecls.export.lint import Finding, disagreements, notes, raise_findings
from edgecls.export.lint.onnxruntime import RULES, candidates, integer_nodes, lint
from edgecls.export.placement import place
from edgecls.export.targets import onnxruntime as target
from edgecls.export.targets.onnxruntime import compile_artifact, is_integer, optimised_nodes
from edgecls.runtime.engines.onnxruntime import DISABLED_OPTIMIZERS
from edgecls.runtime.errors import EngineError

AGAIN = "k2 = DequantizeLinear<axis = 0>(w, ws, wz)"
SIGNED = pair("image", "x", "s", "zi")

LEGAL = {
    "convolution": planes(f"{IN} {WEIGHT} {BIAS} y = Conv(x, k, o) {OUT}"),
    "convolution without a bias": planes(f"{IN} {WEIGHT} y = Conv(x, k) {OUT}"),
    "clamped": planes(f"{IN} {WEIGHT} r = Conv(x, k) y = Relu(r) {pair('y', 'logits', 'so', 'z0')}"),
    "asymmetric weight": planes(f"{IN} k = DequantizeLinear(w, s, z3) y = Conv(x, k) {OUT}"),
    "uint8 weight": planes(f"{IN} k = DequantizeLinear(wu, s, z) y = Conv(x, k) {OUT}"),
    "weight without a zero point": planes(f"{IN} k = DequantizeLinear<axis = 0>(w, ws) y = Conv(x, k) {OUT}"),
    "pool between": planes(
        f"{IN} {WEIGHT} a = Conv(x, k) {pair('a', 'd')} m = MaxPool<kernel_shape = [1, 1]>(d) {pair('m', 'e')} "
        f"{AGAIN} y = Conv(e, k2) {OUT}"
    ),
    "pool between without a pair": planes(
        f"{IN} {WEIGHT} a = Conv(x, k) {pair('a', 'd')} m = MaxPool<kernel_shape = [1, 1]>(d) {AGAIN} "
        f"y = Conv(m, k2) {OUT}"
    ),
    "float readers": planes(
        f"{IN} {WEIGHT} a = Conv(x, k) {pair('a', 'd')} {AGAIN} y = Conv(d, k2) {pair('y', 'e')} "
        "f = Sin(d) logits = Max(e, f)"
    ),
    "sum": planes(f"{IN} m = Sin(image) {pair('m', 'n')} y = Add(x, n) {OUT}"),
    "gate": planes(f"{IN} m = Sigmoid(x) {pair('m', 'n', 's')} y = Mul(x, n) {OUT}"),
    "float": planes("logits = Conv(image, fw)"),
    "product": rows(f"{IN} {WEIGHT} {BIAS} logits = Gemm<transB = 1>(x, k, o)"),
    "product by columns": rows(f"{IN} {COLUMNS} {BIAS} y = Gemm(x, k, o) {OUT}"),
    "matrices": rows(f"{IN} {COLUMNS} logits = MatMul(x, k)"),
    "int8 activations of one reader": planes(f"{SIGNED} {WEIGHT} y = Conv(x, k) {pair('y', 'logits', 'so', 'zi')}"),
}

WRONG = {
    "channel-axis": {
        "convolution": planes(f"{IN} {COLUMNS} y = Conv(x, k) {OUT}"),
        "product": rows(f"{IN} {COLUMNS} logits = Gemm<transB = 1>(x, k)"),
    },
    "bias": {
        "scale": rows(f"{IN} {WEIGHT} o = DequantizeLinear(b, s) logits = Gemm<transB = 1>(x, k, o)"),
        "zero point": rows(
            f"{IN} {WEIGHT} o = DequantizeLinear<axis = 0>(b, bs, b) logits = Gemm<transB = 1>(x, k, o)"
        ),
    },
}
"""Graphs that ONNX Runtime answers otherwise than ONNX says."""

SLOW = {
    "float-bias": {
        "convolution": planes(f"{IN} {WEIGHT} y = Conv(x, k, fb) {OUT}"),
        "product": rows(f"{IN} {WEIGHT} y = Gemm<transB = 1>(x, k, fb) {OUT}"),
        "sum after": rows(f"{IN} {COLUMNS} y = MatMul(x, k) logits = Add(y, fb)"),
    },
    "factor": {
        "alpha": rows(f"{IN} {WEIGHT} {BIAS} y = Gemm<transB = 1, alpha = 2.0>(x, k, o) {OUT}"),
        "beta": rows(f"{IN} {WEIGHT} {BIAS} y = Gemm<transB = 1, beta = 2.0>(x, k, o) {OUT}"),
    },
    "half-quantized": {
        "weight alone": planes(f"{WEIGHT} y = Conv(image, k) {OUT}"),
        "input alone": planes(f"{IN} y = Conv(x, fw) {OUT}"),
        "after the pair": planes(f"{IN} h = HardSwish(x) {WEIGHT} y = Conv(h, k) {OUT}"),
        "one side of a sum": planes(f"{IN} m = Sin(image) y = Add(x, m) {OUT}"),
    },
    "open-output": {
        "returned": planes(f"{IN} {WEIGHT} y = Conv(x, k) logits = Identity(y)"),
        "read twice": planes(f"{IN} {WEIGHT} y = Conv(x, k) {pair('y', 'd')} f = Sin(y) logits = Max(d, f)"),
        "Relu": planes(f"{IN} {WEIGHT} y = Conv(x, k) r = Relu(y) {pair('r', 'logits')}"),
        "Clip": planes(f"{IN} {WEIGHT} y = Conv(x, k) r = Clip(y, zero, six) {pair('r', 'logits', 'so', 'z0')}"),
        "HardSwish": planes(f"{IN} {WEIGHT} y = Conv(x, k) r = HardSwish(y) {pair('r', 'logits')}"),
        "sum": planes(f"{IN} y = Add(x, x) logits = Sin(y)"),
        "product with Relu": rows(f"{IN} {WEIGHT} y = Gemm<transB = 1>(x, k) r = Relu(y) {pair('r', 'logits')}"),
    },
    "int8-activations": {
        "input of two": planes(
            f"{SIGNED} {WEIGHT} y = Conv(x, k) {pair('y', 'd', 'so', 'zi')} f = Sin(x) logits = Max(d, f)"
        ),
        "output of two": planes(
            f"{IN} {WEIGHT} y = Conv(x, k) {pair('y', 'd', 'so', 'zi')} f = Sin(d) logits = Max(d, f)"
        ),
    },
}
"""Graphs in which the node `y` computes in float though it reads codes, or holds some."""

UNEQUAL = planes(
    f"{IN} {WEIGHT} a = Conv(x, k) {pair('a', 'd')} m = MaxPool<kernel_shape = [1, 1]>(d) {pair('m', 'e', 's')} "
    f"{AGAIN} y = Conv(e, k2) {OUT}"
)
WIDE = planes(f"{IN} k = DequantizeLinear<axis = 0>(wide, ws, wz) y = Conv(x, k) {OUT}")

CHANNELS = planes(
    "c = QuantizeLinear<axis = 1>(image, ws, uz) x = DequantizeLinear<axis = 1>(c, ws, uz) "
    f"{WEIGHT} y = Conv(x, k) {OUT}"
)

OTHERS = {"unequal-grids": UNEQUAL, "weight-range": WIDE, "activation-scales": CHANNELS}
"""Rules with a test of their own; what saturates is shown under an emulated CPU (tests/export/test_haswell.py)."""


def cases(table):
    return pytest.mark.parametrize(
        ("rule", "graph"),
        [
            pytest.param(rule, graph, id=f"{rule}: {name}")
            for rule, named in table.items()
            for name, graph in named.items()
        ],
    )


def executed(graph: Graph) -> frozenset[str]:
    """What ONNX Runtime computes on integers, by name."""
    _, nodes = optimised_nodes(graph.proto)
    return candidates(graph).intersection(name for kind, name in nodes if is_integer(kind))


def foretold(graph: Graph) -> frozenset[str]:
    return integer_nodes(graph, lint(graph, "x86-vnni"))


def answers(graph: Graph) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(
        graph.proto, options, providers=["CPUExecutionProvider"], disabled_optimizers=DISABLED_OPTIMIZERS
    )
    return session.run(None, {"image": inputs(graph)})[0]


def test_every_rule_has_a_graph_that_breaks_it():
    assert {*WRONG, *SLOW, *OTHERS} == {rule.name for rule in RULES}
    assert {rule.name for rule in RULES if rule.slow} == {*SLOW, "unequal-grids"}


@pytest.mark.parametrize("name", LEGAL)
def test_a_legal_graph_has_no_findings_and_every_kernel_is_the_foretold_one(name):
    graph = LEGAL[name]
    assert lint(graph, "x86-vnni") == ()
    assert executed(graph) == foretold(graph) == (candidates(graph) if name != "float" else frozenset())
    expected = unoptimised(graph)
    assert np.abs(answers(graph) - expected).max() <= 2  # the step of the output's grid


@cases(SLOW)
def test_what_the_linter_finds_is_not_an_integer_kernel(rule, graph):
    found = [finding for finding in lint(graph, "x86-vnni") if finding.rule == rule]
    assert [finding.node for finding in found] == ["y"]
    assert all(finding.slow and finding.problem and finding.remedy for finding in found)
    assert "y" not in executed(graph)
    assert executed(graph) == foretold(graph)


@cases(WRONG)
def test_what_the_linter_refuses_has_other_answers(rule, graph):
    found = [finding for finding in lint(graph, "x86-vnni") if finding.rule == rule]
    assert found
    assert not any(finding.slow for finding in found)
    expected = unoptimised(graph)
    assert np.abs(answers(graph) - expected).max() > 0.05 * np.abs(expected).max()


def test_scales_per_channel_of_an_activation_fail_when_they_run():
    (finding,) = lint(CHANNELS, "x86-vnni")
    assert (finding.node, finding.rule, finding.slow) == ("y", "activation-scales", False)
    with pytest.raises(Exception, match="input zero point must be a scalar"):
        answers(CHANNELS)


def test_between_unequal_grids_a_move_is_made_in_float():
    (finding,) = lint(UNEQUAL, "x86-vnni")
    assert (finding.node, finding.rule, finding.slow) == ("m", "unequal-grids", True)
    for graph, codes in ((LEGAL["pool between"], True), (UNEQUAL, False)):
        _, nodes = optimised_nodes(graph.proto)
        kinds = {kind for kind, _ in nodes}
        assert ("NhwcMaxPool" in kinds) == codes


def test_wide_weights_are_for_cpus_with_vnni():
    (finding,) = lint(WIDE, "x86")
    assert (finding.node, finding.rule, finding.slow) == ("y", "weight-range", False)
    assert "120" in finding.problem
    assert lint(WIDE, "x86-vnni") == lint(WIDE, "arm64") == ()


def test_int8_activations_are_right_on_arm():
    (graph, *_) = SLOW["int8-activations"].values()
    assert lint(graph, "arm64") == ()
    _, nodes = optimised_nodes(graph.proto, int8_activations=True)
    assert "QLinearConv" in {kind for kind, _ in nodes}


def test_a_session_of_defaults_would_quantize_a_float_weight():
    graph = SLOW["half-quantized"]["input alone"]
    session = ort.InferenceSession(graph.proto, providers=["CPUExecutionProvider"])
    default = session.run(None, {"image": inputs(graph)})[0]
    np.testing.assert_array_equal(answers(graph), unoptimised(graph))
    assert np.abs(default - unoptimised(graph)).max() > 0


@pytest.mark.parametrize("isa", ["x86-vnni", "x86", "arm64"])
def test_our_own_graph_is_clean_and_its_kernels_are_the_foretold_ones(small, isa):
    _, graph, plan = small
    artifact = compile_artifact(graph, "int8", plan, isa)
    assert artifact.notes == ()
    quantized = Graph(artifact.files["model.onnx"])
    assert lint(quantized, isa) == ()
    _, nodes = optimised_nodes(quantized.proto, int8_activations=isa == "arm64")
    integers = candidates(quantized).intersection(name for kind, name in nodes if is_integer(kind))
    assert integers == integer_nodes(quantized, ()) == candidates(quantized)


def test_a_node_that_the_plan_leaves_in_float_is_float_in_the_engine_too(small):
    _, graph, plan = small
    kept = {"head.0", "blocks.0.body.3", "fc"}
    artifact = compile_artifact(
        graph, "int8", msgspec.structs.replace(plan, float_nodes=dict.fromkeys(kept, "the user said so")), "x86-vnni"
    )
    (note,) = artifact.notes
    assert "the user said so" in note
    assert not kept & executed(Graph(artifact.files["model.onnx"]))


def test_a_graph_of_ours_that_breaks_a_rule_is_refused(small, monkeypatch):
    _, graph, plan = small
    monkeypatch.setitem(target._ISA, "x86", ("uint8", 8))
    with pytest.raises(EngineError, match=r"rules of ONNX Runtime; .*\n.*\[weight-range\]; use 7 bits"):
        compile_artifact(graph, "int8", plan, "x86")


def test_what_is_merely_slow_is_a_note(small, monkeypatch):
    _, graph, plan = small
    own = target.rules("x86-vnni")
    monkeypatch.setattr(target, "rules", lambda *_: dataclasses.replace(own, int32_bias=False))
    artifact = compile_artifact(graph, "int8", plan, "x86-vnni")
    (note,) = artifact.notes
    assert "operations could be faster on ONNX Runtime" in note
    assert "[float-bias]" in note
    model = graph.ir_model()
    place(model, plan, target.rules("x86-vnni"))
    assert executed(Graph.from_ir(model)) == foretold(Graph.from_ir(model))


def test_a_disagreement_with_the_engine_is_told_in_both_directions():
    assert disagreements(frozenset("a"), frozenset("a"), "E 1") == ()
    slower, other = disagreements(frozenset("abcde"), frozenset("axy"), "E 1")
    assert slower.startswith("E 1 computes 4 operations (b, c, d, …) in float")
    assert other.startswith("E 1 computes 2 operations (x, y) on integers")


def test_findings_that_are_merely_slow_refuse_nothing():
    slow = [Finding(node, "open-output", "Sin reads it", "quantize it", slow=True) for node in "ab"]
    raise_findings(slow, "E")
    assert notes(slow, "E") == (
        "2 operations could be faster on E, for instance a: Sin reads it [open-output]; quantize it",
    )
