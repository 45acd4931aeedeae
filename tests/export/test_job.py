import dataclasses
import os
import signal
import subprocess
import sys

import numpy as np
import onnx
import pytest

from edgecls.bench.gate_result import Margin
from edgecls.calibration.graph import Graph
from edgecls.calibration.quantization import Quantization
from edgecls.export import job
from edgecls.export.job import export_bundle
from edgecls.export.recover import Budget
from edgecls.export.trace import Trace
from edgecls.runtime import Bundle, EngineError, ImageSet, InputError, Labels, UnsupportedError

NNCF = Quantization(quantizer="nncf")


@pytest.fixture
def export(small, tmp_path):
    opened, graph, _ = small

    def run(**options):
        defaults = {
            "target": "onnxruntime",
            "precision": "fp32",
            "output": tmp_path / "out.edgecls",
            "traced": Trace(graph, 0.0),
        }
        return export_bundle(opened, **{**defaults, **options})

    return run


def test_int8_without_pictures_is_refused(export):
    with pytest.raises(InputError, match=r"INT8 needs calibration pictures: pass --calibration"):
        export(precision="int8")


def test_options_that_contradict_each_other_are_refused(export, small, tmp_path, pictures):
    plan = tmp_path / "plan.json"
    plan.write_bytes(small[2].to_json())
    with pytest.raises(InputError, match="are for INT8"):
        export(plan=plan)
    with pytest.raises(InputError, match="takes no --plan"):
        export(precision="int8", target="openvino", plan=plan, quantization=NNCF)
    with pytest.raises(UnsupportedError, match="nncf is refused for onnxruntime"):
        export(precision="int8", calibration=ImageSet.from_folder(pictures), quantization=NNCF)
    with pytest.raises(InputError, match="no target is called 'abacus'"):
        export(target="abacus")


def test_a_folder_that_does_not_exist_is_refused_at_once(export, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "trace", lambda classifier: pytest.fail("traced"))
    with pytest.raises(InputError, match="does not exist"):
        export(output=tmp_path / "nowhere" / "x.edgecls", traced=None)


def test_broken_pictures_stop_the_export_before_anything_is_traced(export, tmp_path, monkeypatch):
    for index in range(20):
        (tmp_path / f"{index}.png").write_bytes(b"")
    monkeypatch.setattr(job, "trace", lambda classifier: pytest.fail("traced"))
    with pytest.raises(InputError, match="20 of 20 calibration pictures cannot be read"):
        export(precision="int8", calibration=ImageSet.from_folder(tmp_path), traced=None)


def test_pictures_that_judge_and_calibrate_are_refused_before_anything_is_traced(export, pictures, monkeypatch):
    monkeypatch.setattr(job, "trace", lambda classifier: pytest.fail("traced"))
    images = ImageSet.from_folder(pictures)
    budget = Budget(Margin(1.0), images.labelled(Labels(tuple(f"class {i}" for i in range(7)))))
    with pytest.raises(InputError, match="24 of the 24 pictures of --eval are in the calibration folder"):
        export(precision="int8", calibration=images, budget=budget, traced=None)


def test_an_older_bundle_survives_a_failed_export(export, tmp_path, monkeypatch):
    path = export().path
    before = path.read_bytes()

    def explode(*arguments):
        raise EngineError("the engine burnt")

    monkeypatch.setattr(job, "assemble", explode)
    with pytest.raises(EngineError):
        export()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["out.edgecls"]


@pytest.mark.parametrize("broken", ["assemble", "write_bundle"])
def test_what_was_tried_is_remembered_until_the_bundle_is_written(export, tmp_path, pictures, monkeypatch, broken):
    options = {"precision": "int8", "calibration": ImageSet.from_folder(pictures), "sensitivity": True}

    def explode(*arguments):
        raise EngineError("the engine burnt")

    with monkeypatch.context() as patch:
        patch.setattr(job, broken, explode)
        with pytest.raises(EngineError):
            export(**options)
    assert os.listdir(tmp_path) == [".out.edgecls.trials"]
    export(**options)
    assert os.listdir(tmp_path) == ["out.edgecls"]


def test_a_check_writes_nothing(export, tmp_path):
    result = export(check=True)
    assert result.path is None
    assert result.size_bytes > 1000
    assert not list(tmp_path.iterdir())


def test_notes_of_the_checkpoint_reach_the_user(small, tmp_path):
    opened, graph, _ = small
    said = []

    class Listener(job.SilentProgress):
        def note(self, message):
            said.append(message)

    noted = dataclasses.replace(opened, notes=("the averaged weights were taken",))
    path = tmp_path / "x.edgecls"
    traced = Trace(graph, 0.0)
    result = export_bundle(
        noted, target="onnxruntime", precision="fp32", output=path, traced=traced, progress=Listener()
    )
    assert said == list(result.notes) == ["the averaged weights were taken"]


def test_a_bundle_does_not_tell_where_its_model_lay(small, tmp_path):
    opened, graph, _ = small
    path = tmp_path / "x.edgecls"
    elsewhere = dataclasses.replace(opened, model=f"{tmp_path}/net.py:make")
    result = export_bundle(elsewhere, target="onnxruntime", precision="fp32", output=path, traced=Trace(graph, 0.0))
    assert result.manifest.provenance.model == "net.py:make"
    assert str(tmp_path).encode() not in path.read_bytes()


def test_a_plan_in_a_bundle_makes_the_same_bundle_again(export, tmp_path, pictures):
    first = export(precision="int8", calibration=ImageSet.from_folder(pictures), calibration_size=16)
    plan = tmp_path / "plan.json"
    plan.write_bytes(Bundle(first.path).read("plan.json"))
    again = export(precision="int8", plan=plan, output=tmp_path / "again.edgecls")
    assert again.path.read_bytes() == first.path.read_bytes()
    assert any("not compared with the float graph: give --calibration" in note for note in again.notes)
    compared = export(precision="int8", plan=plan, calibration=ImageSet.from_folder(pictures), calibration_size=16)
    assert compared.path.read_bytes() == first.path.read_bytes()
    assert any("calibration pictures" in note for note in compared.notes)


BRANCHING = """
<ir_version: 10, opset_import: ["": 20]>
net (uint8[batch, 8, 8, 3] image) => (float[batch, 2] logits)
{
    floats = Cast<to = 1>(image)
    axes = Constant<value = int64[2] {1, 2}>()
    means = ReduceMean<keepdims = 0>(floats, axes)
    some = Constant<value = bool {1}>()
    chosen = If (some) <
        then_branch = yes () => (float[batch, 3] a) { a = Relu(means) },
        else_branch = no () => (float[batch, 3] b) { b = Neg(means) }
    >
    start = Constant<value = int64[1] {0}>()
    end = Constant<value = int64[1] {2}>()
    axis = Constant<value = int64[1] {1}>()
    logits = Slice(chosen, start, end, axis)
}
"""
HALF = """
<ir_version: 10, opset_import: ["": 20]>
net (uint8[batch, 8, 8, 3] image) => (float[batch, 3] logits)
{
    floats = Cast<to = 10>(image)
    axes = Constant<value = int64[2] {1, 2}>()
    means = ReduceMean<keepdims = 0>(floats, axes)
    logits = Cast<to = 1>(means)
}
"""


@pytest.mark.parametrize(("text", "reason"), [(BRANCHING, "branches while it runs"), (HALF, "half precision already")])
def test_graphs_that_cannot_be_had_in_fewer_bits_are_refused(text, reason, export, pictures, tmp_path):
    graph = Graph(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)).SerializeToString())
    with pytest.raises(UnsupportedError, match=reason):
        export(precision="int8", calibration=ImageSet.from_folder(pictures), traced=Trace(graph, 0.0))
    assert not list(tmp_path.glob("*.edgecls"))


def test_without_vnni_an_export_answers_in_floats_as_the_board_does_in_integers(export, pictures, monkeypatch):
    images = ImageSet.from_folder(pictures)
    golden = {}
    for isa in ("x86-vnni", "x86"):
        monkeypatch.setattr("edgecls.runtime.cpu.cpu_isa", lambda isa=isa: isa)
        for target in ("onnxruntime", "openvino"):
            result = export(precision="int8", target=target, calibration=images, calibration_size=16)
            golden[target, isa] = np.array([sample.logits for sample in result.manifest.golden])
    for target in ("onnxruntime", "openvino"):
        floats, integers = golden[target, "x86"], golden[target, "x86-vnni"]
        assert (floats != integers).any()  # other kernels
        np.testing.assert_allclose(floats, integers, atol=0.05 * np.abs(integers).max())


def test_nncf_on_request(export, pictures):
    pytest.importorskip("nncf")
    result = export(
        precision="int8", target="openvino", calibration=ImageSet.from_folder(pictures), quantization=NNCF,
        calibration_size=16,
    )  # fmt: skip
    assert result.manifest.provenance.quantizer == "nncf"
    assert result.manifest.provenance.plan_sha256 is None
    assert result.manifest.passport.nodes_int8 > 5


KILLED = """
import sys, time, zipfile
from pathlib import Path
from edgecls.runtime import bundle_writer
from edgecls.runtime import Bundle
source, target = sys.argv[1:]
bundle = Bundle(source)
files = {name: bundle.read(name) for name in bundle.manifest.members}
manifest = bundle.manifest
original = zipfile.ZipFile.writestr
def slow(self, entry, data):
    original(self, entry, data)
    print("member", flush=True)
    time.sleep(60)
zipfile.ZipFile.writestr = slow
bundle_writer.write_bundle(Path(target), manifest, files)
"""


def test_a_killed_export_leaves_the_old_bundle(bundle_path, tmp_path):
    target = tmp_path / "target.edgecls"
    target.write_bytes(b"old")
    command = [sys.executable, "-c", KILLED, str(bundle_path), str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        first = process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert first == "member\n"
    assert target.read_bytes() == b"old"
