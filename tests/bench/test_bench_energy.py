from __future__ import annotations

from pathlib import Path

import boards
import pytest
from fake_variants import FAKE_WORKER, variant

from edgecls.bench.energy import Energy, RailMeter, RaplMeter, find_meter, measure_energy

RANGE_UJ = 262143999938
"""Of an i7-4770S: github.com/intel/thermal_daemon/issues/45."""


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Two packages with a part each, and the platform's counter beside them, laid out as Linux does."""
    zones = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:1": "package-1", "intel-rapl:2": "psys"}
    for zone, name in zones.items():
        boards.write(tmp_path, f"sys/class/powercap/{zone}/name", f"{name}\n")
        boards.write(tmp_path, f"sys/class/powercap/{zone}/max_energy_range_uj", f"{RANGE_UJ}\n")
        set_counter(tmp_path, zone, 1_000_000)
    return tmp_path


def set_counter(root: Path, zone: str, microjoules: int) -> None:
    boards.write(root, f"sys/class/powercap/{zone}/energy_uj", f"{microjoules}\n")


def test_packages_are_added_without_their_parts_and_overflow_once(packages: Path) -> None:
    meter = find_meter(packages)
    assert isinstance(meter, RaplMeter)
    assert (meter.source, meter.scope) == ("RAPL", "package-0, package-1")
    set_counter(packages, "intel-rapl:1", RANGE_UJ - 500_000)
    with meter.measure() as reading:
        set_counter(packages, "intel-rapl:0", 3_000_000)
        set_counter(packages, "intel-rapl:0:0", 2_000_000)
        set_counter(packages, "intel-rapl:1", 999_999)
    assert reading.joules == pytest.approx(2 + 1.5)
    assert reading.seconds > 0


def test_counters_that_only_root_may_read_are_no_meter(packages: Path) -> None:
    (packages / "sys/class/powercap/intel-rapl:1/energy_uj").unlink()
    assert "root alone" in str(find_meter(packages))


def test_a_jetson_is_metered_where_the_module_is_fed(tmp_path: Path) -> None:
    meter = find_meter(boards.lay_out("jetson-orin-nano-super", tmp_path))
    assert isinstance(meter, RailMeter)
    assert (meter.source, meter.scope) == ("INA3221", "VDD_IN, the whole module")
    assert meter.watts() == pytest.approx(5.016 * 1.5)
    with meter.measure() as reading:
        pass
    assert reading.joules == pytest.approx(5.016 * 1.5 * reading.seconds)


def test_rails_are_not_added_up(tmp_path: Path) -> None:
    boards.lay_out("jetson-orin-nano-super", tmp_path)
    (tmp_path / "sys/class/hwmon/hwmon1/in1_label").unlink()
    reason = find_meter(tmp_path)
    assert isinstance(reason, str)
    assert reason.endswith("no rail for the whole module, only VDD_CPU_GPU_CV, VDD_SOC")


@pytest.mark.parametrize("board", ["raspberry-pi-5", "x86-cloud-vm"])
def test_a_board_without_a_meter_says_so(tmp_path: Path, board: str) -> None:
    assert "no power meter" in str(find_meter(boards.lay_out(board, tmp_path)))


def test_variants_infer_one_after_another_and_failures_say_why(tmp_path: Path) -> None:
    root = boards.lay_out("jetson-orin-nano-super", tmp_path / "board")
    meter = find_meter(root)
    assert not isinstance(meter, str)
    steps: list[int] = []
    good, bad = measure_energy(
        [variant(tmp_path, "good"), variant(tmp_path, "bad", "refused")],
        meter,
        seconds=0.2,
        threads=1,
        cpus=None,
        advance=steps.append,
        command=FAKE_WORKER,
    )
    assert isinstance(good, Energy)
    assert good.mean_w == pytest.approx(5.016 * 1.5)
    assert good.seconds >= 0.2
    assert good.mj_per_inference == pytest.approx(1000 * good.joules / good.inferences)
    assert "the engine refuses this bundle" in str(bad)
    assert steps == [1, 1]


def test_a_meter_that_falls_silent_gives_no_energy(tmp_path: Path) -> None:
    meter = find_meter(boards.lay_out("jetson-orin-nano-super", tmp_path / "board"))
    assert isinstance(meter, RailMeter)
    (meter.chip / "curr1_input").unlink()
    (energy,) = measure_energy([variant(tmp_path, "a")], meter, seconds=0.1, threads=1, cpus=None, command=FAKE_WORKER)
    assert "answered 0 times" in str(energy)
