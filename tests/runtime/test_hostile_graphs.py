"""Graphs in a well-formed bundle that want more than to classify: the engine's refusal is ours, in time and memory."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tensorrt_stand_in import write_unbuilt_bundle

from edgecls.runtime import Bundle, BundleError, EngineError, load
from edgecls.runtime.bundle_writer import members_of, write_bundle
from edgecls.runtime.engines import engine_module

LIMIT_BYTES = 6_000_000_000
"""Address space of the process that loads: far more than an engine needs, far less than these graphs ask for."""

LOADS = """
import sys
import numpy as np
from edgecls.runtime import EdgeclsError, load
try:
    with load(sys.argv[1], threads=1) as session:
        session.logits(np.zeros((1, 32, 32, 3), np.uint8))
except EdgeclsError as error:
    print(type(error).__name__, error)
    sys.exit(error.exit_code)
"""


def onnx_model(nodes, initializers=()):
    """A graph that takes the crop and gives seven logits; `r` is the largest pixel, `float32 [n, 1]`."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMax", ["f"], ["m"], axes=[1, 2, 3], keepdims=0),
            helper.make_node("Reshape", ["m", "column"], ["r"]),
            *nodes,
        ],
        "hostile",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", 32, 32, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 7])],
        [
            helper.make_tensor("column", TensorProto.INT64, [2], [-1, 1]),
            helper.make_tensor("row", TensorProto.FLOAT, [1, 7], [1.0] * 7),
            *initializers,
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def external(location: str) -> bytes:
    weights = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1, 7], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "28")):
        weights.external_data.add(key=key, value=value)
    return onnx_model([helper.make_node("Add", ["r", "w"], ["y"])], [weights])


def endless(count: int) -> bytes:
    """Asks for so many floats while it answers."""
    size = helper.make_tensor("size", TensorProto.INT64, [1], [count])
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["sum"]),
        helper.make_node("Add", ["sum", "r"], ["more"]),
        helper.make_node("Add", ["more", "row"], ["y"]),
    ]
    return onnx_model(nodes, [size])


def mismatched() -> bytes:
    weights = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1 << 31, 1 << 31], raw_data=b"1234")
    return onnx_model([helper.make_node("MatMul", ["r", "w"], ["y"])], [weights])


def ir(declaration: str = "", name: str = "net", rows: int = 1) -> bytes:
    ports = f'<port id="0" precision="FP32"><dim>{rows}</dim><dim>7</dim></port>'
    return (
        f'<?xml version="1.0"?>{declaration}<net name="{name}" version="11"><layers>'
        f'<layer id="0" name="c" type="Const" version="opset1"><data element_type="f32" shape="{rows},7" offset="0" '
        f'size="28"/><output>{ports}</output></layer><layer id="1" name="r" type="Result" version="opset1">'
        f"<input>{ports}</input></layer></layers>"
        '<edges><edge from-layer="0" from-port="0" to-layer="1" to-port="0"/></edges></net>'
    ).encode()


LAUGHS = '<!ENTITY a "ha">' + "".join(
    f'<!ENTITY {b} "{f"&{a};" * 20}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)

GRAPHS = {
    "data in the working folder": ("onnxruntime", external("secret.bin")),
    "data in another folder": ("onnxruntime", external("../secret.bin")),
    "data by an absolute path": ("onnxruntime", external("/etc/passwd")),
    "a tensor of 4 TB": ("onnxruntime", endless(1 << 40)),
    "a tensor of more bytes than can be counted": ("onnxruntime", endless(1 << 62)),
    "weights that are not there": ("onnxruntime", mismatched()),
    "no protobuf": ("onnxruntime", b"\x08\x08" + b"junk" * 100),
    "an empty graph": ("onnxruntime", b""),
    "ONNX for OpenVINO": ("openvino", onnx_model([helper.make_node("Add", ["r", "row"], ["y"])])),
    "OpenVINO's data in the working folder": ("openvino", external("secret.bin")),
    "OpenVINO's data in another folder": ("openvino", external("../secret.bin")),
    "OpenVINO's data by an absolute path": ("openvino", external("/etc/passwd")),
    "no input": ("openvino", ir()),
    "weights behind the end": ("openvino", ir(rows=1 << 40)),
    "no XML": ("openvino", b"<net"),
    "an empty file": ("openvino", b""),
}


IMAGES = helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", 32, 32, 3])
OTHER = helper.make_tensor_value_info("z", TensorProto.UINT8, ["n", 32, 32, 3])


def constant_answer(kind=TensorProto.FLOAT, values=(1.0,) * 7, inputs=(IMAGES,), operator="Identity") -> bytes:
    """Gives these logits, whatever it sees."""
    declare = helper.make_tensor_sequence_value_info if "Sequence" in operator else helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node(operator, ["row"], ["y"])],
        "constant",
        inputs,
        [declare("y", kind, [1, 7])],
        [helper.make_tensor("row", kind, [1, 7], values)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (constant_answer(inputs=()), r"takes \[\]"),
        (constant_answer(inputs=(IMAGES, OTHER)), r"takes \['tensor\(uint8\)', 'tensor\(uint8\)'\]"),
        (constant_answer(TensorProto.UINT8, range(7)), r"gives \['tensor\(uint8\)'\]"),
        (constant_answer(TensorProto.BOOL, [True] * 7), "bool"),
        (constant_answer(TensorProto.STRING, [b"a"] * 7), "string"),
        (constant_answer(operator="SequenceConstruct"), "seq"),
    ],
)
def test_a_graph_of_another_kind_is_refused(graph, message, tmp_path):
    pytest.importorskip("onnxruntime")
    with pytest.raises(BundleError, match=f"ONNX Runtime's graph .*{message}.*Export it again"):
        load(hostile_bundle(tmp_path, "onnxruntime", graph), threads=1)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_logits_that_are_not_finite_are_no_answer(value, tmp_path):
    pytest.importorskip("onnxruntime")
    graph = constant_answer(values=[*(1.0,) * 6, float(value)])
    with (
        load(hostile_bundle(tmp_path, "onnxruntime", graph), threads=1) as session,
        pytest.raises(EngineError, match=f"not finite, .*{value}"),
    ):
        session.classify(np.zeros((40, 40, 3), np.uint8))


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_another_number_of_members_is_refused(target, tmp_path):
    if engine_module(target).version() is None:
        pytest.skip(f"{target} is not installed here")
    bundle = Bundle(hostile_bundle(tmp_path, target, ir()))
    for artifact in ((), bundle.manifest.artifact * 3):
        with pytest.raises(BundleError, match=f"has {len(artifact)} members"):
            engine_module(target).open_engine([bundle.read(name) for name in artifact], bundle.manifest, 1)


@pytest.mark.parametrize(
    ("declared", "name"),
    [
        (f"<!DOCTYPE net [{LAUGHS}]>", "&i;"),
        ('<!DOCTYPE net [<!ENTITY a SYSTEM "file:///etc/passwd">]>', "&a;"),
    ],
)
def test_entities_stay_what_is_written(declared, name):
    openvino = pytest.importorskip("openvino")
    assert openvino.Core().read_model(ir(declared, name), bytes(28)).friendly_name == name


def test_within_the_same_limits_an_honest_graph_is_loaded(tmp_path):
    pytest.importorskip("onnxruntime")
    path = hostile_bundle(tmp_path, "onnxruntime", constant_answer())
    done = subprocess.run(
        [sys.executable, "-c", LOADS, str(path)],
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES)),
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", GRAPHS)
def test_it_is_refused(name, tmp_path):
    target, graph = GRAPHS[name]
    if engine_module(target).version() is None:
        pytest.skip(f"{target} is not installed here")
    folder = tmp_path / "working" / "folder"
    folder.mkdir(parents=True)
    for place in (folder, folder.parent):
        np.arange(7, dtype=np.float32).tofile(place / "secret.bin")
    path = hostile_bundle(tmp_path, target, graph)
    done = subprocess.run(
        [sys.executable, "-c", LOADS, str(path)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES)),
    )
    assert done.returncode in (6, 7), done.stdout + done.stderr
    assert done.stdout.startswith(("BundleError", "EngineError"))
    assert "root:" not in done.stdout


def hostile_bundle(folder: Path, target: str, graph: bytes) -> Path:
    honest = Bundle(write_unbuilt_bundle(folder / "honest.edgecls"))
    files = {"model.onnx": graph} if target == "onnxruntime" else {"model.xml": graph, "model.bin": bytes(28)}
    artifact = tuple(files)
    files["golden/a.png"] = honest.read("golden/a.png")
    manifest = msgspec.structs.replace(
        honest.manifest,
        target=target,
        artifact=artifact,
        members=members_of(files),
        passport=msgspec.structs.replace(honest.manifest.passport, tensorrt=None, activations=None),
    )
    path = folder / "hostile.edgecls"
    write_bundle(path, manifest, files)
    return path
