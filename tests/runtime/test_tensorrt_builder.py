"""The code that builds engines, run by a real builder: TensorRT-RTX parses and builds without a GPU."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from tensorrt_stand_in import BUILDER_FLAGS, NETWORK_FLAGS

from edgecls.runtime.engines.tensorrt_rtx import LIBRARY
from edgecls.runtime.errors import BundleError
from edgecls.runtime.progress import SilentProgress
from edgecls.runtime.tensorrt_api import Reasons, error_log, version_tuple
from edgecls.runtime.tensorrt_builder import Recipe, build_plan

RECIPE = Recipe(flags=("STRONGLY_TYPED",), max_batch=4, workspace_bytes=1 << 28)

GRAPH = """
<ir_version: 8, opset_import: ["" : 20]>
graph (uint8[batch, 8, 8, 3] image) => (float[batch, 3] logits)
<int64[2] axes = {1, 2}>
{
  pixels = Cast <to = 1> (image)
  logits = ReduceMean <keepdims = 0> (pixels, axes)
}
"""


@pytest.fixture(scope="module")
def trt():
    if LIBRARY.version() is None:
        pytest.skip("TensorRT-RTX is not installed here")
    return LIBRARY.load("this test")


def graph(text: str = GRAPH) -> bytes:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed here")
    return onnx.parser.parse_model(text).SerializeToString()


def build(trt, model: bytes, progress=None) -> bytes:
    return build_plan(LIBRARY, trt, model, RECIPE, name="net", timings=None, progress=progress or SilentProgress())


def test_the_real_builder_makes_an_engine_and_tells_its_steps(trt):
    steps = []

    class Counting(SilentProgress):
        @contextmanager
        def stage(self, title, total=None):
            yield steps.append

    plan = build(trt, graph(), Counting())
    assert len(plan) > 1000
    assert steps
    assert set(steps) == {1}


def test_the_real_parser_names_the_node(trt):
    model = graph(GRAPH.replace("Cast <to = 1>", "Nonsense"))
    with pytest.raises(BundleError, match=r"TensorRT-RTX .* refuses the graph of net: node .*Nonsense"):
        build(trt, model)
    with pytest.raises(BundleError, match=r"refuses the graph of net: .*Failed to parse the ONNX model"):
        build(trt, b"no graph")


def test_an_interrupt_ends_a_real_build(trt):
    class Interrupting(SilentProgress):
        @contextmanager
        def stage(self, title, total=None):
            def advance(steps):
                raise KeyboardInterrupt

            yield advance

    with pytest.raises(KeyboardInterrupt):
        build(trt, graph(), Interrupting())


def test_a_real_runtime_says_why_it_refuses_an_engine(trt):
    reasons = Reasons(trt)
    assert trt.Runtime(error_log(trt)).deserialize_cuda_engine(b"garbage" * 100) is None
    assert "erializ" in reasons.text()


def test_reasons_are_those_of_one_operation(trt):
    log = error_log(trt)
    assert error_log(trt) is log
    log.log(trt.ILogger.ERROR, "of another operation")
    reasons = Reasons(trt)
    assert reasons.text() == "it gives no reason"
    log.log(trt.ILogger.WARNING, "no reason")
    for text in ("one\n two", "one two", *"abcdefg"):
        log.log(trt.ILogger.ERROR, text)
    assert reasons.text() == "one two; a; b; c; d (and 3 more)"
    assert Reasons(trt).text(ValueError("raised")) == "raised"


def test_versions_are_compared_as_numbers():
    assert version_tuple("10.3.0.26") > version_tuple("8.6")
    assert version_tuple("10.3.0.26") >= version_tuple("10.3")
    assert version_tuple("unknown") == ()


def test_the_stand_in_has_the_flags_of_the_real_one(trt):
    for stand_in, real in (
        (set(NETWORK_FLAGS["rtx"]), set(trt.NetworkDefinitionCreationFlag.__members__)),
        (set(BUILDER_FLAGS["rtx"]), set(trt.BuilderFlag.__members__)),
    ):
        assert stand_in <= real
        assert not real & {"EXPLICIT_BATCH", "FP16", "INT8"}
