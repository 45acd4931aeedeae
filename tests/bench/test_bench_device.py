from __future__ import annotations

import os
import socket
from pathlib import Path

import msgspec
import pytest

from edgecls.bench.device import conditions, device, pick_cpus, snapshot, throttled
from edgecls.bench.report import Snapshot


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """What a Raspberry Pi 5 tells, with two strong and two weak CPUs for the sake of the test."""
    write(tmp_path, "proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0")
    write(tmp_path, "proc/device-tree/compatible", "raspberrypi,5-model-b\0brcm,bcm2712\0")
    write(tmp_path, "proc/meminfo", "MemTotal:        8245000 kB\nMemFree: 1 kB\n")
    write(
        tmp_path,
        "proc/cpuinfo",
        "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n\nSerial\t\t: 10000000abcdef01\n",
    )
    write(tmp_path, "sys/class/thermal/thermal_zone0/temp", "48312\n")
    write(tmp_path, "sys/class/thermal/thermal_zone1/temp", "51000\n")
    cpus = tmp_path / "sys/devices/system/cpu"
    for cpu, capacity in enumerate((500, 500, 1024, 1024)):
        write(cpus, f"cpu{cpu}/cpu_capacity", str(capacity))
        write(cpus, f"cpu{cpu}/cpufreq/scaling_cur_freq", str(1_500_000 + 100_000 * cpu))
        write(cpus, f"cpu{cpu}/cpufreq/scaling_governor", "ondemand\n")
    return tmp_path


def test_a_board_is_described_without_telling_it_from_its_sisters(board: Path) -> None:
    record = device(board)
    assert (record.model, record.soc, record.cpu) == ("Raspberry Pi 5 Model B Rev 1.0", "brcm,bcm2712", "Cortex-A76")
    assert (record.kind, record.ram_bytes) == ("raspberry-pi", 8245000 * 1024)
    text = msgspec.json.encode(record).decode()
    assert "abcdef01" not in text
    assert socket.gethostname() not in text or len(socket.gethostname()) < 4


def test_this_machine_can_be_described() -> None:
    record = device()
    assert record.cores_usable >= 1
    assert record.kernel
    state = snapshot()
    assert msgspec.json.decode(msgspec.json.encode(state), type=Snapshot) == state


def test_the_state_of_a_board(board: Path) -> None:
    state = snapshot(board)
    assert state.governors == ("ondemand",)
    assert state.frequency_mhz == (1500.0, 1800.0)
    assert state.temperature_c == 51.0
    assert state.throttle_events is None


def test_what_is_not_told_is_none(tmp_path: Path) -> None:
    state = snapshot(tmp_path)
    assert (state.governors, state.frequency_mhz, state.temperature_c, state.throttle_events) == (None,) * 4
    record = device(tmp_path)
    assert (record.model, record.soc, record.ram_bytes) == (None, None, None)


def test_throttling_is_noticed_by_its_counters(board: Path) -> None:
    counter = "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"
    unknown = snapshot(board)
    write(board, counter, "7\n")
    before = snapshot(board)
    write(board, counter, "8\n")
    after = snapshot(board)
    assert throttled(before, after)
    assert not throttled(before, before)
    assert not throttled(unknown, unknown)


def test_doubtful_conditions_are_named(board: Path) -> None:
    busy = msgspec.structs.replace(snapshot(board), load_average=3.9)
    load, governor = conditions(busy, busy, 4).warnings
    assert "load 3.9 on 4 CPUs" in load
    assert "ondemand" in governor
    idle = msgspec.structs.replace(busy, load_average=0.1, governors=("performance",))
    assert conditions(idle, idle, 4).warnings == ()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system cannot pin processes")
def test_strong_cpus_and_separate_cores_are_picked_first(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert pick_cpus(2, board) == (2, 3)
    assert pick_cpus(3, board) == (1, 2, 3)
    assert pick_cpus(9, board) == (0, 1, 2, 3)
    for cpu, siblings in enumerate(("0-1", "0-1", "2-3", "2-3")):
        write(board, f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", siblings)
    assert pick_cpus(2, board) == (0, 2)
