"""Bad input, end to end: one clear message, the right exit code, nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest
from PIL import Image

from edgecls import cli
from edgecls.runtime.bundle_writer import write_bundle

NETWORK = """\
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
"""
EXPORT = ["export", "net.py:make", "--resize", "36", "--crop", "32", "--mean", "0.5", "--std", "0.5"]
FLOAT = [*EXPORT, "--target", "onnxruntime"]
INT8 = [*FLOAT, "--int8"]
MAIN = "import sys; from edgecls.cli import main; sys.exit(main(sys.argv[1:]))"


def draw(folder: Path, count: int, seed: int) -> Path:
    """Pictures in three class folders that are named as the classes of `bundle_path`."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        path = folder / f"class {index % 3}" / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 44, 3), dtype=np.uint8)).save(path)
    return folder


def spoil(folder: Path) -> list[str]:
    """Puts an empty, a truncated and a foreign file and a dead link among the pictures; returns their paths."""
    whole = (folder / "class 0" / "00.png").read_bytes()
    (folder / "class 0" / "empty.png").touch()
    (folder / "class 1" / "half.png").write_bytes(whole[: len(whole) // 2])
    (folder / "class 2" / "text.jpg").write_text("no picture")
    (folder / "class 2" / "gone.png").symlink_to("nowhere")
    return ["class 0/empty.png", "class 1/half.png", "class 2/text.jpg", "class 2/gone.png"]


@pytest.fixture
def project(tmp_path, monkeypatch, bundle_path) -> Path:
    """A working folder with a network, labels, pictures and the bundle `small.edgecls`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "two.txt").write_text("a\nb\n")
    (tmp_path / "three.txt").write_text("class 0\nclass 1\nclass 2\n")
    draw(tmp_path / "pictures", 24, 1)
    draw(tmp_path / "few", 15, 2)
    draw(tmp_path / "test", 12, 3)
    return tmp_path


@pytest.fixture
def refused(project, capfd):
    """Runs a command that must fail with an exit code and a message that says certain things."""

    def run(arguments, exit_code: int, *said: str) -> None:
        before = contents(project)
        assert cli.main(arguments) == exit_code
        printed = capfd.readouterr()
        assert printed.err.count("error: ") == 1
        message = printed.err.partition("error: ")[2]
        assert all(words in message for words in said), message
        assert "Traceback" not in printed.err
        assert printed.out == ""
        assert contents(project) == before

    return run


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (["export", "--target", "onnxruntime"], 2, ["no MODEL", "edgecls.toml"]),
        (["export", "net.py:mke", *FLOAT[2:]], 2, ["mke", "make"]),
        (["export", "none.py:make", *FLOAT[2:]], 2, ["none.py"]),
        ([*FLOAT, "--labels", "two.txt"], 2, ["2 names", "3 classes"]),
        ([*FLOAT, "--checkpoint", "two.txt"], 2, ["two.txt", "no checkpoint"]),
        (["export", "net.py:make", "--target", "onnxruntime"], 2, ["--resize", "--mean"]),
        ([*FLOAT, "--fp16"], 5, ["fp16", "openvino"]),
        (INT8, 2, ["--calibration DIR", "16"]),
        ([*INT8, "--calibration", "few"], 2, ["15 pictures", "at least 16"]),
        ([*INT8, "--calibration", "none"], 2, ["none", "does not exist"]),
        ([*INT8, "--calibration", "pictures", "--calibration-size", "8"], 2, ["8", "16"]),
        ([*INT8, "--plan", "two.txt"], 2, ["two.txt", "--calibration"]),
        ([*FLOAT, "-o", "none/net.edgecls"], 2, ["none", "does not exist"]),
        ([*FLOAT, "-o", "pictures"], 2, ["pictures", "folder"]),
        ([*FLOAT, "-o", "new\nline.edgecls"], 2, ["cannot be printed"]),
    ],
)
def test_an_export_that_cannot_be(arguments, exit_code, said, refused):
    refused([*arguments, "--quiet"], exit_code, *said)


def test_close_names_of_models_are_suggested(refused):
    refused(["export", "resnet1", "--target", "onnxruntime"], 2, "'resnet1'", "resnet18")


def test_export_lists_every_unreadable_picture_before_it_calibrates(refused, project):
    *broken, gone = spoil(project / "pictures")
    refused([*INT8, "--calibration", "pictures", "--quiet"], 2, gone)
    (project / "pictures" / gone).unlink()
    refused([*INT8, "--calibration", "pictures", "--quiet"], 2, "3 of 27", "nothing was calibrated", *broken)


def test_bench_lists_every_unreadable_picture_and_the_report_is_not_valid(project, capfd):
    broken = spoil(project / "test")
    assert cli.main(["bench", "small.edgecls", "--data", "test", "--no-latency", "--limit", "99", "--quiet"]) == 4
    printed = capfd.readouterr().out
    report = json.loads(Path("report.json").read_text())
    assert report["valid"] is False
    assert (report["dataset"]["n"], report["dataset"]["n_unreadable"]) == (16, 4)
    assert report["runs"][0]["accuracy"]["n"] == 12
    assert "NOT VALID" in printed
    for path in broken:
        assert any(path in reason for reason in report["reasons"])
        assert path in printed
    assert cli.main(["gate", "report.json", "--max-drop", "1pp"]) == 4
    assert "INVALID" in capfd.readouterr().out


def test_calibration_and_evaluation_must_not_overlap(refused, project, capfd):
    labelled = [*INT8, "--labels", "three.txt", "--calibration", "pictures"]
    assert cli.main([*labelled, "-o", "int8.edgecls", "--quiet"]) == 0
    capfd.readouterr()
    shared = project / "test" / "class 1" / "again.png"
    shared.write_bytes((project / "pictures" / "class 2" / "02.png").read_bytes())
    refused(
        ["bench", "int8.edgecls", "--data", "test", "--quiet"], 2, "1 of the 13", "class 1/again.png", "calibrated int8"
    )


def test_every_folder_must_be_a_class(refused, project):
    (project / "test" / "class 1").rename(project / "test" / "one")
    refused(["bench", "small.edgecls", "--data", "test", "--quiet"], 2, "1 of 3 folders", "'one'")


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect"],
        ["verify"],
        ["classify", "test/class 0/00.png"],
        ["bench", "--data", "test", "--no-latency", "--quiet"],
    ],
)
def test_a_bundle_that_was_cut_or_changed(arguments, refused, project):
    whole = (project / "small.edgecls").read_bytes()
    place = whole.index(b"model.onnx", whole.index(b"PK\3\4", 4)) + 500
    for name, data in {
        "cut.edgecls": whole[: len(whole) // 2],
        "none.edgecls": b"",
        "changed.edgecls": whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :],
    }.items():
        (project / name).write_bytes(data)
        verb, *rest = arguments
        refused([verb, name, *rest], 6, name, "Get it again")


def test_a_bundle_for_an_engine_that_is_not_installed_names_the_extra(refused, bundle_parts, project, monkeypatch):
    manifest, files = bundle_parts
    write_bundle(project / "other.edgecls", msgspec.structs.replace(manifest, target="openvino"), files)
    write_bundle(project / "later.edgecls", msgspec.structs.replace(manifest, target="abacus"), files)
    monkeypatch.setitem(sys.modules, "openvino", None)
    for verb in (["verify"], ["classify", "test/class 0/00.png"], ["bench", "--data", "test", "--quiet"]):
        refused([verb[0], "other.edgecls", *verb[1:]], 5, "pip install 'edgecls[openvino]'")
        refused([verb[0], "later.edgecls", *verb[1:]], 6, "'abacus'", "openvino")


def test_a_picture_that_cannot_be_read_does_not_hide_the_others(project, capfd):
    assert cli.main(["classify", "small.edgecls", "test", "none.png", "two.txt", "test/class 0/00.png", "--json"]) == 2
    printed = capfd.readouterr()
    results = json.loads(printed.out)["results"]
    assert ["error" in result for result in results] == [True, True, True, False]
    assert "'test' is a folder" in printed.err
    assert printed.err.count("error: ") == 3


def test_no_half_bundle_where_the_disk_is_full(project):
    (project / "net.edgecls").write_bytes(b"an older one")
    before = contents(project)
    # In a process of its own: the log that this one writes may already be longer than what is allowed here.
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)); {MAIN}"
    command = [sys.executable, "-c", limited, *FLOAT, "-o", "net.edgecls", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert all(words in done.stderr for words in ("cannot write", "net.edgecls", "room"))
    assert contents(project) == before


@pytest.mark.parametrize("arguments", [FLOAT, ["bench", "small.edgecls", "--data", "test"]])
def test_a_folder_that_cannot_be_written_is_told_before_the_work(arguments, refused, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: mode == os.R_OK)  # root may write anywhere
    refused(arguments, 2, "cannot be written", "-o")


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["bench", "small.edgecls", "--data", "test", "-o"], "small.edgecls"),
        (["bench", "small.edgecls", "--data", "test", "--reference", "two.txt", "-o"], "two.txt"),
        (["bench", "small.edgecls", "--data", "test", "--host", "pi@board", "-o"], "small.edgecls"),
        (["inspect", "small.edgecls", "--sensitivity", "--picture"], "small.edgecls"),
        ([*FLOAT, "-o"], "net.py"),
        ([*FLOAT, "--labels", "three.txt", "-o"], "three.txt"),
        ([*FLOAT, "--checkpoint", "two.txt", "-o"], "two.txt"),
        ([*INT8, "--plan", "two.txt", "-o"], "two.txt"),
        (["evaluate", *EXPORT[1:], "--data", "test", "--confusion"], "net.py"),
        (["train", "--data", "test", "--arch", "resnet18", "--checkpoint", "two.txt", "-o"], "two.txt"),
        (["train", "--data", "test", "--arch", "net.py:make", "--preview"], "net.py"),
    ],
)
def test_no_output_replaces_what_it_is_made_from(arguments, output, refused):
    refused([*arguments, output], 2, f"{output} is read by this command", "choose another name")


def test_a_full_disk_behind_standard_output(project):
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-c", MAIN, "inspect", "small.edgecls", "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "error: the system refuses: No space left on device. Make room or give permission, and run it again.\n"
    )


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_an_ended_bench_leaves_no_process_and_no_half_file(ending, project):
    (project / "report.json").write_text("an older one")
    temporary = project / "temporary"
    temporary.mkdir()
    # Whoever runs the tests in the background may have told their children to ignore these.
    listening = "import signal; [signal.signal(s, signal.SIG_DFL) for s in (signal.SIGHUP, signal.SIGTERM)]; "
    listening += "signal.signal(signal.SIGINT, signal.default_int_handler); "
    command = [sys.executable, "-c", listening + MAIN, "bench", "small.edgecls", "--data", "test", "--quiet"]
    bench = subprocess.Popen(
        command, env={**os.environ, "TMPDIR": str(temporary)}, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not (workers := psutil.Process(bench.pid).children()):
        assert bench.poll() is None, bench.stderr.read()
        time.sleep(0.02)
    os.killpg(bench.pid, ending)
    _, error = bench.communicate(timeout=60)
    psutil.wait_procs(workers, timeout=60)
    assert not any(worker.is_running() for worker in workers)
    assert (project / "report.json").read_text() == "an older one"
    assert not list(project.glob(".edgecls-*"))
    assert not list(project.glob("*.npz"))
    if ending != signal.SIGKILL:
        assert bench.returncode == 130
        assert error.strip() == "error: interrupted"
        assert list(temporary.iterdir()) == []
