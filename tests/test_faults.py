"""Whatever happens while a file is written, afterwards it is the old one or the new one.

At chosen points: `faults.py` and the operations `faulty_*.py`. At any time: real commands that are killed.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import faulty_bench
import faulty_cache
import numpy as np
import psutil
import pytest
from faults import Outcome, left_over, meet
from PIL import Image
from tensorrt_stand_in import graph_bytes, write_unbuilt_bundle

from edgecls.bench.measured import open_measured
from edgecls.runtime import Bundle, InputError, load
from edgecls.runtime.bundle import ReplacedError
from edgecls.runtime.engine_cache import CacheFolder
from edgecls.runtime.verify import verify_bundle

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, signals and limits of POSIX")

FAULTS = ["kill", "full", "interrupt"]


def met(operation: str, fault: str, folder: Path, points: int | None = None) -> list[Outcome]:
    """The outcomes of all points, after what holds for every operation was checked."""
    outcomes = meet(operation, fault, folder, points=points)
    assert len(outcomes) > 2
    whole, *faulty = outcomes
    assert whole.end == "done", whole.text
    expected = {"kill": {"killed"}, "full": {"refused", "done"}, "interrupt": {"interrupted"}}[fault]
    for outcome in faulty:
        assert outcome.end in expected, outcome
        if outcome.end == "refused":
            assert "No space left on device. Choose a folder that exists, is writable and has room." in outcome.text
        if fault != "kill":
            assert left_over(outcome.folder) == []
    return outcomes


@pytest.mark.parametrize("fault", FAULTS)
def test_the_cache(fault, tmp_path):
    seen = [CacheFolder(outcome.folder / "cache").read("a.engine") for outcome in met("faulty_cache", fault, tmp_path)]
    assert seen[0] == faulty_cache.NEW
    assert seen[1] == faulty_cache.OLD
    assert set(seen) == {faulty_cache.OLD, faulty_cache.NEW}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_build(fault, tmp_path):
    seen = []
    for outcome in met("faulty_build", fault, tmp_path):
        bundle = Bundle(outcome.folder / "built.edgecls")
        parts = {name: bundle.read(name) for name in bundle.manifest.members}
        seen.append(not bundle.manifest.unbuilt)
        assert ("model.engine" in parts) == seen[-1]
        cache = CacheFolder(outcome.folder / "cache")
        for file in (*cache.path.glob("*.engine"), *cache.path.glob("*.timings")):
            assert cache.read(file.name) is not None
        if outcome.end == "done":
            assert seen[-1]
    assert seen[0]
    assert not seen[1]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("points", [12, pytest.param(None, marks=pytest.mark.slow)])
def test_a_measurement(fault, points, tmp_path):
    whole = alone = 0
    for outcome in met("faulty_bench", fault, tmp_path, points):
        (measured,) = open_measured([outcome.folder / "report.json"])
        speed = float(measured.report.reasons[0].removeprefix("speed "))
        assert speed in (faulty_bench.OLD, faulty_bench.NEW)
        if measured.samples_ms is not None:
            assert measured.samples_ms[0][0][0] == speed
        if measured.answered is not None:
            assert np.count_nonzero(~measured.answered.right[0]) == 3 * int(5 * speed)
        both = measured.samples_ms is not None and measured.answered is not None
        whole += both
        if outcome.end == "done":
            assert both
            assert speed == faulty_bench.NEW
        if outcome.end == "refused" and both:
            assert speed == faulty_bench.OLD
        alone += not both
    # A report stands alone only between the first file that goes and the last that comes: 11 calls, 2 points each.
    assert alone <= 22
    assert whole > 3


@pytest.mark.parametrize(
    ("fault", "points"), [("kill", 2), *(pytest.param(f, None, marks=pytest.mark.slow) for f in FAULTS)]
)
def test_an_export(fault, points, tmp_path):
    import faulty_export  # torch, which no other test here needs

    for outcome in met("faulty_export", fault, tmp_path, points):
        path = outcome.folder / "net.edgecls"
        if path.read_bytes() != faulty_export.OLD:
            with load(path, threads=1) as session:
                assert verify_bundle(session).passed


NET = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    return nn.Sequential(*layers)
"""


def killed_at(command: list[str], folder: Path, seconds: float) -> bool:
    """Starts a command, kills it after so many seconds and waits for its children; whether it had ended before."""
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            children = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGKILL)
            process.wait()
            _, alive = psutil.wait_procs(children, timeout=60)
            assert not alive, "a worker outlived its parent"
            return False
        assert process.stderr is not None
        assert process.returncode in (0, 4), process.stderr.read().decode()
        return True


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_commands_that_are_killed_at_any_time(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    for index in range(12):
        folder = tmp_path / "pictures" / "abc"[index % 3]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    edgecls = [sys.executable, "-m", "edgecls"]
    options = ["--labels", "labels.txt", "--resize", "32", "--crop", "32", "--mean", "0.5,0.5,0.5"]
    options += ["--std", "0.5,0.5,0.5", "--quiet"]
    export = [*edgecls, "export", "net.py:make", "--target", "onnxruntime", "-o", "net.edgecls", *options]
    bench = [*edgecls, "bench", "net.edgecls", "--data", "pictures", "--limit", "6", "-o", "report.json", "--quiet"]
    rng = random.Random(0)
    for command, runs in ((export, 12), (bench, 8)):
        began = time.monotonic()
        assert killed_at(command, tmp_path, 900)
        usual = time.monotonic() - began
        for _ in range(runs):
            killed_at(command, tmp_path, usual * rng.uniform(0.05, 1.05))
            with load(tmp_path / "net.edgecls", threads=1) as session:
                assert verify_bundle(session).passed
            if command is bench:
                open_measured([tmp_path / "report.json"])


WITHOUT_PRIVILEGE = """
import ctypes, sys
ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)  # root gives up CAP_DAC_OVERRIDE; it counts from the next exec on
import os
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""

READ_ONLY = """
import sys
from pathlib import Path
from edgecls.runtime import InputError
from edgecls.runtime.engine_cache import CacheFolder
from edgecls.runtime.progress import SilentProgress
cache = CacheFolder(Path(sys.argv[1]))
assert cache.read("a.engine") == b"plan"
for work in (lambda: cache.write("a.engine", b"new"), lambda: cache.lock("b", SilentProgress()).__enter__()):
    try:
        work()
    except InputError as error:
        print(error)
"""


def test_a_read_only_cache_is_read_and_not_written(tmp_path):
    cache = CacheFolder(tmp_path / "cache")
    cache.write("a.engine", b"plan")
    cache.path.chmod(0o500)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PRIVILEGE, "-c", READ_ONLY, str(cache.path)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Permission denied") == 2
    assert "EDGECLS_CACHE" in done.stdout
    assert cache.read("a.engine") == b"plan"


def test_files_that_a_killed_process_left_in_the_cache_are_removed_after_a_day(tmp_path):
    old, fresh = tmp_path / ".edgecls-0123.part", tmp_path / ".edgecls-4567.part"
    for part in (old, fresh, tmp_path / "a.engine"):
        part.write_bytes(b"half")
        os.utime(part, (1, 1))
    os.utime(fresh)
    CacheFolder(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [fresh.name, "a.engine"]


WRITES = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tensorrt_stand_in import graph_bytes, write_unbuilt_bundle
path, letter = Path(sys.argv[2]), sys.argv[3]
print("ready", flush=True)
sys.stdin.readline()
for size in range(1, 25):
    write_unbuilt_bundle(path, graph=graph_bytes(ballast=letter * 1000 * size))
"""


def test_processes_that_write_one_bundle_at_once(tmp_path):
    path = tmp_path / "net.edgecls"
    write_unbuilt_bundle(path, graph=graph_bytes(ballast="a"))
    command = [sys.executable, "-c", WRITES, str(Path(__file__).parent), str(path)]
    writers = [
        subprocess.Popen([*command, letter], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for letter in "ab"
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    opened = 0
    while any(writer.poll() is None for writer in writers):
        bundle = Bundle(path)  # whole, whenever it is opened
        opened += 1
        with contextlib.suppress(ReplacedError):
            assert len(set(bundle.read("model.onnx").split(b'"')[-2])) == 1
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    assert opened
    assert left_over(tmp_path) == []
    Bundle(path).read("model.onnx")


def test_a_bundle_that_is_replaced_while_it_is_open_says_so(tmp_path):
    path = tmp_path / "net.edgecls"
    write_unbuilt_bundle(path)
    bundle = Bundle(path)
    bundle.read("model.onnx")
    write_unbuilt_bundle(path, graph=graph_bytes(ballast="b"))
    with pytest.raises(ReplacedError, match=r"net\.edgecls was replaced since it was opened"):
        bundle.read("model.onnx")
    path.unlink()
    with pytest.raises(InputError, match="cannot read the bundle"):
        bundle.read("model.onnx")
