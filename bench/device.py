"""What machine this is and what state it is in, from what Linux tells under /proc and /sys.

Nothing that tells one specimen from another is read: no host name, serial number or address. What a system does not
tell is None.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable
from pathlib import Path

from edgecls.bench.report import Conditions, Device, Snapshot
from edgecls.runtime.cpu import cpu_count, cpu_flags, cpu_isa

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


def device(root: Path = Path("/")) -> Device:
    """Describes this machine; `root` is where /proc and /sys are looked for."""
    tree = root / "proc/device-tree"
    model = _read(tree / "model") or _read(root / "sys/class/dmi/id/product_name")
    compatible = _read(tree / "compatible")
    return Device(
        kind=_kind(model or ""),
        model=model,
        soc=compatible.split("\0")[-1] if compatible else None,
        cpu=_cpu_name(root),
        architecture=platform.machine(),
        isa=cpu_isa(),
        cores=os.cpu_count(),
        cores_usable=cpu_count(),
        ram_bytes=_ram_bytes(root),
        os=_os_name(),
        kernel=platform.release(),
    )


def snapshot(root: Path = Path("/")) -> Snapshot:
    """The state of this machine now; `root` is where /sys is looked for."""
    cpus = root / "sys/devices/system/cpu"
    frequencies = _numbers(cpus.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    governors = {_read(path) for path in cpus.glob("cpu[0-9]*/cpufreq/scaling_governor")} - {None}
    temperatures = _numbers((root / "sys/class/thermal").glob("thermal_zone*/temp"))
    throttles = _numbers(cpus.glob("cpu[0-9]*/thermal_throttle/core_throttle_count"))
    return Snapshot(
        load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        governors=tuple(sorted(name for name in governors if name)) or None,
        frequency_mhz=(min(frequencies) / 1000, max(frequencies) / 1000) if frequencies else None,
        temperature_c=max(temperatures) / 1000 if temperatures else None,
        throttle_events=int(sum(throttles)) if throttles else None,
    )


def conditions(before: Snapshot, after: Snapshot, cores_usable: int) -> Conditions:
    """Both states and what they cast doubt on."""
    warnings = []
    if before.load_average is not None and before.load_average > 0.5 * cores_usable:
        warnings.append(
            f"the machine was busy when the measurement began (load {before.load_average:.1f} on {cores_usable} CPUs): "
            "ratios hold, milliseconds may not"
        )
    slow = sorted(set(before.governors or ()) - {"performance"})
    if slow:
        warnings.append(f"the frequency governor is {', '.join(slow)}: clocks may have changed while timing")
    return Conditions(before=before, after=after, warnings=tuple(warnings))


def throttled(before: Snapshot, after: Snapshot) -> bool:
    """Whether CPUs were slowed for heat between the two moments, as far as the system tells."""
    return (
        None not in (before.throttle_events, after.throttle_events) and before.throttle_events != after.throttle_events
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
        siblings = _cpu_list(_read(cpus / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu))
        strength = _numbers([cpus / f"cpu{cpu}/cpu_capacity", cpus / f"cpu{cpu}/cpufreq/cpuinfo_max_freq"])
        return sum(sibling < cpu for sibling in siblings), -next(iter(strength), 0.0), -cpu

    return tuple(sorted(sorted(os.sched_getaffinity(0), key=preference)[:count]))


def _kind(model: str) -> str:
    if "Raspberry Pi" in model:
        return "raspberry-pi"
    if "Jetson" in model or "NVIDIA" in model:
        return "jetson"
    if "hypervisor" in cpu_flags():
        return "virtual-machine"
    return {"arm64": "arm-board", None: "other"}.get(cpu_isa(), "pc")


def _cpu_name(root: Path) -> str | None:
    text = _read(root / "proc/cpuinfo") or ""
    fields: dict[str, str] = dict(re.findall(r"^([^\t:\n]+?)\s*: (.*)$", text, re.MULTILINE))
    if "model name" in fields:
        return fields["model name"].strip()
    if fields.get("CPU implementer") == "0x41" and "CPU part" in fields:
        return _ARM_PARTS.get(fields["CPU part"], f"Arm part {fields['CPU part']}")
    return platform.processor() or None


def _ram_bytes(root: Path) -> int | None:
    match = re.search(r"^MemTotal:\s+(\d+) kB", _read(root / "proc/meminfo") or "", re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return f"{platform.system()} {platform.mac_ver()[0] or platform.release()}"


def _cpu_list(text: str) -> set[int]:
    """`0-2,8` is 0, 1, 2 and 8."""
    cpus: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def _read(path: Path) -> str | None:
    try:
        return path.read_bytes().decode("utf-8", "replace").strip("\0 \n") or None
    except OSError:
        return None


def _numbers(paths: Iterable[Path]) -> list[float]:
    numbers = []
    for path in paths:
        text = _read(path)
        if text and re.fullmatch(r"-?\d+", text):
            numbers.append(float(text))
    return numbers
