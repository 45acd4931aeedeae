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
