"""A CPU without VNNI adds pairs of products in 16 bits: 7-bit weights keep their answers there, 8-bit ones need not.

QEMU's Haswell has AVX2 and no VNNI; the engines run in it as they are and choose their kernels by CPUID.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from debian import UnavailableError
from networks import SmallNet, classifier, plan_of, settle
from qemu import emulator
from torch import nn

from edgecls.export.job import export_bundle
from edgecls.export.trace import probe_pictures, run_onnx, trace
from edgecls.runtime.cpu import cpu_isa

GUEST = Path(__file__).parents[1] / "guest.py"
ISAS = ("x86", "x86-vnni")
TARGETS = ("onnxruntime", "openvino")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


class Extreme(nn.Module):
    """Bright pictures, and weights of which each is the largest of its channel: every pair of products is extreme."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.body = nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16, 7)
        with torch.no_grad():
            for index, conv in enumerate((self.stem, self.body)):
                sign = torch.where(torch.arange(16) % 4 < 3, 1.0, -1.0).reshape(16, 1, 1, 1)
                conv.weight.copy_(torch.full_like(conv.weight, 0.01 + 0.01 * index) * sign)
                conv.bias.fill_(0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.body(torch.relu(self.stem(x))))
        return self.fc(x.mean((2, 3)))


def crops(bright: bool) -> np.ndarray:
    pictures = probe_pictures(32, 8)
    return np.maximum(pictures, 160) if bright else pictures


NETWORKS = {
    "small": (lambda: settle(SmallNet()), False),
    "extreme": (lambda: Extreme().eval().requires_grad_(False), True),
}


@pytest.fixture(scope="module")
def qemu() -> Path:
    if cpu_isa() != "x86-vnni":
        pytest.skip("THE PROOF FOR CPUS WITHOUT VNNI DID NOT RUN: this one has none to compare with")
    try:
        return emulator("x86_64")
    except UnavailableError as error:
        pytest.skip(f"THE PROOF FOR CPUS WITHOUT VNNI DID NOT RUN, for there is no QEMU: {error}")


@pytest.fixture(scope="module")
def logits(qemu, tmp_path_factory):
    """By place (`float`, `here`, `haswell`), then by `network-target-isa`: the logits of the same pictures."""
    folder = tmp_path_factory.mktemp("haswell")
    found = {"float": {}, "here": {}, "haswell": {}}
    for name, (build, bright) in NETWORKS.items():
        torch.manual_seed(0)
        opened = classifier(build())
        traced = trace(opened)
        plan = folder / f"{name}.json"
        plan.write_bytes(plan_of(traced.graph, np.maximum(probe_pictures(32, 32), 160 * bright)).to_json())
        np.save(folder / f"{name}.npy", crops(bright))
        bundles = []
        for target in TARGETS:
            for isa in ISAS:
                path = folder / f"{name}-{target}-{isa}.edgecls"
                export_bundle(opened, target=target, precision="int8", output=path, traced=traced, plan=plan, isa=isa)
                bundles.append(path)
        for place, command in (("here", []), ("haswell", [str(qemu), "-cpu", "Haswell-noTSX"])):
            output = folder / f"{name}-{place}.npz"
            command = [
                *command,
                sys.executable,
                str(GUEST),
                str(folder / f"{name}.npy"),
                str(output),
                *map(str, bundles),
            ]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1500)
            assert done.returncode == 0, done.stderr
            found[place].update(np.load(output))
        found["float"][name] = run_onnx(traced.graph.proto, crops(bright))
    return found


def off(logits, place, name, target, isa):
    """The largest difference from the float network, as a share of its largest logit."""
    expected = logits["float"][name]
    return np.abs(logits[place][f"{name}-{target}-{isa}"] - expected).max() / np.abs(expected).max()


def test_the_emulated_cpu_has_avx2_and_no_vnni(logits):
    features = set(logits["haswell"]["features"])
    assert "AVX2" in features
    assert not {feature for feature in features if "VNNI" in feature or "AVX512" in feature}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("target", TARGETS)
def test_seven_bits_give_the_same_answers_without_vnni(logits, name, target):
    key = f"{name}-{target}-x86"
    here, there = logits["here"][key], logits["haswell"][key]
    scale = np.abs(here).max()
    # They were equal bit for bit when this was written; another host's float kernels may round otherwise.
    assert np.abs(here - there).max() <= 0.01 * scale
    np.testing.assert_array_equal(here.argmax(1), there.argmax(1))
    assert off(logits, "haswell", name, target, "x86") < 0.15


@pytest.mark.parametrize("target", TARGETS)
def test_eight_bits_saturate_without_vnni_where_everything_is_extreme(logits, target):
    assert off(logits, "haswell", "extreme", target, "x86-vnni") > 0.2
