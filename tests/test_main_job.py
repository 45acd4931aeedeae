"""The main job on real pictures with a really trained model: EfficientNet-Lite0, ImageNet."""

from __future__ import annotations

import lite
import numpy as np
import pytest

from edgecls.bench.gate import judge
from edgecls.bench.gate_result import Limits, Margin
from edgecls.bench.measure import measure
from edgecls.export.job import export_bundle
from edgecls.export.trace import trace
from edgecls.runtime import ImageSet, load

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(lite.missing() is not None, reason=str(lite.missing())),
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Lite0 as bundles, by (target, precision), and the folder of pictures that did not calibrate."""
    folder = tmp_path_factory.mktemp("lite0")
    calibration, evaluation = lite.split(folder)
    classifier = lite.opened()
    traced = trace(classifier)
    bundles = {}
    for target in ("onnxruntime", "openvino"):
        for precision in ("fp32", "int8"):
            path = folder / f"{target}-{precision}.edgecls"
            export_bundle(
                classifier,
                target=target,
                precision=precision,
                output=path,
                calibration=ImageSet.from_folder(calibration),
                calibration_size=lite.CALIBRATION_SIZE,
                traced=traced,
            )
            bundles[target, precision] = path
    return classifier, bundles, evaluation


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_fp32_answers_every_picture_as_torch_with_torchvisions_transforms_does(exported, target):
    import torch
    from PIL import Image
    from torchvision import transforms

    classifier, bundles, _ = exported
    bicubic = transforms.InterpolationMode.BICUBIC
    transform = transforms.Compose(
        [
            transforms.Resize(256, bicubic),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.5,) * 3, (0.5,) * 3),
        ]
    )
    images = ImageSet.from_folder(lite.PICTURES).images
    assert len(images) == 500
    differing = []
    with load(bundles[target, "fp32"]) as session, torch.inference_mode():
        for image in images:
            path = lite.PICTURES / image.path
            with Image.open(path) as picture:
                expected = classifier.source(transform(picture.convert("RGB"))[None])
            if session.classify(path, top=1)[0].index != int(expected.argmax()):
                differing.append(image.path)
    assert differing == []


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_int8_loses_little_and_the_gate_says_that_372_pictures_cannot_prove_it(exported, tmp_path, target):
    _, bundles, evaluation = exported
    report = measure(
        [bundles[target, "fp32"], bundles[target, "int8"]],
        evaluation,
        output=tmp_path / "report.json",
        reference=bundles[target, "fp32"],
        latency=False,
    )
    accuracy = report.runs[1].accuracy
    assert accuracy.n == 372
    assert accuracy.top1_disagreement <= 0.02
    assert accuracy.drop_pp <= 1.0
    # 1 pp is shown where the two disagree on as few pictures as this; half of it cannot be, whatever they answer.
    judged = judge(report, Limits(max_drop=Margin(0.5)))
    assert judged.exit_code == 3
    assert np.isfinite(accuracy.kl_mean)
