"""What a sweep's results are called: by everything that decides them."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest
import torch
from networks import SmallNet, classifier, settle

from edgecls.calibration.quantization import Quantization
from edgecls.export import versions
from edgecls.export.sweep_point import Point, Task, classifier_digest
from edgecls.models import Classifier, PreprocessOverride, open_classifier
from edgecls.runtime import InputError, Labels, UnsupportedError

FLAGS = PreprocessOverride(resize_px=36, crop_px=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
NET = """
import torch
from part import SCALE

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3, 2)
        torch.nn.init.ones_(self.fc.weight)
        torch.nn.init.zeros_(self.fc.bias)

    def forward(self, x):
        return self.fc(x.mean((2, 3))) * SCALE
"""
POINT = Point(
    model="net",
    target="onnxruntime",
    precision="int8",
    recipe="default",
    quantization=Quantization(),
    classifier_sha256="a",
    images_sha256="b",
    calibration_sha256="c",
    isa="x86-vnni",
    seed=0,
    packages={"numpy": "1"},
)


def small(seed: int) -> Classifier:
    torch.manual_seed(seed)
    return classifier(settle(SmallNet()))


def test_code_that_own_code_imports_is_part_of_a_network(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "net.py").write_text(NET)
    digests = []
    for scale in ("1.0", "1.0", "2.0"):
        (tmp_path / "part.py").write_text(f"SCALE = {scale}\n")
        digests.append(classifier_digest(open_classifier(f"{tmp_path}/net.py:Net", override=FLAGS)))
    assert digests[0] == digests[1] != digests[2]


def test_weights_labels_and_preprocessing_are_part_of_it():
    opened, again, others = small(0), small(0), [small(1)]
    others += [
        dataclasses.replace(opened, labels=Labels(tuple("abcdefg"))),
        dataclasses.replace(opened, preprocess=msgspec.structs.replace(opened.preprocess, interpolation="bicubic")),
        dataclasses.replace(opened, checkpoint_sha256="0" * 64),
    ]
    assert len({classifier_digest(each) for each in (opened, again, *others)}) == 5


@pytest.mark.parametrize(
    "change",
    [
        {"target": "openvino"},
        {"precision": "fp32"},
        {"quantization": Quantization(ranges="minmax")},
        {"classifier_sha256": "x"},
        {"images_sha256": "x"},
        {"calibration_sha256": "x"},
        {"isa": "x86"},
        {"seed": 1},
        {"packages": {"numpy": "2"}},
    ],
)
def test_whatever_decides_a_point_changes_its_address(change):
    assert msgspec.structs.replace(POINT, **change).key != POINT.key


def test_edgecls_own_code_is_among_the_packages():
    assert versions.installed_versions()["edgecls"] != versions.loaded_versions()["edgecls"]


def test_a_point_is_not_computed_with_other_packages_or_of_another_model(tmp_path):
    def task(**changes):
        return Task(
            msgspec.structs.replace(POINT, **changes),
            lambda: small(0),
            None,
            None,
            tmp_path,
            None,
        )

    with pytest.raises(UnsupportedError, match="other packages than the sweep's"):
        task().run()
    with pytest.raises(InputError, match="another here than when the sweep began"):
        task(packages=versions.installed_versions()).run()
