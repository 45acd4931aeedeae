"""INT8 of a network whose hard-swish and squeeze-and-excitation blocks were really trained."""

from __future__ import annotations

import cifar10
import numpy as np
import pytest

from edgecls.export.job import export_bundle
from edgecls.export.trace import trace
from edgecls.models import open_classifier
from edgecls.models.evaluate import evaluate, labelled_images
from edgecls.runtime import ImageSet, load

pytestmark = pytest.mark.skipif(cifar10.missing is not None, reason=str(cifar10.missing))


@pytest.fixture(scope="module")
def classifier():
    return open_classifier(str(cifar10.TRAINED))


@pytest.fixture(scope="module")
def traced(classifier):
    return trace(classifier)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cifar10")
    return cifar10.unpack(folder, "train", 16), cifar10.unpack(folder, "test", 30)


def test_the_file_holds_a_trained_network_and_fits_a_repository(classifier, parts) -> None:
    evaluation, _ = evaluate(classifier, labelled_images(parts[1], classifier.labels), threads=1)
    assert evaluation.metrics.top1 > 0.8
    assert cifar10.TRAINED.stat().st_size < 4e6


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_its_int8_bundle_answers_as_it_does(target, classifier, traced, parts, tmp_path) -> None:
    train, test = parts
    answers = {}
    for precision in ("fp32", "int8"):
        path = tmp_path / f"{precision}.edgecls"
        export_bundle(
            classifier, target=target, precision=precision, output=path, traced=traced, threads=1,
            calibration=ImageSet.from_folder(train) if precision == "int8" else None,
        )  # fmt: skip
        with load(path, threads=1) as session:
            pixels = [session.preprocess.pixels(test / image.path) for image in ImageSet.from_folder(test).images]
            answers[precision] = np.concatenate([session.logits(crop) for crop in pixels])
    same = (answers["fp32"].argmax(axis=1) == answers["int8"].argmax(axis=1)).mean()
    assert same > 0.93
