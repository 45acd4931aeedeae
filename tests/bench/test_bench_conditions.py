from __future__ import annotations

from pathlib import Path

import boards
import msgspec
import pytest

from edgecls.bench.conditions import Snapshot, Watcher, interruptions, snapshot

PI, JETSON, CLOUD = "raspberry-pi-5", "jetson-orin-nano-super", "x86-cloud-vm"
QUIET = Snapshot(
    load_average=0.1, governors=("performance",), frequency_mhz=None, temperature_c=None, throttle_events=0
)


class Clock:
    """Seconds that pass when the test says so."""

    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def changed(**fields: object) -> tuple[str, ...]:
    """What is said of a measurement during which these fields took a new value."""
    return interruptions([QUIET, msgspec.structs.replace(QUIET, **fields)])


def test_the_state_of_a_raspberry_pi_is_what_its_firmware_measures(tmp_path: Path) -> None:
    state = snapshot(boards.lay_out(PI, tmp_path))
    assert state.governors == ("ondemand",)
    assert state.frequency_mhz == (2000.00512, 2000.00512)
    assert state.temperature_c == 76.8
    assert (state.throttle_flags, state.throttle_flags_since_boot) == ((), ())
    assert (state.power_mode, state.gpu_frequency_mhz, state.throttle_events) == (None, None, None)


@pytest.mark.parametrize(
    ("told", "now", "since"),
    [
        ("throttled=0x50005", ("under-voltage", "throttled"), ("under-voltage", "throttled")),
        ("throttled=0x80008", ("soft temperature limit",), ("soft temperature limit",)),
        ("throttled=0x20000", (), ("CPU frequency capped",)),
        ("error=1 error_msg=Command not registered", None, None),
    ],
)
def test_bits_of_the_firmware_have_names(
    tmp_path: Path, told: str, now: tuple[str, ...] | None, since: tuple[str, ...] | None
) -> None:
    boards.set_tool(boards.lay_out(PI, tmp_path), "vcgencmd get_throttled", told)
    state = snapshot(tmp_path)
    assert (state.throttle_flags, state.throttle_flags_since_boot) == (now, since)
    assert state.temperature_c == 76.8


def test_the_state_of_a_jetson(tmp_path: Path) -> None:
    state = snapshot(boards.lay_out(JETSON, tmp_path))
    assert (state.power_mode, state.governors) == ("MAXN_SUPER", ("schedutil",))
    assert (state.frequency_mhz, state.gpu_frequency_mhz, state.temperature_c) == ((1728, 1728), 1020, 52)
    assert (state.throttle_events, state.power_peaks, state.throttle_flags) == (0, 27390, ())
    boards.write(tmp_path, "sys/class/thermal/cooling_device2/cur_state", "1\n")
    assert snapshot(tmp_path).throttle_flags == ("gpu-throttle-alert",)


@pytest.mark.parametrize(
    "cooler", ["cpufreq-cpu0", "thermal-cpufreq-0", "devfreq-fb000000.gpu", "thermal-idle-0", "Processor"]
)
def test_cooling_devices_of_other_boards_are_throttles_and_fans_are_not(tmp_path: Path, cooler: str) -> None:
    # Layout and the first name: github.com/radxa/kernel/issues/536 (Cubie A7S, 2026-04-17); the others: names that
    # drivers/thermal of Linux gives, of today and earlier.
    for number, name in enumerate((cooler, "pwm-fan")):
        boards.write(tmp_path, f"sys/class/thermal/cooling_device{number}/type", f"{name}\n")
        boards.write(tmp_path, f"sys/class/thermal/cooling_device{number}/cur_state", f"{3 * number}\n")
    assert snapshot(tmp_path).throttle_flags == ()
    clock = Clock()
    watcher = Watcher(tmp_path, now=clock)
    for state in (7, 0):
        clock.seconds += 1
        boards.write(tmp_path, "sys/class/thermal/cooling_device0/cur_state", f"{state}\n")
        watcher.look()
    _, (reason,) = watcher.finish(cores_usable=8)
    assert f"held down while measuring ({cooler})" in reason


def test_a_cooling_device_of_each_cpu_counts(tmp_path: Path) -> None:
    for number, state in enumerate((0, 3, -1)):  # the kernel's documentation of thermal_sysfs and intel_powerclamp
        boards.write(tmp_path, f"sys/class/thermal/cooling_device{number}/type", "Processor\n")
        boards.write(tmp_path, f"sys/class/thermal/cooling_device{number}/cur_state", f"{state}\n")
    assert snapshot(tmp_path).throttle_flags == ("Processor",)
    boards.write(tmp_path, "sys/class/thermal/cooling_device1/cur_state", "0\n")
    assert snapshot(tmp_path).throttle_flags == ()


def test_what_a_pc_may_draw_is_its_power_mode(tmp_path: Path) -> None:
    # Names and values: Documentation/ABI/testing/sysfs-platform_profile, sysfs-class-power, cpufreq's and
    # intel_pstate's admin guides of Linux.
    assert snapshot(tmp_path).power_mode is None
    boards.write(tmp_path, "sys/firmware/acpi/platform_profile", "low-power\n")
    boards.write(tmp_path, "sys/class/power_supply/AC/type", "Mains\n")
    boards.write(tmp_path, "sys/class/power_supply/AC/online", "1\n")
    boards.write(tmp_path, "sys/devices/system/cpu/intel_pstate/no_turbo", "0\n")
    plugged_in = snapshot(tmp_path)
    boards.write(tmp_path, "sys/class/power_supply/AC/online", "0\n")
    boards.write(tmp_path, "sys/devices/system/cpu/intel_pstate/no_turbo", "1\n")
    assert (plugged_in.power_mode, snapshot(tmp_path).power_mode) == ("low-power", "low-power, on battery, no turbo")
    assert "power mode changed" in interruptions([plugged_in, snapshot(tmp_path)])[0]


def test_events_of_a_cpu_that_has_gone_are_no_events() -> None:
    states = [msgspec.structs.replace(QUIET, throttle_events=count) for count in (5, 0)]
    assert interruptions(states) == ()


@pytest.mark.parametrize("folder", ["soc/soc:firmware", "scb/soc:firmware", "soc@107c000000/soc@107c000000:firmware"])
def test_the_kernel_tells_what_the_firmware_says_without_its_tool(tmp_path: Path, folder: str) -> None:
    # Hexadecimal without 0x, as get_throttled_show in drivers/firmware/raspberrypi.c of Raspberry Pi's kernel prints
    # it; the folders of a Pi 3 and 4 as monitoring scripts name them, of a Pi 5 after its device tree.
    (boards.lay_out(PI, tmp_path) / "usr/bin/vcgencmd").unlink()
    boards.write(tmp_path, f"sys/devices/platform/{folder}/get_throttled", "d0008\n")
    state = snapshot(tmp_path)
    assert state.throttle_flags == ("soft temperature limit",)
    assert state.throttle_flags_since_boot == ("under-voltage", "throttled", "soft temperature limit")


def test_throttles_of_a_package_are_counted_once(tmp_path: Path) -> None:
    # Files and their meaning: drivers/thermal/intel/therm_throt.c of Linux. The counts are made up.
    for cpu, (package, count) in enumerate(((0, 5), (0, 4), (1, 2), (1, 2))):
        folder = f"sys/devices/system/cpu/cpu{cpu}"
        boards.write(tmp_path, f"{folder}/topology/physical_package_id", f"{package}\n")
        boards.write(tmp_path, f"{folder}/thermal_throttle/package_throttle_count", f"{count}\n")
        boards.write(tmp_path, f"{folder}/thermal_throttle/core_throttle_count", "0\n")
    assert snapshot(tmp_path).throttle_events == 7


def test_a_zone_that_always_tells_100_degrees_is_left_out(tmp_path: Path) -> None:
    # Zones of an AGX Xavier: github.com/OE4T/meta-tegra/issues/216; the constant: github.com/balena-os/balena-jetson/
    # issues/142. The temperatures are made up.
    for zone, (name, temperature) in enumerate((("CPU-therm", 36500), ("GPU-therm", 35000), ("PMIC-Die", 100000))):
        boards.write(tmp_path, f"sys/class/thermal/thermal_zone{zone}/type", f"{name}\n")
        boards.write(tmp_path, f"sys/class/thermal/thermal_zone{zone}/temp", f"{temperature}\n")
    assert snapshot(tmp_path).temperature_c == 36.5


def test_the_sensor_of_the_cpu_is_preferred_to_one_of_the_board(tmp_path: Path) -> None:
    # Both figures: github.com/tuxedocomputers/tuxedo-control-center/issues/471 (2025-12-22); the disk is made up.
    boards.write(tmp_path, "sys/class/thermal/thermal_zone0/type", "acpitz\n")
    boards.write(tmp_path, "sys/class/thermal/thermal_zone0/temp", "32000\n")
    assert snapshot(tmp_path).temperature_c == 32
    for chip, (name, temperature) in enumerate((("nvme", 61850), ("k10temp", 33750))):
        boards.write(tmp_path, f"sys/class/hwmon/hwmon{chip}/name", f"{name}\n")
        boards.write(tmp_path, f"sys/class/hwmon/hwmon{chip}/temp1_input", f"{temperature}\n")
    assert snapshot(tmp_path).temperature_c == 33.75


V2 = {"proc/self/cgroup": "0::/system.slice/bench.service\n"}
V1 = {"proc/self/cgroup": "12:cpuset:/\n4:cpu,cpuacct:/docker/0123abcd\n0::/\n"}
STAT = "nr_periods 8006\nnr_throttled 675\nthrottled_time 1921546352\n"


@pytest.mark.parametrize(
    ("files", "quota", "waits"),
    [
        # Version 2 as Documentation/admin-guide/cgroup-v2.rst of Linux has it: the quota of the slice counts too.
        (
            {
                **V2,
                "sys/fs/cgroup/system.slice/bench.service/cpu.max": "max 100000\n",
                "sys/fs/cgroup/system.slice/bench.service/cpu.stat": "usage_usec 9\nnr_periods 0\nnr_throttled 0\n",
                "sys/fs/cgroup/system.slice/cpu.max": "150000 100000\n",
                "sys/fs/cgroup/system.slice/cpu.stat": STAT,
            },
            1.5,
            675,
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 0.5, None),
        # Version 1: figures of gist.github.com/casidiablo/9ed2fe10adbfbbf3459af60a904fa866, seen from the container,
        # where the path that the process is told does not exist.
        (
            {
                **V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.stat": STAT,
            },
            1.0,
            675,
        ),
        (
            {**V1, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"},
            None,
            None,
        ),
        ({"proc/self/cgroup": "0::/../outside\n"}, None, None),
    ],
)
def test_the_quota_of_a_container_is_recorded(
    tmp_path: Path, files: dict[str, str], quota: float | None, waits: int | None
) -> None:
    for path, text in files.items():
        boards.write(tmp_path, path, text)
    state = snapshot(tmp_path)
    assert (state.cpu_quota, state.quota_waits) == (quota, waits)


def test_a_quota_is_a_warning_and_waiting_for_it_while_timing_makes_the_latency_worthless(tmp_path: Path) -> None:
    boards.write(tmp_path, "proc/self/cgroup", "0::/\n")
    boards.write(tmp_path, "sys/fs/cgroup/cpu.max", "150000 100000\n")
    watcher = Watcher(tmp_path)
    boards.write(tmp_path, "sys/fs/cgroup/cpu.stat", "nr_throttled 20\n")  # as accuracy is measured, on all CPUs
    watcher.begin()
    conditions, reasons = watcher.finish(cores_usable=4)
    assert [text for text in conditions.warnings if "quota of 1.5 CPUs and sees 4" in text]
    assert reasons == ()
    boards.write(tmp_path, "sys/fs/cgroup/cpu.stat", "nr_throttled 23\n")
    assert "quota of the control group was used up 3 times" in watcher.finish(cores_usable=4)[1][0]
    assert not [text for text in watcher.finish(cores_usable=1)[0].warnings if "quota" in text]


def test_a_virtual_machine_tells_nothing(tmp_path: Path) -> None:
    state = snapshot(boards.lay_out(CLOUD, tmp_path))
    assert [value for value in msgspec.structs.astuple(state)[1:] if value is not None] == []


def test_a_tool_that_fails_or_hangs_is_no_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boards.lay_out(PI, tmp_path)
    tool = tmp_path / "usr/bin/vcgencmd"
    tool.write_text("#!/bin/sh\necho temp=99.9\nexit 1\n")
    assert snapshot(tmp_path).frequency_mhz == (2400, 2400)
    monkeypatch.setattr("edgecls.bench.system._TOOL_S", 0.05)
    tool.write_text("#!/bin/sh\nexec sleep 60\n")
    assert snapshot(tmp_path).throttle_flags is None


def test_a_watched_measurement_has_a_trace_of_looks_that_are_far_enough_apart(tmp_path: Path) -> None:
    clock = Clock()
    watcher = Watcher(boards.lay_out(JETSON, tmp_path), now=clock)
    for tenth in range(1, 20):
        clock.seconds = 100 + tenth / 10
        boards.write(tmp_path, "sys/class/thermal/thermal_zone8/temp", f"{52000 + 1000 * tenth}\n")
        watcher.look()
    conditions, reasons = watcher.finish(cores_usable=6)
    assert reasons == ()
    seconds = [moment.seconds for moment in conditions.trace]
    assert seconds == [0.0, 0.5, 1.0, 1.5, 1.9]
    assert [moment.temperature_c for moment in conditions.trace] == [52, 57, 62, 67, 71]
    assert {moment.gpu_frequency_mhz for moment in conditions.trace} == {1020}
    assert (conditions.before.temperature_c, conditions.after.temperature_c) == (52, 71)


def test_a_machine_that_tells_nothing_has_no_trace(tmp_path: Path) -> None:
    conditions, reasons = Watcher(boards.lay_out(CLOUD, tmp_path)).finish(cores_usable=2)
    assert (conditions.trace, reasons) == ((), ())


def test_throttling_that_came_and_went_is_noticed(tmp_path: Path) -> None:
    clock = Clock()
    watcher = Watcher(boards.lay_out(PI, tmp_path), now=clock)
    for bits in ("0x4", "0x0"):
        clock.seconds += 1
        boards.set_tool(tmp_path, "vcgencmd get_throttled", f"throttled={bits}")
        watcher.look()
    _, (reason,) = watcher.finish(cores_usable=4)
    assert "held down while measuring (throttled)" in reason


def test_what_makes_a_measurement_worthless_is_named() -> None:
    assert changed() == ()
    assert changed(load_average=9.0, temperature_c=80.0, power_peaks=3) == ()
    (events,) = changed(throttle_events=2)
    assert "slowed 2 times" in events
    (governor,) = changed(governors=("powersave",))
    assert "governor changed while measuring (performance -> powersave)" in governor
    mode = interruptions([msgspec.structs.replace(QUIET, power_mode=name) for name in ("MAXN", "15W", "MAXN")])
    assert "power mode changed while measuring (MAXN -> 15W)" in mode[0]
    past = {"throttle_flags_since_boot": ("under-voltage",)}
    (since,) = changed(**past)
    assert "(under-voltage)" in since
    assert interruptions([msgspec.structs.replace(QUIET, **past)] * 2) == ()


def test_doubtful_conditions_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (3.9, 0.0, 0.0))
    watcher = Watcher(boards.lay_out(JETSON, tmp_path))
    boards.write(tmp_path, "sys/class/hwmon/hwmon3/oc3_event_cnt", "27400\n")
    load, governor, peaks = watcher.finish(cores_usable=4)[0].warnings
    assert "load 3.9 on 4 CPUs" in load
    assert "schedutil" in governor
    assert "halved the clocks 10 times" in peaks
