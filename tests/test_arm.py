"""The boards' CPUs, emulated: the runtime's tests, the same pixels and the same INT8 answers as here on x86.

`make test-arm` runs it; docs/arm.md says what it proves and what it does not. QEMU is slow: nothing here is timed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cross_compiler import cross_environment
from debian import UnavailableError
from debian_python import LEFT_OUT, debian_python, fast_wheel, run, run_runtime_tests, site_of
from networks import classifier, plan_of
from torch import nn

from edgecls.export.job import export_bundle
from edgecls.export.trace import probe_pictures, trace

TESTS = Path(__file__).parent

CPUS = ("cortex-a72", "cortex-a76")
"""Of a Raspberry Pi 4 and of a 5."""

ISAS = ("x86-vnni", "x86", "arm64")

LEFT_OUT_IN_QEMU: dict[str, str] = {}
"""Tests that QEMU cannot run, and why, over and above those that need what no device has."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def python() -> Path:
    try:
        return debian_python("arm64")
    except UnavailableError as error:
        pytest.skip(f"THE PROOF FOR ARM DID NOT RUN: {error}")


@pytest.fixture(scope="module")
def site(python, wheel, tmp_path_factory) -> Path:
    """edgecls from its wheel, and the kernel cross-built."""
    try:
        environment = cross_environment()
    except UnavailableError as error:
        pytest.skip(f"THE PROOF FOR ARM DID NOT RUN, for there is no cross compiler: {error}")
    kernel = fast_wheel(tmp_path_factory.mktemp("fast"), environment)
    assert kernel.name.endswith("-py3-none-linux_aarch64.whl")
    return site_of(tmp_path_factory.mktemp("site"), [wheel, kernel])


@pytest.fixture(params=CPUS)
def cpu(request) -> str:
    return request.param


@pytest.fixture
def on(python, site, tmp_path) -> Run:
    """Runs Python on a board with that CPU."""

    def on_board(cpu: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = run(python, site, *arguments, folder=tmp_path, environment={"QEMU_CPU": cpu})
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    return on_board


def chain() -> nn.Module:
    """Convolutions without anything added to or multiplied with their results: INT8 is sums of integers throughout."""
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU6()]
    convolutions += [nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU6(), nn.Conv2d(16, 24, 1), nn.ReLU()]
    layers = [*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 7)]
    return nn.Sequential(*layers).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def bundles(small, tmp_path_factory) -> dict[str, Path]:
    """Exported here: the chain, and a network with residuals and squeeze-and-excitation; `fp32` is of the latter."""
    folder = tmp_path_factory.mktemp("bundles")
    opened = classifier(chain())
    graph = trace(opened).graph
    networks = {"chain": (opened, plan_of(graph, probe_pictures(32, 32))), "small": (small[0], small[2])}
    paths = {"fp32": folder / "fp32.edgecls"}
    export_bundle(small[0], target="onnxruntime", precision="fp32", output=paths["fp32"])
    for name, (network, plan) in networks.items():
        (folder / "plan.json").write_bytes(plan.to_json())
        for isa in ISAS:
            path = paths[f"{name}-{isa}"] = folder / f"{name}-{isa}.edgecls"
            given = {"isa": isa, "plan": folder / "plan.json"}
            export_bundle(network, target="onnxruntime", precision="int8", output=path, **given)
    return paths


@pytest.fixture
def logits(on, bundles, tmp_path) -> Callable[[str | None], dict[str, np.ndarray]]:
    """What a CPU, or this one, answers to 16 pictures: by bundle; and `features`, what it says that it has."""
    np.save(tmp_path / "crops.npy", probe_pictures(32, 16))

    def ask(cpu: str | None) -> dict[str, np.ndarray]:
        output = tmp_path / f"{cpu}.npz"
        arguments = [str(TESTS / "guest.py"), str(tmp_path / "crops.npy"), str(output), *map(str, bundles.values())]
        if cpu is None:
            subprocess.run([sys.executable, *arguments], cwd=tmp_path, check=True, timeout=600)
        else:
            on(cpu, *arguments)
        return dict(np.load(output))

    return ask


def test_pixels_are_those_of_x86(on, cpu):
    check_pixels(on, cpu, 300)


def test_pixels_of_ten_thousand_pictures_are_those_of_x86(on):
    check_pixels(on, "cortex-a72", 10_000)  # 0.2 s each in QEMU


def check_pixels(on: Run, cpu: str, count: int) -> None:
    there = json.loads(on(cpu, str(TESTS / "pixel_digests.py"), str(count)).stdout)
    here = subprocess.run(
        [sys.executable, str(TESTS / "pixel_digests.py"), str(count)],
        capture_output=True, text=True, check=True, timeout=3600,
    )  # fmt: skip
    assert there["machine"] == "aarch64"
    assert there["libraries"]["resize"].startswith("edgecls-fast")
    assert there["libraries"]["jpeg"].startswith("simplejpeg")
    assert there["sha256"] == json.loads(here.stdout)["sha256"]


def test_logits_are_those_of_x86(logits, cpu):
    here, there = logits(None), logits(cpu)
    features = set(there.pop("features"))
    assert "ASIMD" in features
    assert ("ASIMDDP" in features) == (cpu == "cortex-a76")  # dot products: other kernels of ONNX Runtime
    # A sum of two tensors that lies between two codes is now and then rounded to the other one than on x86.
    shares = {name: np.abs(answers - here[name]).max() / np.abs(here[name]).max() for name, answers in there.items()}
    print(cpu, {name: f"{share:.1e}" for name, share in shares.items()})
    assert shares.pop("fp32") < 1e-5
    assert not any(share for name, share in shares.items() if name.startswith("chain-"))
    assert max(shares.values()) < 0.05
    for name, answers in there.items():
        np.testing.assert_array_equal(answers.argmax(1), here[name].argmax(1), err_msg=name)


@pytest.mark.parametrize("bundle", ["small-x86-vnni", "small-arm64"])
def test_golden_samples_pass(on, bundles, cpu, bundle):
    result = json.loads(on(cpu, "-m", "edgecls", "verify", str(bundles[bundle]), "--json").stdout)
    assert result["passed"]
    assert len(result["samples"]) > 1
    assert all(sample["pixels_match"] and sample["same_top1"] for sample in result["samples"])


def test_tests_of_the_runtime_pass(python, site, bundles, tmp_path, capfd):
    summary = run_runtime_tests(
        python,
        site,
        bundles["fp32"],
        folder=tmp_path,
        left_out=LEFT_OUT_IN_QEMU,
        environment={"QEMU_CPU": "cortex-a72"},
    )
    with capfd.disabled():
        print(f"\ntests/runtime on {python}: {summary.splitlines()[-1]}")
        for name, reason in {**LEFT_OUT, **LEFT_OUT_IN_QEMU}.items():
            print(f"LEFT OUT {name}: {reason}")
