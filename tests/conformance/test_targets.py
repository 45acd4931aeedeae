"""One suite that every target must pass, in every precision that it offers. Targets come from the registry."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from networks import GREY, SmallNet, classifier, plan_of, settle

from edgecls.export.job import export_bundle
from edgecls.export.targets import target_module, target_names
from edgecls.export.trace import probe_pictures, run_onnx, trace
from edgecls.runtime import Bundle, ImageSet, MissingExtraError, UnsupportedError, load
from edgecls.runtime.engines import engine_module, engine_names
from edgecls.runtime.verify import verify_bundle

OFFERED = [(target, precision) for target in target_names() for precision in target_module(target).PRECISIONS]
ON_GPU = [target for target in target_names() if hasattr(target_module(target), "check_gpu")]
"""Targets whose engine needs a GPU to run; ONNX Runtime answers their golden samples."""
ON_CPU = [target for target in target_names() if target not in ON_GPU]
RUNNING = [(target, precision) for target, precision in OFFERED if target in ON_CPU]
REFUSED = [(target, precision) for target in target_names() for precision in target_module(target).REFUSED]
TOLERANCE = {"fp32": 1e-4, "fp16": 5e-3, "int8": 0.1}
"""Largest difference from the float graph, as a share of the largest logit."""


@pytest.fixture(scope="module")
def networks(small):
    """The float graph of each kind of stem: (classifier, trace, plan)."""
    made = {"imagenet means, padded": (small[0], trace(small[0]), small[2])}
    for name, padding, means in (("one mean, padded", 1, GREY), ("imagenet means, bare", 0, {})):
        opened = classifier(settle(SmallNet(padding=padding)), **means)
        traced = trace(opened)
        made[name] = (opened, traced, plan_of(traced.graph, probe_pictures(32, 32)))
    return made


def exported(network, tmp_path, target, precision, **options):
    if target == "tensorrt-rtx" and engine_module(target).version() is None:
        pytest.skip("tensorrt-rtx is not installed: pip install 'edgecls[tensorrt-rtx]'")
    opened, traced, plan = network
    path = tmp_path / f"{target}-{precision}.edgecls"
    if precision == "int8":
        (tmp_path / "plan.json").write_bytes(plan.to_json())
        options.setdefault("plan", tmp_path / "plan.json")
    return export_bundle(opened, target=target, precision=precision, output=path, traced=traced, **options)


def test_targets_and_engines_come_in_pairs():
    assert target_names() == engine_names()


STEMS = pytest.mark.parametrize("stem", ["imagenet means, padded", "one mean, padded", "imagenet means, bare"])


@STEMS
@pytest.mark.parametrize(("target", "precision"), OFFERED)
def test_golden_samples_are_the_float_graphs_answers(networks, tmp_path, target, precision, stem):
    network = networks[stem]
    bundle = Bundle(exported(network, tmp_path, target, precision).path)
    for sample in bundle.manifest.golden:
        pixels = bundle.manifest.preprocess.pixels(bundle.read(sample.image))
        expected = run_onnx(network[1].graph.proto, pixels[None])[0]
        difference = np.abs(np.asarray(sample.logits) - expected).max()
        assert difference <= TOLERANCE[precision] * np.abs(expected).max()


@STEMS
@pytest.mark.parametrize(("target", "precision"), RUNNING)
def test_a_bundle_answers_as_the_float_graph_does(networks, tmp_path, target, precision, stem):
    network = networks[stem]
    result = exported(network, tmp_path, target, precision)
    crops = probe_pictures(32, 6)
    expected = run_onnx(network[1].graph.proto, crops)
    crops.flags.writeable = False  # as those of np.frombuffer and of mapped files are
    with load(result.path, threads=1) as session:
        assert verify_bundle(session).passed
        batch = session.logits(crops)
        padded = session.engine.infer(session.pad(crops, result.manifest.padding))
        singles = np.concatenate([session.logits(crop) for crop in crops])
        info = session.engine_info
    biggest = max(abs(logit) for sample in result.manifest.golden for logit in sample.logits)
    assert result.manifest.golden_tolerance <= {"int8": 0.05}.get(precision, 1e-3) * max(biggest, 0.1) * 1.06
    assert (info.name, info.threads) == (target, 1)
    assert info.provider_used == info.provider_requested
    assert info.version == engine_module(target).version() == result.manifest.passport.engine_version
    np.testing.assert_array_equal(padded, batch)
    scale = np.abs(expected).max()
    assert np.abs(batch - expected).max() <= TOLERANCE[precision] * scale
    np.testing.assert_allclose(singles, batch, atol=1e-4 * scale if precision != "int8" else 0.02 * scale)


@pytest.mark.parametrize("target", ON_GPU)
def test_without_a_gpu_there_is_one_clear_error_and_no_other_engine(networks, tmp_path, target):
    if Path("/proc/driver/nvidia/version").exists():
        pytest.skip("this machine has an NVIDIA driver")
    result = exported(networks["one mean, padded"], tmp_path, target, "fp16")
    with pytest.raises((MissingExtraError, UnsupportedError), match="TensorRT"):
        load(result.path)


@pytest.mark.parametrize(("target", "precision"), [pair for pair in OFFERED if pair[0] != "tensorrt-rtx"])
def test_equal_exports_are_equal_files(networks, tmp_path, target, precision):
    network = networks["one mean, padded"]
    first = exported(network, tmp_path, target, precision).path.read_bytes()
    assert exported(network, tmp_path, target, precision).path.read_bytes() == first


@pytest.mark.parametrize(("target", "precision"), OFFERED)
def test_the_manifest_tells_where_the_bundle_comes_from(networks, tmp_path, target, precision):
    opened, traced, plan = network = networks["imagenet means, padded"]
    manifest = exported(network, tmp_path, target, precision).manifest
    assert (manifest.target, manifest.precision) == (target, precision)
    assert manifest.preprocess == opened.preprocess
    assert manifest.labels == opened.labels
    assert manifest.provenance.graph_sha256 == traced.graph.digest
    assert manifest.passport.nodes > 0
    if precision == "int8":
        assert manifest.provenance.plan_sha256 == plan.digest
        assert manifest.provenance.quantizer == "edgecls"
        assert manifest.passport.nodes_int8 > manifest.passport.nodes // 4
        assert manifest.passport.isa == ("x86-vnni" if target in ON_CPU else None)
    else:
        assert manifest.provenance.plan_sha256 is None
        assert manifest.passport.nodes_int8 == 0


@pytest.mark.parametrize("isa", ["x86", "arm64"])
@pytest.mark.parametrize("target", ON_CPU)
@pytest.mark.filterwarnings("ignore:.*right here but slow")
def test_every_instruction_set_computes_the_same_network(networks, tmp_path, target, isa):
    network = networks["one mean, padded"]
    result = exported(network, tmp_path, target, "int8", isa=isa)
    assert result.manifest.passport.isa == isa
    crops = probe_pictures(32, 6)
    expected = run_onnx(network[1].graph.proto, crops)
    with load(result.path) as session:
        assert np.abs(session.logits(crops) - expected).max() <= 0.15 * np.abs(expected).max()


@STEMS
@pytest.mark.parametrize("isa", ["x86-vnni", "x86", "arm64"])
@pytest.mark.parametrize("target", ON_CPU)
def test_our_graphs_break_no_rule_and_the_engine_runs_what_the_linter_foretells(networks, target, isa, stem):
    _, traced, plan = networks[stem]
    artifact = target_module(target).compile_artifact(traced.graph, "int8", plan, isa)
    # What breaks a rule is refused there, what is merely slower or otherwise than foretold is told.
    assert all("in float (" in note for note in artifact.notes), artifact.notes


@pytest.mark.parametrize(("target", "precision"), REFUSED)
def test_a_precision_that_makes_no_sense_is_refused_with_a_reason(networks, tmp_path, target, precision):
    with pytest.raises(UnsupportedError, match=f"{precision} on {target} is refused: .+"):
        exported(networks["one mean, padded"], tmp_path, target, precision)
    assert not list(tmp_path.glob("*.edgecls"))


@pytest.mark.parametrize("target", target_names())
def test_what_the_plan_leaves_in_float_is_told(networks, tmp_path, target):
    opened, traced, plan = networks["one mean, padded"]
    edited = msgspec.structs.replace(plan, float_nodes={"head.0": "the user said so"})
    result = exported((opened, traced, edited), tmp_path, target, "int8")
    assert any("head.0" in note and "the user said so" in note for note in result.notes)


@pytest.mark.parametrize("target", target_names())
def test_calibrating_from_pictures_records_them(networks, tmp_path, pictures, target):
    opened, traced, _ = networks["imagenet means, padded"]
    images = ImageSet.from_folder(pictures)
    result = exported((opened, traced, _), tmp_path, target, "int8", plan=None, calibration=images, calibration_size=20)
    record = result.manifest.provenance.calibration
    assert len(record.images) == 20
    assert set(record.images) <= {image.sha256 for image in images.images}
    assert record.sha256 == images.take(20, seed=0).digest
