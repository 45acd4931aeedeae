from __future__ import annotations

import os
import socket
from pathlib import Path

import boards
import msgspec
import pytest

from edgecls.bench.conditions import snapshot
from edgecls.bench.device import device, pick_cpus, refuse_absent_cpus
from edgecls.bench.energy import find_meter
from edgecls.runtime.errors import InputError

PI, JETSON, CLOUD = "raspberry-pi-5", "jetson-orin-nano-super", "x86-cloud-vm"


def test_a_raspberry_pi_is_described(tmp_path: Path) -> None:
    record = device(boards.lay_out(PI, tmp_path))
    assert (record.kind, record.model) == ("raspberry-pi", "Raspberry Pi 5 Model B Rev 1.0")
    assert (record.soc, record.cpu, record.cores) == ("brcm,bcm2712", "Cortex-A76", 4)
    assert (record.os, record.kernel) == ("Debian GNU/Linux 12 (bookworm)", "6.1.0-rpi7-rpi-2712")
    assert record.ram_bytes is None


def test_a_jetson_is_described_with_its_board_support(tmp_path: Path) -> None:
    record = device(boards.lay_out(JETSON, tmp_path))
    assert (record.kind, record.soc, record.cpu, record.cores) == ("jetson", "nvidia,tegra234", "Cortex-A78AE", 6)
    assert record.model == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert (record.os, record.kernel) == ("Ubuntu 22.04.5 LTS, L4T R36.5.0", "5.15.185-tegra")
    assert record.ram_bytes == 7976910848


def test_a_virtual_machine_is_known_by_its_flags(tmp_path: Path) -> None:
    record = device(boards.lay_out(CLOUD, tmp_path))
    assert (record.kind, record.model, record.soc, record.cores) == ("virtual-machine", None, None, 2)
    assert record.cpu == "Intel(R) Xeon(R) Processor @ 2.80GHz"


@pytest.mark.parametrize("board", [PI, JETSON])
def test_nothing_tells_a_board_from_its_sisters(tmp_path: Path, board: str) -> None:
    root = boards.lay_out(board, tmp_path)
    meter = find_meter(root)
    told = [device(root), snapshot(root), meter if isinstance(meter, str) else [meter.source, meter.scope]]
    text = msgspec.json.encode(told).decode()
    assert [secret for secret in boards.private(board) if secret in text] == []
    assert "Cortex-A7" in text


def test_this_machine_can_be_described_without_its_name() -> None:
    record = device()
    assert record.cores_usable >= 1
    assert record.kernel
    told = msgspec.json.encode([record, snapshot()]).decode()
    assert socket.gethostname() not in told or len(socket.gethostname()) < 4


def test_what_is_not_told_is_none(tmp_path: Path) -> None:
    record = device(tmp_path)
    assert (record.model, record.soc, record.ram_bytes) == (None, None, None)
    assert record.os
    assert record.kernel


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system cannot pin processes")
def test_strong_cpus_and_separate_cores_are_picked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cpu, capacity in enumerate((500, 500, 1024, 1024)):
        boards.write(tmp_path, f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity", str(capacity))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert pick_cpus(2, tmp_path) == (2, 3)
    assert pick_cpus(3, tmp_path) == (1, 2, 3)
    assert pick_cpus(9, tmp_path) == (0, 1, 2, 3)
    for cpu, siblings in enumerate(("0-1", "0-1", "2-3", "2-3")):
        boards.write(tmp_path, f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", siblings)
    assert pick_cpus(2, tmp_path) == (0, 2)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system cannot pin processes")
def test_absent_cpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 2})
    refuse_absent_cpus([2, 1])
    with pytest.raises(InputError, match="cannot be pinned to CPU 0, 7: choose from 1, 2"):
        refuse_absent_cpus([7, 1, 0])
    with pytest.raises(InputError, match="pinned to CPU none"):
        refuse_absent_cpus([])
