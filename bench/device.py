"""What machine this is, from what Linux tells under /proc, /sys and /etc.

Nothing that tells one specimen from another is read: no host name, serial number or address. What a system does not
tell is None.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgecls.bench.system import read_numbers, read_text
from edgecls.runtime.cpu import Isa, cpu_count, cpu_isa
from edgecls.runtime.errors import InputError

_ARM_PARTS = {
    "0xd03": "Cortex-A53",
    "0xd04": "Cortex-A35",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd40": "Neoverse-V1",
    "0xd41": "Cortex-A78",
    "0xd42": "Cortex-A78AE",
    "0xd49": "Neoverse-N2",
    "0xd4f": "Neoverse-V2",
}
"""Part numbers of implementer 0x41 (Arm) in /proc/cpuinfo."""


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """The machine, without anything that tells one specimen from another (host name, serial number, address)."""

    kind: str = msgspec.field(name="class")
    """`raspberry-pi`, `jetson`, `pc`, `virtual-machine`, `arm-board` or `other`."""
    model: str | None
    """Board or product: `Raspberry Pi 5 Model B Rev 1.0`."""
    soc: str | None
    """System on chip, from the device tree: `brcm,bcm2712`."""
    cpu: str | None
    """`Cortex-A76`, `Intel(R) Core(TM) i5-1240P`."""
    architecture: str
    """`x86_64`, `aarch64`."""
    isa: Isa | None
    """The instruction set that decides which INT8 graphs are exact and fast here."""
    cores: int | None
    """Logical CPUs of the machine."""
    cores_usable: int
    """Those that this process may use."""
    ram_bytes: int | None
    os: str
    """With the board support on a Jetson: `Ubuntu 22.04.5 LTS, L4T R36.5.0`."""
    kernel: str


def device(root: Path = Path("/")) -> Device:
    """Describes this machine; files are looked for below `root`, while architecture and ISA are this process's."""
    tree = root / "proc/device-tree"
    board = read_text(tree / "model")
    compatible = read_text(tree / "compatible")
    cpu = _cpu_fields(root)
    present = read_text(root / "sys/devices/system/cpu/present")
    return Device(
        kind=_kind(board or "", cpu),
        model=board or read_text(root / "sys/class/dmi/id/product_name"),
        soc=compatible.split("\0")[-1] if compatible else None,
        cpu=_cpu_name(cpu),
        architecture=platform.machine(),
        isa=cpu_isa(),
        cores=len(_cpu_list(present)) if present else os.cpu_count(),
        cores_usable=cpu_count(),
        ram_bytes=_ram_bytes(root),
        os=_os_name(root),
        kernel=read_text(root / "proc/sys/kernel/osrelease") or platform.release(),
    )


def pick_cpus(count: int, root: Path = Path("/")) -> tuple[int, ...] | None:
    """The CPUs to pin `count` threads to: separate cores first, then the strongest, then the last.

    Boards serve their interrupts on the first.

    Returns:
        None where the system cannot pin a process.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    cpus = root / "sys/devices/system/cpu"

    def preference(cpu: int) -> tuple[int, float, int]:
        siblings = _cpu_list(read_text(cpus / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu))
        strength = read_numbers([cpus / f"cpu{cpu}/cpu_capacity", cpus / f"cpu{cpu}/cpufreq/cpuinfo_max_freq"])
        return sum(sibling < cpu for sibling in siblings), -next(iter(strength), 0.0), -cpu

    return tuple(sorted(sorted(os.sched_getaffinity(0), key=preference)[:count]))


def refuse_absent_cpus(cpus: Sequence[int]) -> None:
    """Refuses CPUs that this process cannot be pinned to.

    Raises:
        InputError: There are none, this process may not use one of them, or the system cannot pin; name others.
    """
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    absent = sorted(set(cpus) - usable)
    if absent or not cpus:
        raise InputError(
            f"this process cannot be pinned to CPU {', '.join(map(str, absent)) or 'none'}: "
            f"choose from {', '.join(map(str, sorted(usable))) or 'none: this system does not pin'}"
        )


def _kind(board: str, cpu: dict[str, str]) -> str:
    if "Raspberry Pi" in board:
        return "raspberry-pi"
    if "Jetson" in board or "NVIDIA" in board:
        return "jetson"
    if "hypervisor" in cpu.get("flags", "").split():
        return "virtual-machine"
    return {"arm64": "arm-board", None: "other"}.get(cpu_isa(), "pc")


def _cpu_fields(root: Path) -> dict[str, str]:
    """Fields of the last CPU in /proc/cpuinfo."""
    text = read_text(root / "proc/cpuinfo") or ""
    return {key: value.strip() for key, value in re.findall(r"^([^\t:\n]+?)\s*: (.*)$", text, re.MULTILINE)}


def _cpu_name(cpu: dict[str, str]) -> str | None:
    if "model name" in cpu:
        return cpu["model name"]
    if cpu.get("CPU implementer") == "0x41" and "CPU part" in cpu:
        return _ARM_PARTS.get(cpu["CPU part"], f"Arm part {cpu['CPU part']}")
    return platform.processor() or None


def _ram_bytes(root: Path) -> int | None:
    match = re.search(r"^MemTotal:\s+(\d+) kB", read_text(root / "proc/meminfo") or "", re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _os_name(root: Path) -> str:
    release = read_text(root / "etc/os-release") or read_text(root / "usr/lib/os-release") or ""
    name = re.search(r"^PRETTY_NAME=[\"']?(.*?)[\"']?$", release, re.MULTILINE)
    l4t = re.match(r"# (R\d+) \(release\), REVISION: ([\d.]+)", read_text(root / "etc/nv_tegra_release") or "")
    if name is None:
        return f"{platform.system()} {platform.mac_ver()[0] or platform.release()}"
    return f"{name[1]}, L4T {l4t[1]}.{l4t[2]}" if l4t else name[1]


def _cpu_list(text: str) -> set[int]:
    """`0-2,8` is 0, 1, 2 and 8."""
    cpus: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus
