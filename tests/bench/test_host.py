"""Boards are this machine behind a real sshd on loopback; connections are cut where it hurts."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import shutil
import socket
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from bundles import write_bundle
from debian import UnavailableError
from sshd import Board, board_bin

from edgecls.bench import host as host_module
from edgecls.bench.board_wheel import PACKAGES, board_wheel
from edgecls.bench.connection import GoneError
from edgecls.bench.host import measure_on_host, measure_on_hosts
from edgecls.bench.measure import measure
from edgecls.bench.report import predictions_path, read_report, samples_path
from edgecls.runtime.errors import InputError, UnsupportedError

GRAPH = """
<ir_version: 10, opset_import: ["" : 20]>
net (uint8[n, 16, 16, 3] image) => (float[n, 3] logits)
<int64[2] axes = {1, 2}>
{
    values = Cast <to = 1> (image)
    logits = ReduceMean <keepdims = 0> (values, axes)
}
"""
HEAVY_BYTES = 24_000_000
"""Much more than what pipes and sockets hold."""


@pytest.fixture(scope="module")
def packages(device_python: Path) -> Path:
    """What a device's Python has, without edgecls."""
    folder = Path(tempfile.mkdtemp(prefix="board-packages-"))
    for entry in next(device_python.parents[1].glob("lib/python*/site-packages")).iterdir():
        if not entry.name.startswith("edgecls"):
            (folder / entry.name).symlink_to(entry.resolve())
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def make_board(tmp_path: Path, packages: Path) -> Iterator[Callable[..., Board]]:
    """Starts boards that have `packages` and no package index; the environment of their sessions may be changed."""
    with contextlib.ExitStack() as stack:

        def make(**environment: str) -> Board:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="board-")))
            path = f"{board_bin(folder / 'bin')}:/usr/bin:/bin"
            settings = {"PATH": path, "PYTHONPATH": str(packages), "PIP_NO_INDEX": "1", "OMP_NUM_THREADS": "1"}
            try:
                board = Board(folder, {**settings, **environment})
            except UnavailableError as error:
                pytest.skip(f"no sshd: {error}")
            stack.callback(board.stop)
            return board

        yield make


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The class is the brightest channel."""
    parser = pytest.importorskip("onnx.parser")
    return write_bundle(tmp_path / "net.edgecls", parser.parse_model(GRAPH).SerializeToString(), 16)


@pytest.fixture
def heavy_folder(picture_folder: Path) -> Path:
    """The pictures, one of them a large file."""
    with open(picture_folder / "ant" / "0.png", "ab") as file:
        file.write(np.random.default_rng(0).bytes(HEAVY_BYTES))
    return picture_folder


class Listener:
    """Notes what is said, and calls functions at certain words and at certain steps of the transfer."""

    def __init__(self, **at: Callable[[], object]) -> None:
        self.said: list[str] = []
        self._at = at

    @contextlib.contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        done = 0

        def advance(steps: int) -> None:
            nonlocal done
            done += steps
            if title.startswith("Sending") and done >= 10:
                self._do("transfer")

        yield advance

    def note(self, message: str) -> None:
        self.said.append(message)
        for word in ("venv", "bench"):
            if f"Step {word} ..." in message:
                self._do(word)

    def _do(self, word: str) -> None:
        if action := self._at.pop(word, None):
            action()

    def heard(self, words: str) -> int:
        return sum(words in line for line in self.said)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all blocks that were given to ssh."""
    sizes = []
    payload = host_module._payload

    def counted(*arguments):
        for block in payload(*arguments):
            sizes.append(len(block))
            yield block

    monkeypatch.setattr(host_module, "_payload", counted)
    return sizes


def ended(board: Board) -> bool:
    """Whether nothing runs from the board's home any more; what was killed takes a moment."""
    for _ in range(100):
        if not board.processes():
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_report_comes_back_over_a_connection_that_is_cut_twice(make_board, bundle, heavy_folder, tmp_path, sent):
    board = make_board()
    cuts = []

    def cut_transfer():
        """Cuts when some of what was sent has arrived."""
        while not any(part.stat().st_size > 8_000_000 for part in board.home.rglob("*.part")):
            time.sleep(0.1)
        cuts.append(board.cut())

    listener = Listener(transfer=cut_transfer, bench=lambda: cuts.append(board.cut()))
    output = tmp_path / "board.json"
    report = measure_on_host(
        board.host,
        [bundle],
        heavy_folder,
        output=output,
        ssh_config=board.ssh_config,
        progress=listener,
        latency=True,
        accuracy=True,
        threads=1,
        profile="quick",
    )
    assert cuts == [1, 1]
    assert listener.heard("connection is lost") == 2, listener.said
    assert HEAVY_BYTES < sum(sent) < HEAVY_BYTES + 9_000_000  # 11 MB had been sent, and 8 MB at least had arrived
    assert listener.heard("Step bench") == 1
    assert board.left() == []
    assert ended(board)

    assert read_report(output) == report
    here = measure([bundle], heavy_folder, output=tmp_path / "here.json", latency=False, threads=1)
    assert report.valid
    assert (report.dataset, report.runs[0].artifact) == (here.dataset, here.runs[0].artifact)
    assert report.runs[0].accuracy.top1 == here.runs[0].accuracy.top1 == 1.0
    assert report.runs[0].accuracy.predictions == "board.predictions.npz"
    with np.load(predictions_path(output)) as there, np.load(predictions_path(tmp_path / "here.json")) as local:
        assert (there["run0_top"] == local["run0_top"]).all()
    with np.load(samples_path(output)) as samples:
        assert len(samples["run0_launch0_ns"]) > 0
    text = output.read_text()
    for name in (socket.gethostname(), "127.0.0.1", str(board.home), str(tmp_path), f'"{getpass.getuser()}"'):
        assert name not in text


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_what_is_kept_is_not_sent_again_and_a_lost_report_is_collected(
    make_board, bundle, picture_folder, tmp_path, sent
):
    board = make_board()

    def bench(listener: Listener, **options):
        return measure_on_host(
            board.host,
            [bundle],
            picture_folder,
            output=tmp_path / "report.json",
            reference=bundle,
            ssh_config=board.ssh_config,
            patience_s=1,
            progress=listener,
            latency=False,
            **options,
        )

    first = bench(Listener(), keep=True)
    assert sum(sent) > 0
    assert not [path for path in board.left() if "/job" in path]
    sent.clear()
    with pytest.raises(GoneError, match="run the same command again"):
        bench(Listener(bench=board.stop))
    board.start()
    listener = Listener()
    again = bench(listener)
    assert listener.heard("going on with the measurement") == 1
    assert listener.heard("Step venv") == 0
    assert sent == []
    assert (again.runs, again.dataset) == (first.runs, first.dataset)
    assert board.left() == []
    assert ended(board)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_busy_board_is_left_alone_and_an_interruption_leaves_nothing(make_board, bundle, picture_folder, tmp_path):
    board = make_board()
    arguments = {"output": tmp_path / "report.json", "ssh_config": board.ssh_config, "latency": False}

    def disturb():
        with pytest.raises(InputError, match="measuring something else"):
            measure_on_host(board.host, [bundle], picture_folder, limit=3, **arguments)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_on_host(board.host, [bundle], picture_folder, progress=Listener(venv=disturb), **arguments)
    assert board.left() == []
    assert ended(board)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_board_without_the_engine_says_so(make_board, packages, bundle, picture_folder, tmp_path):
    poor = tmp_path / "poor"
    poor.mkdir()
    for entry in packages.iterdir():
        if not entry.name.startswith("onnxruntime"):
            (poor / entry.name).symlink_to(entry.resolve())
    board = make_board(PYTHONPATH=str(poor))
    with pytest.raises(UnsupportedError, match=r"cannot install edgecls with onnxruntime.*No matching distribution"):
        measure_on_host(
            board.host, [bundle], picture_folder, output=tmp_path / "r.json", ssh_config=board.ssh_config, latency=False
        )
    assert board.left() == []
    assert not (tmp_path / "r.json").exists()


def test_boards_that_lack_something_say_so_in_one_message(make_board, bundle, picture_folder, tmp_path):
    def refused(board: Board, **options) -> str:
        with pytest.raises((InputError, UnsupportedError)) as caught:
            measure_on_host(
                board.host, [bundle], picture_folder, output=tmp_path / "r.json", ssh_config=board.ssh_config, **options
            )
        assert board.left() == []
        return str(caught.value)

    assert "board has no python3: edgecls needs Python 3.10" in refused(make_board(PATH="/nowhere"))
    old = tmp_path / "old"
    old.mkdir()
    (old / "python3").write_text("#!/bin/sh\nexit 99\n")  # as its own version check would
    (old / "python3").chmod(0o755)
    assert "too old" in refused(make_board(PATH=f"{old}:/usr/bin:/bin"))
    full = tmp_path / "full"
    full.mkdir()
    (full / "sitecustomize.py").write_text(
        "import shutil\nshutil.disk_usage = lambda path: shutil._ntuple_diskusage(10, 10, 5_000_000)\n"
    )
    message = refused(make_board(PYTHONPATH=str(full)))
    assert "board has 5 MB of free disk" in message
    assert "make room" in message
    gone = make_board()
    gone.stop()
    assert "cannot connect to board" in refused(gone)
    assert "Connection refused" in refused(gone)


def test_pictures_that_change_while_they_are_sent_are_refused(make_board, bundle, heavy_folder, tmp_path):
    board = make_board()
    picture = heavy_folder / "ant" / "0.png"
    listener = Listener(transfer=lambda: picture.write_bytes(b"\0" * picture.stat().st_size))
    with pytest.raises(InputError, match=r"1 files arrived at board with other bytes.*0\.png"):
        measure_on_host(
            board.host,
            [bundle],
            heavy_folder,
            output=tmp_path / "r.json",
            ssh_config=board.ssh_config,
            progress=listener,
        )
    assert board.left() == []


def test_a_host_that_would_be_an_option_of_ssh_is_refused(bundle, picture_folder, tmp_path):
    with pytest.raises(InputError, match="is no host"):
        measure_on_host("-oProxyCommand=touch /tmp/x", [bundle], picture_folder, output=tmp_path / "r.json")


def test_a_board_that_fails_does_not_keep_the_others_from_it(monkeypatch, tmp_path):
    outputs = []

    def measured(host, *arguments, output, progress):
        outputs.append(output.name)
        if host == "bad":
            raise UnsupportedError("bad: no")
        return host

    monkeypatch.setattr(host_module, "measure_on_host", measured)
    listener = Listener()
    reports, errors = measure_on_hosts(["a", "bad", "c"], [], "data", output=tmp_path / "r.json", progress=listener)
    assert outputs == ["r-1.json", "r-2.json", "r-3.json"]
    assert [(one.host, one.output.name, one.report) for one in reports] == [
        ("a", "r-1.json", "a"),
        ("c", "r-3.json", "c"),
    ]
    assert [str(error) for error in errors] == ["bad: no"] == listener.said
    assert measure_on_hosts(["a"], [], "data", output=tmp_path / "r.json")[0][0].output.name == "r.json"
    several = measure_on_hosts(["a", "c"], [], "data", output=tmp_path / "lite-1.5")[0]
    assert [one.output.name for one in several] == ["lite-1.5-1", "lite-1.5-2"]


def test_a_board_gets_what_the_built_wheel_holds_for_it(wheel, tmp_path):
    name, data = board_wheel()
    assert name == wheel.name
    assert board_wheel()[1] == data
    (tmp_path / name).write_bytes(data)
    with zipfile.ZipFile(tmp_path / name) as ours, zipfile.ZipFile(wheel) as built:
        folders = {package.replace(".", "/") for package in PACKAGES}
        expected = {entry for entry in built.namelist() if entry.rpartition("/")[0] in folders}
        assert {entry for entry in ours.namelist() if ".dist-info/" not in entry} == expected
        assert all(ours.read(entry) == built.read(entry) for entry in expected)
        (described,) = (entry for entry in ours.namelist() if entry.endswith("METADATA"))
        assert {"Name: edgecls", f"Version: {version('edgecls')}"} <= set(ours.read(described).decode().splitlines())
        (record,) = (ours.read(entry).decode() for entry in ours.namelist() if entry.endswith("RECORD"))
    assert len(record.splitlines()) == len(expected) + 3
    assert hashlib.sha256(data).hexdigest() == hashlib.sha256(board_wheel()[1]).hexdigest()
