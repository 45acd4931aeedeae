"""Every rule of the linter names what OpenVINO's own executed graph shows, and a legal graph breaks none."""

import tempfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
from quantized_text import COLUMNS, IN, OUT, WEIGHT, inputs, pair, pixels, planes, rows, unoptimised

from edgecls.calibration.graph import Graph
from edgecls.export.lint.openvino import RULES, candidates, integer_nodes, lint
from edgecls.export.targets import openvino as target
from edgecls.export.targets.openvino import compile_artifact, executed_nodes, on_integers
from edgecls.runtime.errors import EngineError

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")

AGAIN = "k2 = DequantizeLinear<axis = 0>(w, ws, wz)"
LEGAL = {
    "convolution": planes(f"{IN} {WEIGHT} logits = Conv(x, k)"),
    "quantized output": planes(f"{IN} {WEIGHT} y = Conv(x, k) {OUT}"),
    "float bias": planes(f"{IN} {WEIGHT} y = Conv(x, k, fb) {OUT}"),
    "int32 bias": planes(f"{IN} {WEIGHT} o = DequantizeLinear<axis = 0>(b, bs) y = Conv(x, k, o) {OUT}"),
    "in a row": planes(f"{IN} {WEIGHT} a = Conv(x, k) h = HardSwish(a) {pair('h', 'd')} {AGAIN} logits = Conv(d, k2)"),
    "pool between": planes(
        f"{IN} {WEIGHT} a = Conv(x, k) {pair('a', 'd')} m = MaxPool<kernel_shape = [1, 1]>(d) {AGAIN} "
        "logits = Conv(m, k2)"
    ),
    "float readers": planes(f"{IN} {WEIGHT} y = Conv(x, k) f = Sin(x) logits = Max(y, f)"),
    "int8 activations": planes(f"{pair('image', 'x', 's', 'zi')} {WEIGHT} logits = Conv(x, k)"),
    "float": planes("logits = Conv(image, fw)"),
    "product": rows(f"{IN} {WEIGHT} logits = Gemm<transB = 1>(x, k, fb)"),
    "scaled product": rows(f"{IN} {WEIGHT} logits = Gemm<transB = 1, alpha = 2.0>(x, k)"),
    "matrices": rows(f"{IN} {COLUMNS} logits = MatMul(x, k)"),
    "bytes": pixels(
        f"d = DequantizeLinear(image, s, z) x = Transpose<perm = [0, 3, 1, 2]>(d) {WEIGHT} y = Conv(x, k) {OUT}"
    ),
}

SLOW = {
    "half-quantized": {
        "weight alone": planes(f"{WEIGHT} y = Conv(image, k) {OUT}"),
        "input alone": planes(f"{IN} y = Conv(x, fw) {OUT}"),
        "quantized where it is made": planes(
            f"{IN} {WEIGHT} a = Conv(x, k) {pair('a', 'd')} r = Relu(d) {AGAIN} y = Conv(r, k2) {OUT}"
        ),
        "weight of a product": rows(f"{WEIGHT} y = Gemm<transB = 1>(image, k) {OUT}"),
    },
    "activation-scales": {
        "convolution": planes(
            f"c = QuantizeLinear<axis = 1>(image, ws, uz) x = DequantizeLinear<axis = 1>(c, ws, uz) {WEIGHT} "
            f"y = Conv(x, k) {OUT}"
        ),
    },
    "weight-grid": {
        "zero point": planes(f"{IN} k = DequantizeLinear(w, s, z3) y = Conv(x, k) {OUT}"),
        "uint8": planes(f"{IN} k = DequantizeLinear(wu, s, z) y = Conv(x, k) {OUT}"),
        "product": rows(f"{IN} k = DequantizeLinear(w, s, z3) y = Gemm<transB = 1>(x, k) {OUT}"),
    },
    "transposed-codes": {
        "bytes": pixels(
            f"t = Transpose<perm = [0, 3, 1, 2]>(image) x = DequantizeLinear(t, s, z) {WEIGHT} y = Conv(x, k) {OUT}"
        ),
    },
}
"""Graphs in which the node `y` computes in float though it reads codes, or holds some."""

WRONG = {
    "rows": rows(f"{IN} {COLUMNS} logits = Gemm<transB = 1>(x, k)"),
    "columns": rows(f"{IN} {WEIGHT} logits = MatMul(x, k)"),
}
WIDE = planes(f"{IN} k = DequantizeLinear<axis = 0>(wide, ws, wz) y = Conv(x, k) {OUT}")


def written(graph: Graph) -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        openvino.save_model(openvino.Core().read_model(graph.proto), path, compress_to_fp16=False)
        return [path.read_bytes(), path.with_suffix(".bin").read_bytes()]


def executed(graph: Graph) -> frozenset[str]:
    """What OpenVINO computes on integers, by name."""
    return on_integers(graph, executed_nodes(*written(graph)))


def answers(graph: Graph) -> np.ndarray:
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(graph.proto), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled(inputs(graph))[0]


def test_every_rule_has_a_graph_that_breaks_it():
    assert {*SLOW, "channel-axis", "weight-range"} == {rule.name for rule in RULES}
    assert {rule.name for rule in RULES if rule.slow} == SLOW.keys()


@pytest.mark.parametrize("name", LEGAL)
def test_a_legal_graph_has_no_findings_and_every_kernel_is_the_foretold_one(name):
    graph = LEGAL[name]
    assert lint(graph, "x86-vnni") == ()
    assert executed(graph) == integer_nodes(graph, ()) == (candidates(graph) if name != "float" else frozenset())
    assert np.abs(answers(graph) - unoptimised(graph)).max() <= 2.001  # the step of the output's grid


@pytest.mark.parametrize(
    ("rule", "graph"),
    [pytest.param(rule, graph, id=f"{rule}: {name}") for rule, group in SLOW.items() for name, graph in group.items()],
)
def test_what_the_linter_finds_is_not_an_integer_kernel(rule, graph):
    findings = lint(graph, "x86-vnni")
    assert [(finding.node, finding.rule) for finding in findings] == [("y", rule)]
    assert findings[0].slow
    assert findings[0].problem
    assert findings[0].remedy
    assert "y" not in executed(graph)
    assert executed(graph) == integer_nodes(graph, findings)


@pytest.mark.parametrize("name", WRONG)
def test_scales_along_the_wrong_axis_of_a_product_have_other_answers(name):
    graph = WRONG[name]
    (finding,) = lint(graph, "x86-vnni")
    assert (finding.node, finding.rule, finding.slow) == ("logits", "channel-axis", False)
    expected = unoptimised(graph)
    assert np.abs(answers(graph) - expected).max() > 0.05 * np.abs(expected).max()


def test_wide_weights_are_for_cpus_with_vnni():
    (finding,) = lint(WIDE, "x86")
    assert (finding.node, finding.rule, finding.slow) == ("y", "weight-range", False)
    assert lint(WIDE, "x86-vnni") == lint(WIDE, "arm64") == ()


@pytest.mark.parametrize("isa", ["x86-vnni", "x86", "arm64"])
def test_our_own_graph_is_clean_and_its_kernels_are_the_foretold_ones(small, isa):
    _, graph, plan = small
    artifact = compile_artifact(graph, "int8", plan, isa)
    (note,) = artifact.notes
    assert "squeeze-and-excitation" in note
    nodes = executed_nodes(artifact.files["model.xml"], artifact.files["model.bin"])
    integers = {name for node in nodes if node.integer for name in node.names}
    # Without Transpose before the DequantizeLinear, the first convolution is one too.
    assert {"stem.0", "blocks.0.body.0", "head.0", "fc"} <= integers
    assert not {name for name in integers if "reduce" in name or "expand" in name}


def test_a_node_that_the_plan_leaves_in_float_is_no_finding(small):
    _, graph, plan = small
    kept = {"head.0", "blocks.0.body.3", "fc"}
    artifact = compile_artifact(
        graph, "int8", msgspec.structs.replace(plan, float_nodes=dict.fromkeys(kept, "the user said so")), "x86-vnni"
    )
    assert len(artifact.notes) == 2
    nodes = executed_nodes(artifact.files["model.xml"], artifact.files["model.bin"])
    assert not kept & {name for node in nodes if node.integer for name in node.names}


def test_a_graph_of_ours_that_breaks_a_rule_is_refused(small, monkeypatch):
    _, graph, plan = small
    monkeypatch.setitem(target._WEIGHT_BITS, "x86", 8)
    with pytest.raises(EngineError, match=r"rules of OpenVINO; .*\n.*\[weight-range\]; use 7 bits"):
        compile_artifact(graph, "int8", plan, "x86")


def test_what_is_merely_slow_is_a_note(small, monkeypatch):
    _, graph, plan = small
    monkeypatch.setattr(target, "dequantize_bytes", lambda model: False)
    artifact = compile_artifact(graph, "int8", plan, "x86-vnni")
    assert any("1 operation could be faster on OpenVINO, for instance stem.0: " in note for note in artifact.notes)
