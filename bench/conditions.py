"""The state of the machine before, during and after a measurement, and what of it makes the measurement worthless.

During a measurement it is looked at between turns, when nothing is timed, at most twice a second.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from edgecls.bench.cpu_quota import cpu_quota
from edgecls.bench.system import ask_tool, read_numbers, read_text

PERIOD_S = 0.5
"""Shortest time between two looks at the machine."""

_GPUS = ("*.gpu", "*.ga10b", "*.gv11b", "gpu-gpc-0")
"""Names of a Jetson's GPU: from JetPack 6 on, Orin and Xavier before it, Thor."""
_PI_LIMITS = ("under-voltage", "CPU frequency capped", "throttled", "soft temperature limit")
"""Bits 0 to 3 of `vcgencmd get_throttled`; bits 16 to 19 are the same since boot."""
_CPU_SENSORS = {"coretemp", "k10temp", "zenpower"}
"""Chips of Intel and AMD that measure the CPU itself; thermal zones of a PC may be the board's (`acpitz`)."""
_CONSTANT_ZONE = "PMIC-Die"
"""A thermal zone of Jetsons before Orin that always tells 100 degrees."""
_THROTTLING = re.compile(r".*-alert|(thermal-)?(cpufreq|devfreq|idle)-.*|Processor|intel_powerclamp")
"""Types of cooling devices that slow something down: alerts of a Jetson (`cpu-throttle-alert`, `hot-surface-alert`),
what Linux does on other boards, `cpufreq-cpu0` or in older kernels `thermal-cpufreq-0`, and on a PC ACPI and thermald.
A fan is no throttle."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The state of the machine at one moment; null where the system does not tell."""

    load_average: float | None
    """Processes that wanted a CPU, mean of the last minute."""
    governors: tuple[str, ...] | None
    """Distinct frequency governors of the CPUs."""
    frequency_mhz: tuple[float, float] | None
    """Slowest and fastest CPU now; on a Raspberry Pi as its firmware measures, for the kernel's figure leaves
    throttling out."""
    temperature_c: float | None
    """Of the CPU by its own sensor, or of the hottest thermal zone."""
    throttle_events: int | None
    """Times since boot that clocks were slowed for heat or want of power."""
    power_mode: str | None = None
    """Of a Jetson, as `nvpmodel` names it: `MAXN_SUPER`; of a PC `low-power, on battery, no turbo`."""
    gpu_frequency_mhz: float | None = None
    """Of a Jetson."""
    throttle_flags: tuple[str, ...] | None = None
    """What holds the clocks down now."""
    throttle_flags_since_boot: tuple[str, ...] | None = None
    """Of a Raspberry Pi."""
    power_peaks: int | None = None
    """Times since boot that a Jetson halved its clocks for about a millisecond because of a peak of power."""
    cpu_quota: float | None = None
    """CPUs' worth of time that the control group of this process may use; null where it is not limited."""
    quota_waits: int | None = None
    """Periods so far in which the group had used that up and had to wait."""


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """A look at the machine between two turns; null where the system does not tell."""

    seconds: float
    """Since the first look."""
    frequency_mhz: tuple[float, float] | None
    gpu_frequency_mhz: float | None
    temperature_c: float | None


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """The state of the machine around the measurement."""

    before: Snapshot
    after: Snapshot
    warnings: tuple[str, ...]
    """What makes milliseconds from this machine doubtful."""
    trace: tuple[Moment, ...] = ()
    """Temperature and frequency while latency was measured, at most 2 looks a second; empty where the system tells
    neither."""


def snapshot(root: Path = Path("/")) -> Snapshot:
    """The state of this machine now; files and tools are looked for below `root`."""
    cpus, thermal = root / "sys/devices/system/cpu", root / "sys/class/thermal"
    governors = {read_text(path) for path in cpus.glob("cpu[0-9]*/cpufreq/scaling_governor")} - {None}
    zones = (zone for zone in thermal.glob("thermal_zone*") if read_text(zone / "type") != _CONSTANT_ZONE)
    sensors = (chip for chip in (root / "sys/class/hwmon").glob("hwmon*") if read_text(chip / "name") in _CPU_SENSORS)
    temperatures = read_numbers(path for chip in sensors for path in chip.glob("temp*_input"))
    temperatures = temperatures or read_numbers(zone / "temp" for zone in zones)
    gpu = read_numbers(path for name in _GPUS for path in (root / "sys/class/devfreq").glob(f"{name}/cur_freq"))
    mode = re.search(r"NV Power Mode: *(\S+)", ask_tool(root, "nvpmodel", "-q") or "")
    flags, since_boot = _throttle_flags(root)
    quota = cpu_quota(root)
    throttles = read_numbers(cpus.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")) + _package_throttles(cpus)
    # OC1 is under-voltage, OC2 average over-current. OC3, the momentary peak, is a thing of every second in a Jetson's
    # strongest mode and costs well below 1 % of the time: worth a word, not a verdict.
    throttles += read_numbers((root / "sys/class/hwmon").glob("hwmon*/oc[12]_event_cnt"))
    peaks = read_numbers((root / "sys/class/hwmon").glob("hwmon*/oc3_event_cnt"))
    return Snapshot(
        load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        governors=tuple(sorted(name for name in governors if name)) or None,
        frequency_mhz=_frequency_mhz(root),
        temperature_c=max(temperatures) / 1000 if temperatures else _pi_number(root, "measure_temp"),
        throttle_events=int(sum(throttles)) if throttles else None,
        power_mode=mode[1] if mode else _pc_mode(root),
        gpu_frequency_mhz=gpu[0] / 1e6 if gpu else None,
        throttle_flags=flags,
        throttle_flags_since_boot=since_boot,
        power_peaks=int(sum(peaks)) if peaks else None,
        cpu_quota=quota.cpus,
        quota_waits=quota.waits,
    )


def _pc_mode(root: Path) -> str | None:
    """What firmware, battery and user let the CPUs of a PC draw."""
    cpus, supplies = root / "sys/devices/system/cpu", (root / "sys/class/power_supply").glob("*")
    mains = [read_text(supply / "online") for supply in supplies if read_text(supply / "type") == "Mains"]
    slow = read_text(cpus / "intel_pstate/no_turbo") == "1" or read_text(cpus / "cpufreq/boost") == "0"
    told = (
        read_text(root / "sys/firmware/acpi/platform_profile"),
        "on battery" if mains and "1" not in mains else None,
        "no turbo" if slow else None,
    )
    return ", ".join(filter(None, told)) or None


def _package_throttles(cpus: Path) -> list[float]:
    """For each package its events, which every CPU of it counts."""
    packages: dict[str | None, list[float]] = {}
    for cpu in cpus.glob("cpu[0-9]*"):
        package = read_text(cpu / "topology/physical_package_id")
        packages.setdefault(package, []).extend(read_numbers([cpu / "thermal_throttle/package_throttle_count"]))
    return [max(counts) for counts in packages.values() if counts]


def _frequency_mhz(root: Path) -> tuple[float, float] | None:
    measured = _pi_number(root, "measure_clock", "arm")
    if measured is not None:
        return measured / 1e6, measured / 1e6
    frequencies = read_numbers((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    return (min(frequencies) / 1000, max(frequencies) / 1000) if frequencies else None


def _pi_number(root: Path, *question: str) -> float | None:
    """The number in an answer such as `temp=48.3'C` or `frequency(0)=2400006656`."""
    answer = re.search(r"=([\d.]+)", ask_tool(root, "vcgencmd", *question) or "")
    return float(answer[1]) if answer else None


def _throttle_flags(root: Path) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """What holds the clocks down now, and what did since boot."""
    answer = re.search(r"throttled=0x([0-9a-fA-F]+)", ask_tool(root, "vcgencmd", "get_throttled") or "")
    told = answer[1] if answer else _firmware_bits(root)
    if told:
        bits = int(told, 16)
        now, since = (
            tuple(name for bit, name in enumerate(_PI_LIMITS) if bits >> shift & 1 << bit) for shift in (0, 16)
        )
        return now, since
    alerts: dict[str, bool] = {}
    for cooler in sorted((root / "sys/class/thermal").glob("cooling_device*")):
        name = read_text(cooler / "type") or ""
        if _THROTTLING.fullmatch(name):
            state = read_numbers([cooler / "cur_state"])
            alerts[name] = alerts.get(name, False) or any(value > 0 for value in state)  # one for each CPU, or -1
    return (tuple(name for name, active in alerts.items() if active) if alerts else None), None


def _firmware_bits(root: Path) -> str | None:
    """What the kernel passes on of a Raspberry Pi's firmware, hexadecimal; its folder depends on the model."""
    for path in (root / "sys/devices/platform").glob("*/*firmware/get_throttled"):
        text = read_text(path) or ""
        if re.fullmatch(r"[0-9a-fA-F]+", text):
            return text
    return None


class Watcher:
    """Looks at the machine before, during and after a measurement.

    Args:
        root: Where files and tools are looked for.
        period_s: Shortest time between two looks.
        now: A clock, seconds.
    """

    def __init__(
        self, root: Path = Path("/"), period_s: float = PERIOD_S, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._root, self._now = root, now
        self.period_s = period_s
        self._start = now()
        self._seen = [(0.0, snapshot(root))]
        self._timed = 0

    def begin(self) -> None:
        """Looks because timing begins: what was before makes no latency worthless."""
        self._seen.append((self._now() - self._start, snapshot(self._root)))
        self._timed = len(self._seen) - 1

    def look(self) -> None:
        """Looks, unless the last look was less than a period ago. Not to be called while anything is timed."""
        seconds = self._now() - self._start
        if seconds - self._seen[-1][0] >= self.period_s:
            self._seen.append((seconds, snapshot(self._root)))

    def finish(self, cores_usable: int) -> tuple[Conditions, tuple[str, ...]]:
        """Looks for the last time.

        Returns:
            What was seen, and why a latency that was measured meanwhile is worth nothing (empty if it is not).
        """
        self._seen.append((self._now() - self._start, snapshot(self._root)))
        states = [state for _, state in self._seen]
        trace = tuple(
            Moment(
                seconds=round(seconds, 2),
                frequency_mhz=state.frequency_mhz,
                gpu_frequency_mhz=state.gpu_frequency_mhz,
                temperature_c=state.temperature_c,
            )
            for seconds, state in self._seen
            if (state.frequency_mhz, state.temperature_c) != (None, None)
        )
        conditions = Conditions(
            before=states[0], after=states[-1], warnings=_warnings(states, cores_usable), trace=trace
        )
        return conditions, interruptions(states[self._timed :])


def interruptions(states: Sequence[Snapshot]) -> tuple[str, ...]:
    """Why what was timed between the first and the last of these states is worth nothing; empty if it is not."""
    before, after = states[0], states[-1]
    reasons = []
    limits = {name for state in states for name in state.throttle_flags or ()}
    since_boot = {name for state in states for name in state.throttle_flags_since_boot or ()}  # a read may clear them
    limits |= since_boot - set(before.throttle_flags_since_boot or ())
    if limits:
        reasons.append(
            f"the clocks were held down while measuring ({', '.join(sorted(limits))}): "
            "cool the device, give it a stronger power supply and measure again"
        )
    events = _increase(before.throttle_events, after.throttle_events)
    if events:
        reasons.append(
            f"the clocks were slowed {events} times for heat or want of power while measuring: "
            "cool the device and measure again"
        )
    waits = _increase(before.quota_waits, after.quota_waits)
    if waits:
        reasons.append(
            f"the CPU quota of the control group was used up {waits} times while measuring: "
            "raise it (docker run --cpus, CPUQuota=), or give fewer `--threads`, and measure again"
        )
    for what, values in (
        ("frequency governor", [", ".join(state.governors) for state in states if state.governors]),
        ("power mode", [state.power_mode for state in states if state.power_mode]),
    ):
        if len(set(values)) > 1:
            reasons.append(
                f"the {what} changed while measuring ({' -> '.join(dict.fromkeys(values))}): "
                "keep it fixed and measure again"
            )
    return tuple(reasons)


def _warnings(states: Sequence[Snapshot], cores_usable: int) -> tuple[str, ...]:
    """What makes milliseconds doubtful without making them worthless."""
    before, warnings = states[0], []
    if before.load_average is not None and before.load_average > 0.5 * cores_usable:
        warnings.append(
            f"the machine was busy when the measurement began (load {before.load_average:.1f} on {cores_usable} CPUs): "
            "milliseconds may be too long and ratios too near to 1"
        )
    slow = sorted(set(before.governors or ()) - {"performance"})
    if slow:
        warnings.append(f"the frequency governor is {', '.join(slow)}: clocks may have changed while timing")
    if before.cpu_quota is not None and before.cpu_quota < cores_usable:
        warnings.append(
            f"the control group has a quota of {before.cpu_quota:g} CPUs and sees {cores_usable}: "
            "more threads than that wait for each other"
        )
    peaks = _increase(before.power_peaks, states[-1].power_peaks)
    if peaks:
        warnings.append(f"peaks of power halved the clocks {peaks} times, for about a millisecond each")
    return tuple(warnings)


def _increase(before: int | None, after: int | None) -> int:
    # Less where a CPU, or what counts, has gone: nobody knows what happened on it.
    return 0 if before is None or after is None else max(0, after - before)
