"""Nothing of MobileNetV3, EfficientNet and ResNet stays in float that has an integer kernel."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from networks import IMAGENET, classifier, plan_of

from edgecls.calibration.collect import crops
from edgecls.export.targets import onnxruntime as ort_target
from edgecls.export.targets import openvino as ov_target
from edgecls.export.trace import run_onnx, trace
from edgecls.models import torchvision_operators  # noqa: F401 (before torchvision and timm)
from edgecls.models.normalize import normalized
from edgecls.runtime import ImageSet, Preprocess
from edgecls.runtime.session import Session

PICTURES = Path(__file__).parents[3] / "shared" / "data" / "imagenet-dev"

pytestmark = [
    pytest.mark.skipif(not PICTURES.is_dir(), reason=f"{PICTURES} is not here: real pictures settle the batch norms"),
    pytest.mark.filterwarnings("ignore:The default weight initialization"),
]

NETWORKS = {
    "mobilenet_v3_small": 18,
    "mobilenet_v3_large": 16,
    "efficientnet_b0": 32,
    "resnet18": 0,
    "resnet50": 0,
    "timm:mobilenetv3_small_100": 18,
}
"""Convolutions in squeeze-and-excitation blocks of each."""


def built(name: str) -> torch.nn.Module:
    import timm
    import torchvision

    torch.manual_seed(0)
    if name.startswith("timm:"):
        return timm.create_model(name.removeprefix("timm:"))
    return torchvision.models.get_model(name, weights=None)


def settled(module: torch.nn.Module, pixels: np.ndarray, preprocess: Preprocess) -> torch.nn.Module:
    """Batch norms see real pictures, so that activations have ordinary sizes."""
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = None
    module.train()
    with torch.no_grad():
        module(torch.from_numpy(normalized(pixels, preprocess)))
    return module.eval().requires_grad_(False)


def counted(name: str, crop_px: int) -> None:
    preprocess = Preprocess(resize_px=crop_px + crop_px // 7, crop_px=crop_px, **IMAGENET)
    pixels = np.concatenate(list(crops(ImageSet.from_folder(PICTURES).take(20, seed=0), preprocess)))
    opened = classifier(settled(built(name), pixels, preprocess), crop_px, 1000, resize_px=preprocess.resize_px)
    graph = trace(opened).graph  # Parity is checked there.
    kinds = [node.op_type for node in onnx.load_model_from_string(graph.proto).graph.node]
    convolutions, products = kinds.count("Conv"), kinds.count("Gemm")
    assert convolutions > 10
    plan = plan_of(graph, pixels[:16])
    expected = run_onnx(graph.proto, pixels)

    artifact = ort_target.compile_artifact(graph, "int8", plan, "x86-vnni")
    _, optimised = ort_target.optimised_kinds(artifact.files["model.onnx"])
    assert optimised["QLinearConv"] == convolutions
    assert optimised["QGemm"] == products
    assert not {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul"} & optimised.keys()
    assert artifact.notes == ()
    got = run_onnx(artifact.files["model.onnx"], Session.pad(pixels, artifact.padding))
    assert np.isfinite(got).all()
    assert np.abs(got - expected).mean() < 0.5 * np.abs(expected).mean()

    artifact = ov_target.compile_artifact(graph, "int8", plan, "x86-vnni")
    executed = ov_target.executed_kinds(artifact.files["model.xml"], artifact.files["model.bin"])
    integer = sum(count for (kind, type_), count in executed.items() if "Conv" in kind and type_ in {"u8", "i8"})
    assert integer == convolutions - NETWORKS[name]
    assert executed["FullyConnected", "u8"] == products
    assert len(artifact.notes) == (NETWORKS[name] > 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_convolution_is_an_integer_kernel(name):
    counted(name, crop_px=224)


def test_every_convolution_of_a_small_mobilenet_is_an_integer_kernel():
    counted("mobilenet_v3_small", crop_px=64)
