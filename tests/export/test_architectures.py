"""Every architecture of the catalogue, fp32 and INT8, on both CPU engines."""

from __future__ import annotations

import zipfile
from pathlib import Path

import architectures
import numpy as np
import pytest

from edgecls.export.job import export_bundle
from edgecls.export.trace import trace
from edgecls.runtime import ImageSet, load

_OWN_SIZE = {"alexnet", "vgg16"}
"""Their pooling in front of the linear layers gives 6 x 6 or 7 x 7 whatever comes; that is exact for 224 px alone."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore:The default weight initialization")
@pytest.mark.parametrize("name", architectures.CURATED)
def test_it_exports_and_answers_as_torch_does(name: str, pictures: Path, tmp_path: Path) -> None:
    images = ImageSet.from_folder(pictures)
    classifier = architectures.opened(name, images, side_px=224 if name in _OWN_SIZE else 96)
    pixels = np.stack([classifier.preprocess.pixels(images.root / image.path) for image in images.images[:6]])
    expected = architectures.answers(classifier, pixels)
    spread = expected.std()
    assert spread > 1e-3
    traced = trace(classifier)
    plan = None
    for precision in ("fp32", "int8"):
        for target in ("onnxruntime", "openvino"):
            path = tmp_path / f"{target}-{precision}.edgecls"
            result = export_bundle(
                classifier, target=target, precision=precision, output=path, traced=traced, threads=1,
                calibration=images if precision == "int8" and plan is None else None, plan=plan,
            )  # fmt: skip
            with load(path, threads=1) as session:
                error = np.abs(np.concatenate([session.logits(crop) for crop in pixels]) - expected)
            if precision == "fp32":
                assert error.max() < 1e-3 * spread
            else:
                assert error.mean() < 0.5 * spread
                assert result.manifest.passport.nodes_int8 > 0
                plan = tmp_path / "plan.json"
                with zipfile.ZipFile(path) as archive:
                    plan.write_bytes(archive.read("plan.json"))
