"""The script for machines with a GPU, on a stand-in of one: its report must be right the first time it runs there."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from cuda_stand_in import Gpu, install_cuda
from tensorrt_stand_in import install, write_unbuilt_bundle


@pytest.fixture
def gpu_check(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGECLS_CACHE", str(tmp_path / "cache"))
    path = Path(__file__).parents[1] / "perf" / "gpu_check.py"
    spec = importlib.util.spec_from_file_location("gpu_check", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(gpu_check, tmp_path, *arguments):
    output = tmp_path / "report.json"
    code = gpu_check.main([*map(str, arguments), "-o", str(output), "--runs", "3"])
    return code, json.loads(output.read_text())


@pytest.mark.parametrize("with_pictures", [False, True])
def test_what_ran_stands_in_the_report(with_pictures, gpu_check, tmp_path, monkeypatch, pictures):
    install(monkeypatch, "10.3", Gpu())
    bundle = write_unbuilt_bundle(tmp_path / "net.edgecls")
    data = ["--data", pictures] if with_pictures else []
    code, report = run(gpu_check, tmp_path, bundle, "--reference", bundle, *data)
    (entry,) = report["bundles"]
    assert (code, report["ran"], entry["passed"], entry["reason"]) == (0, True, True, None)
    assert report["gpu"]["name"] == "Orin"
    assert report["memory"]["cuda-python"] == "passed"
    assert report["memory"]["pycuda"].startswith("did not run: ")
    assert entry["golden"]["max_abs_difference"] == 0
    assert entry["reference"]["same_top1"] == 1
    assert entry["cuda_graph"] is True
    for batch in ("batch 1", "batch 32"):
        assert entry["latency"][batch]["events_p50_ms"] == 1.25
        assert entry["latency"][batch]["wall_p50_ms"] > 0
        assert entry["latency"][batch]["wall_p99_ms"] is None  # three runs have no 99th percentile


def test_what_did_not_run_stands_there_with_the_reason(gpu_check, tmp_path, monkeypatch):
    install(monkeypatch, "8.6", Gpu())
    code, report = run(gpu_check, tmp_path, write_unbuilt_bundle(tmp_path / "net.edgecls"))
    assert code == 1
    assert "needs TensorRT 10.0 or newer" in report["bundles"][0]["reason"]


def test_without_a_gpu_it_says_so(gpu_check, tmp_path, monkeypatch, capsys):
    install_cuda(monkeypatch, cuda_python=None)
    code, report = run(gpu_check, tmp_path, write_unbuilt_bundle(tmp_path / "net.edgecls"))
    assert (code, report["ran"]) == (5, False)
    assert "finds no GPU" in report["reason"]
    assert "nothing ran" in capsys.readouterr().err
