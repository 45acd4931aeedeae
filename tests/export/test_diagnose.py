"""Bundles that were broken on purpose, each in one stage, are told to be broken there."""

from __future__ import annotations

import json

import msgspec
import networks
import numpy as np
import pytest
import torch

from edgecls.export.diagnose import diagnose
from edgecls.export.diagnosis_steps import renormalized
from edgecls.export.job import export_bundle
from edgecls.export.trace import trace
from edgecls.models.normalize import normalized
from edgecls.runtime import Bundle, ImageSet, InputError, Preprocess
from edgecls.runtime.bundle_writer import write_bundle

STAGES_FLOAT = ["preprocessing", "export", "engine"]
STAGES_INT8 = ["preprocessing", "export", "weights", "ranges", "rounding", "engine"]


@pytest.fixture(scope="module")
def network(pictures):
    """A network that tells these pictures apart, so that what spoils its answers shows."""
    torch.manual_seed(1)
    module = networks.settle(networks.SmallNet(), seed=1)
    preprocess = networks.classifier(module).preprocess
    crops = [preprocess.pixels(pictures / image.path) for image in ImageSet.from_folder(pictures).images]
    logits = module(torch.from_numpy(normalized(np.stack(crops), preprocess)))
    factor = 4 / logits.std(0)
    module.fc.weight *= factor[:, None]
    module.fc.bias.copy_((module.fc.bias - logits.mean(0)) * factor)
    return module


@pytest.fixture(scope="module")
def made(network, pictures, tmp_path_factory):
    """Exports the network with another preprocessing or plan; returns the bundle."""
    folder = tmp_path_factory.mktemp("bundles")
    traces = {}

    def make(name, target="onnxruntime", precision="int8", plan=None, source=network, **preprocess):
        classifier = networks.classifier(source, **preprocess)
        key = (id(source), *sorted(preprocess.items()))
        traces[key] = traces.get(key) or trace(classifier)
        path = folder / f"{name}.edgecls"
        export_bundle(
            classifier, target=target, precision=precision, output=path, plan=plan, threads=1, traced=traces[key],
            calibration=ImageSet.from_folder(pictures) if precision == "int8" and plan is None else None,
        )  # fmt: skip
        return path

    return make


@pytest.fixture(scope="module")
def reference(made):
    return made("reference", precision="fp32")


@pytest.fixture(scope="module")
def int8(made):
    return made("int8")


@pytest.fixture(scope="module")
def told(reference, pictures):
    return lambda bundle, against=reference: diagnose(bundle, against, pictures, threads=1)


def copy_with(bundle, path, **fields):
    """The same bundle with another manifest."""
    opened = Bundle(bundle)
    files = {name: opened.read(name) for name in opened.manifest.members}
    write_bundle(path, msgspec.structs.replace(opened.manifest, **fields), files)
    return path


def test_a_whole_int8_bundle_has_nothing_to_explain(told, int8) -> None:
    found = told(int8)
    assert found.causes == ()
    assert found.layers == ()
    assert [stage.name for stage in found.stages] == STAGES_INT8
    assert all(stage.ran and stage.kl_mean < 0.02 for stage in found.stages)
    assert found.verdict.startswith("No drop to explain")
    assert found.golden.passed


def test_a_float_bundle_of_another_engine_has_nothing_to_explain(told, made) -> None:
    found = told(made("openvino", target="openvino", precision="fp32"))
    assert found.causes == ()
    assert [stage.name for stage in found.stages] == STAGES_FLOAT
    assert found.stages[1].note == "the same float graph"
    assert found.stages[-1].kl_mean < 1e-6


@pytest.mark.parametrize(
    ("broken", "options"),
    [
        ({"mean": (0.3, 0.5, 0.4), "std": (0.15, 0.12, 0.14)}, "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"),
        ({"colour": "bgr"}, "--colour rgb"),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_wrong_normalisation_is_preprocessing(told, made, broken, options, precision) -> None:
    found = told(made(f"broken-{precision}", precision=precision, **broken))
    assert found.causes == ("preprocessing",)
    assert options in found.verdict
    assert found.repaired_kl < found.stages[-1].kl_mean / 5


def test_pixels_that_the_bundle_was_not_made_with_are_preprocessing(told, int8, tmp_path) -> None:
    manifest = Bundle(int8).manifest
    wrong = msgspec.structs.replace(manifest.preprocess, resize_px=64)
    found = told(copy_with(int8, tmp_path / "resized.edgecls", preprocess=wrong))
    assert found.causes == ("preprocessing",)
    assert not found.golden.passed
    assert "does not give the pixels here" in found.verdict


def test_crops_of_another_size_cannot_be_swapped_and_it_says_so(told, made) -> None:
    found = told(made("small-crop", precision="fp32", crop_px=24, std=(0.7, 0.5, 0.6)))
    assert not found.stages[0].ran
    assert "crops of another size" in found.stages[0].note
    assert found.causes == ("preprocessing", "export")
    assert "--crop 32 --std 0.229,0.224,0.225" in found.verdict


def test_a_range_that_is_ten_times_too_small_is_named(told, made, int8, tmp_path) -> None:
    plan = json.loads(Bundle(int8).read("plan.json"))
    name = next(name for name in plan["tensors"] if ".Add" in name)
    tensor = plan["tensors"][name]
    tensor["asymmetric"] = [end / 10 for end in tensor["asymmetric"]]
    tensor["symmetric"] /= 10
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    found = told(made("spoiled", plan=tmp_path / "plan.json"))
    assert found.causes == ("ranges",)
    assert found.layers[0].name == name
    assert f"most in {name} (kept " in found.verdict
    assert found.layers[0].lost_db > 20


def test_weights_that_are_too_coarse_are_named(told, made, int8, tmp_path) -> None:
    plan = json.loads(Bundle(int8).read("plan.json"))
    name = "blocks.1.body.0"
    plan["weights"][name] = [200 * bound for bound in plan["weights"][name]]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    found = told(made("coarse", plan=tmp_path / "plan.json"))
    assert found.causes == ("weights",)
    assert "float_nodes" in found.verdict
    assert found.layers[0].name == name
    assert found.layers[0].sqnr_out_db < 10


def test_tensors_whose_channels_the_plan_rescaled_are_not_blamed(made, pictures, tmp_path) -> None:
    """They are other numbers than the reference's, up to the weights that undo it."""
    torch.manual_seed(3)
    layers = (torch.nn.Conv2d(16, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3, padding=1))
    relus = networks.SmallNet()
    relus.blocks = torch.nn.Sequential(*layers, torch.nn.ReLU())
    relus = networks.settle(relus, seed=1)
    relus.fc.weight *= 50  # so that what spoils its answers shows
    floats = made("relus", precision="fp32", source=relus)
    plan = json.loads(Bundle(made("relus-int8", source=relus)).read("plan.json"))
    plan["channel_scales"] = {"blocks.0": [float(8 ** (-1) ** channel) for channel in range(16)]}
    name = "blocks.2"
    plan["weights"][name] = [200 * bound for bound in plan["weights"][name]]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    coarse = made("relus-coarse", plan=tmp_path / "plan.json", source=relus)
    found = diagnose(coarse, floats, pictures, limit=16, threads=1)
    assert found.causes == ("weights",)
    assert found.layers[0].name == "blocks.3.Relu_0"
    assert "blocks.1.Relu_0" not in [layer.name for layer in found.layers]


def test_another_checkpoint_is_export(told, made) -> None:
    found = told(made("other", precision="fp32", source=networks.settle(networks.SmallNet(), seed=5)))
    assert found.causes == ("export",)
    assert "another float graph" in found.stages[1].note


def test_what_an_engine_alone_computes_is_left_together(told, made, int8, tmp_path) -> None:
    plan = json.loads(Bundle(int8).read("plan.json"))
    for tensor in plan["tensors"].values():
        tensor["asymmetric"] = [end / 10 for end in tensor["asymmetric"]]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    found = told(made("openvino-spoiled", target="openvino", plan=tmp_path / "plan.json"))
    assert found.causes == ("quantization", "engine")
    assert "only openvino computes its files" in found.stages[2].note
    assert "export for onnxruntime with --plan" in found.verdict


def test_an_engine_that_computes_something_else_is_the_cause(told, int8, monkeypatch) -> None:
    from edgecls.runtime.engines.onnxruntime import OnnxRuntimeEngine

    infer = OnnxRuntimeEngine.infer
    # The candidate alone takes four bytes a pixel.
    monkeypatch.setattr(
        OnnxRuntimeEngine, "infer", lambda self, images: infer(self, images) * (-1 if images.shape[3] == 4 else 1)
    )
    found = told(int8)
    assert found.causes == ("engine",)
    assert "The engine computes something else" in found.verdict


def test_a_candidate_whose_engine_is_not_here_is_judged_as_far_as_it_runs(told, int8, monkeypatch) -> None:
    from edgecls.runtime import session
    from edgecls.runtime.errors import UnsupportedError

    def refuse(manifest):
        if manifest.precision == "int8":
            raise UnsupportedError("no such CPU here")

    monkeypatch.setattr(session, "check_isa", refuse)
    found = told(int8)
    assert found.golden is None
    assert not found.stages[-1].ran
    assert found.verdict.endswith("But its engine was not run: no such CPU here.")


def test_a_bundle_is_not_its_own_reference(told, reference) -> None:
    with pytest.raises(InputError, match="the same bundle"):
        told(reference)


def test_renormalized_bytes_mean_the_same() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(90, 140, (5, 5, 3), dtype=np.uint8)
    one = Preprocess(resize_px=5, crop_px=5, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
    other = Preprocess(resize_px=5, crop_px=5, mean=(0.3, 0.4, 0.5), std=(0.25, 0.3, 0.2), colour="bgr")
    assert np.array_equal(renormalized(pixels, one, one), pixels)
    back = renormalized(renormalized(pixels, one, other), other, one)
    assert np.abs(back.astype(int) - pixels).max() <= 1
    # Channel for channel: the network's first channel is the other's last byte.
    seen = (pixels[..., 0] / 255 - 0.5) / 0.2
    shown = (renormalized(pixels, one, other)[..., 2] / 255 - 0.3) / 0.25
    assert np.abs(seen - shown).max() <= 0.5 / 255 / 0.25 + 1e-6
