"""A sweep gives the same files wherever it runs and whoever is killed on the way."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from edgecls import cli
from edgecls.export.sweep import Grid, sweep
from edgecls.runtime.cpu import cpu_isa
from edgecls.runtime.errors import InputError

NETWORK = '''\
"""A network whose workers are killed: of processes other than the sweep's own, one for the file `kill`."""

import os, signal
from pathlib import Path

import torch
from torch import nn


def make():
    here = Path(__file__).parent
    if (here / "kill").exists() and (here / "sweep.pid").read_text() != str(os.getpid()):
        (here / "kill").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
'''

ONNX = """
<ir_version: 10, opset_import: ["" : 20]>
net (float[batch, 3, 32, 32] images) => (float[batch, 3] logits) {
    conv = Conv <kernel_shape = [5, 5], strides = [4, 4]> (images, weight, bias)
    positive = Relu(conv)
    pooled = GlobalAveragePool(positive)
    flat = Flatten(pooled)
    logits = Gemm(flat, matrix, offset)
}
"""

PREPROCESS = """\
labels = "labels.txt"
resize = 36
crop = 32
mean = "0.5"
std = "0.5"
"""

CONFIG = f"""\
[sweep]
target = ["onnxruntime", "openvino"]
precision = ["fp32", "int8"]
data = "test"
calibration = "pictures"
jobs = 2

[sweep.models.killed]
model = "net.py:make"
{PREPROCESS}
[sweep.models.lines]
model = "lines.onnx"
{PREPROCESS}
[sweep.recipes.minmax]
ranges = "minmax"
calibration-size = 16
"""

COMMAND = [sys.executable, "-m", "edgecls", "sweep", "edgecls.toml", "--isa", str(cpu_isa())]

NAMES = [
    f"{model}-{point}"
    for model in ("killed", "lines")
    for point in ("onnxruntime-fp32", "onnxruntime-int8-minmax", "openvino-fp32", "openvino-int8-minmax")
]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with two models, pictures, and what is to be swept."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "net.py").write_text(NETWORK)
    (folder / "labels.txt").write_text("class 0\nclass 1\nclass 2\n")
    (folder / "edgecls.toml").write_text(CONFIG)
    (folder / "sweep.pid").write_text(str(os.getpid()))
    rng = np.random.default_rng(5)
    model = onnx.parser.parse_model(ONNX)
    for name, shape in {"weight": (6, 3, 5, 5), "bias": (6,), "matrix": (6, 3), "offset": (3,)}.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    onnx.save(model, folder / "lines.onnx")
    for data, count in {"pictures": 18, "test": 12}.items():
        for index in range(count):
            place = folder / data / f"class {index % 3}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (40, 44, 3), dtype=np.uint8)).save(place / f"{index}.png")
    return folder


def run(*arguments):
    return cli.main([*COMMAND[3:], *arguments])


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def local(project):
    """The sweep on local processes, one of which is killed, and what it printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        (project / "kill").touch()
        with subprocess.Popen(
            [*COMMAND, "-o", "local", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as sweep:
            (project / "sweep.pid").write_text(str(sweep.pid))
            out, err = sweep.communicate()
        assert sweep.returncode == 0, err
        assert not (project / "kill").exists()
    return json.loads(out)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_killed_process_loses_nothing(local, project):
    assert local["schema"] == "edgecls.sweep/1"
    assert [point["name"] for point in local["points"]] == NAMES
    assert [point["role"] for point in local["points"]] == ["reference", *["candidate"] * 3] * 2
    for point in local["points"]:
        assert point["failure"] is None
        accuracy = point["result"]["accuracy"]
        assert accuracy["n"] == 12
        assert accuracy["ci95_pp"][0] <= accuracy["drop_pp"] <= accuracy["ci95_pp"][1]
        assert (point["verdict"] is None) == (point["role"] == "reference")
        assert (project / "local" / point["bundle"]).is_file()
    assert len(contents(project / "local")) == 3 * len(NAMES)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore")  # Ray's own, about sockets that it leaves open and versions to come
def test_ray_gives_the_same_bytes(local, project, monkeypatch, capsys):
    pytest.importorskip("ray", reason="ray, of the extra 'sweep', is not installed")
    monkeypatch.chdir(project)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    (project / "sweep.pid").write_text(str(os.getpid()))
    (project / "kill").touch()
    assert run("--ray", "local", "-o", "ray") == 0
    assert not (project / "kill").exists()
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES)
    assert "no latency was timed" in printed
    assert contents(project / "ray") == contents(project / "local")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_killed_sweep_goes_on_where_it_stopped(local, project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    less = ["--target", "onnxruntime", "--jobs", "1", "-o", "resumed"]
    sweep = subprocess.Popen([*COMMAND, *less])
    (project / "sweep.pid").write_text(str(sweep.pid))
    resumed, deadline = project / "resumed", time.monotonic() + 3000
    while len(list(resumed.glob("*.json"))) < 3:
        assert sweep.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    sweep.send_signal(signal.SIGKILL)
    sweep.wait()
    done = {path: path.stat().st_mtime_ns for path in resumed.glob("*.json")}
    assert len(done) < 4
    (project / "sweep.pid").write_text(str(os.getpid()))
    (resumed / ".edgecls-left.part").touch()
    assert run(*less) == 0
    assert f"{len(done)} of 4 points are there already" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in done} == done
    whole = contents(project / "local")
    assert contents(resumed) == {name: whole[name] for name in whole if "onnxruntime" in name}
    assert run(*less) == 0
    assert "4 of 4 points are there already" in capsys.readouterr().err


def test_a_folder_that_is_there_needs_no_parent_that_can_be_written(project, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: os.path.basename(path) == "there")  # root may write anywhere
    nothing = Grid({}, ("onnxruntime",), ("fp32",))
    assert sweep(nothing, project / "test", output=tmp_path / "there").points == ()
    with pytest.raises(InputError, match="cannot be written"):
        sweep(nothing, project / "test", output=tmp_path / "new")
