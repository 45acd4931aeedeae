"""Energy of inferences, in a pass of its own: nothing is timed while a meter is read.

What the meter's scope draws when idle is part of the figures, and what lies outside it (fan, carrier board, power
supply) is not.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgecls.bench.latency_process import COMMAND, Batches, Variant, WarmUp, load_variant
from edgecls.bench.scratch import scratch_folder
from edgecls.bench.system import read_numbers, read_text
from edgecls.runtime.errors import EngineError
from edgecls.runtime.progress import Advance

_RAIL_PERIOD_S = 0.1
"""Rails are read 10 times a second: the chip averages over longer than it would pay to ask more often."""
_INPUT_RAILS = ("VDD_IN", "POM_5V_IN")
"""Rails of a Jetson that feed the whole module; the others are parts of them and must not be added."""
_WARM_UP_S = 1.0


class Energy(msgspec.Struct, frozen=True, kw_only=True):
    """What inferences of batch 1 drew, one after another."""

    source: str
    """`RAPL`, or `INA3221`, the power monitor of a Jetson."""
    scope: str
    """What the meter covers: `package-0`, `VDD_IN, the whole module`."""
    seconds: float
    inferences: int
    joules: float
    mean_w: float
    mj_per_inference: float


@dataclass
class Reading:
    """What a meter measured."""

    joules: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class RaplMeter:
    """The energy counters of x86 packages.

    Args:
        zones: Folders of the packages; their parts (core, uncore, dram) must not be among them.
    """

    zones: Sequence[Path]
    source = "RAPL"

    @property
    def scope(self) -> str:
        """Names of the packages."""
        return ", ".join(read_text(zone / "name") or zone.name for zone in self.zones)

    @contextlib.contextmanager
    def measure(self) -> Iterator[Reading]:
        """Measures while the block runs; a counter may overflow once."""
        reading = Reading()
        before, start = [_counter(zone) for zone in self.zones], time.perf_counter()
        yield reading
        reading.seconds = time.perf_counter() - start
        for zone, earlier in zip(self.zones, before, strict=True):
            span = _counter(zone) - earlier
            if span < 0:
                (largest,) = read_numbers([zone / "max_energy_range_uj"])
                span += largest + 1
            reading.joules += span / 1e6


@dataclass(frozen=True)
class RailMeter:
    """The rail that feeds a Jetson's module, from its INA3221.

    Args:
        chip: The hwmon folder of the chip.
        channel: Number of the rail.
        label: Name of the rail.
    """

    chip: Path
    channel: int
    label: str
    source = "INA3221"

    @property
    def scope(self) -> str:
        """The rail."""
        return f"{self.label}, the whole module"

    @contextlib.contextmanager
    def measure(self) -> Iterator[Reading]:
        """Reads the power 10 times a second while the block runs, and integrates it."""
        reading, ended = Reading(), threading.Event()
        watts: list[float] = []

        def watch() -> None:
            with contextlib.suppress(ValueError):
                watts.append(self.watts())
                while not ended.wait(_RAIL_PERIOD_S):
                    watts.append(self.watts())

        thread, start = threading.Thread(target=watch, daemon=True), time.perf_counter()
        thread.start()
        try:
            yield reading
        finally:
            ended.set()
            thread.join()
        reading.seconds = time.perf_counter() - start
        if len(watts) < reading.seconds / _RAIL_PERIOD_S / 2:
            raise ValueError(f"the power monitor answered {len(watts)} times in {reading.seconds:.1f} s")
        reading.joules = sum(watts) / len(watts) * reading.seconds

    def watts(self) -> float:
        """The power now.

        Raises:
            ValueError: The chip does not answer.
        """
        files = (self.chip / f"in{self.channel}_input", self.chip / f"curr{self.channel}_input")
        millivolts, milliamperes = read_numbers(files)
        return millivolts * milliamperes / 1e6


Meter = RaplMeter | RailMeter


def find_meter(root: Path = Path("/")) -> Meter | str:
    """The meter of this machine, or why there is none that this process may read."""
    zones = sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
    packages = [zone for zone in zones if (read_text(zone / "name") or "").startswith("package")]
    if packages:
        if len(read_numbers(zone / "energy_uj" for zone in packages)) == len(packages):
            return RaplMeter(packages)
        return "the energy counters (RAPL) can be read by root alone: run as root to have the energy"
    rails = []
    for label in sorted((root / "sys/class/hwmon").glob("hwmon*/in*_label")):
        channel = label.name[2 : -len("_label")]
        if read_text(label.parent / "name") == "ina3221" and (label.parent / f"curr{channel}_input").exists():
            rails.append(read_text(label) or "?")
            if rails[-1] in _INPUT_RAILS:
                return RailMeter(label.parent, int(channel), rails[-1])
    if rails:
        return f"the power monitor has no rail for the whole module, only {', '.join(rails)}"
    return "this machine has no power meter that edgecls can read (RAPL, or the INA3221 of a Jetson)"


def measure_energy(
    variants: Sequence[Variant],
    meter: Meter,
    *,
    seconds: float,
    threads: int,
    cpus: Sequence[int] | None,
    advance: Advance = lambda steps: None,
    command: Sequence[str] = COMMAND,
) -> tuple[Energy | str, ...]:
    """Lets one variant after another infer alone on the machine, and reads the meter.

    Args:
        variants: What infers.
        meter: What is read.
        seconds: How long each infers.
        threads: Threads of one inference.
        cpus: CPUs to pin the process to, or None.
        advance: Called after each variant.
        command: The worker's command line.

    Returns:
        For each variant its energy, or why its process or the meter failed.
    """
    energies: list[Energy | str] = []
    with scratch_folder() as folder:
        for variant in variants:
            try:
                with ExitStack() as stack:
                    process, _ = load_variant(stack, variant, folder, threads=threads, cpus=cpus, command=command)
                    process.ask(WarmUp, "warm_up", _WARM_UP_S, least_s=_WARM_UP_S, most_s=_WARM_UP_S)
                    with meter.measure() as reading:
                        done = process.ask(Batches, "run", seconds, seconds=seconds, batch=1)
                    # The one inference that `run` does not count drew energy too.
                    energies.append(_energy(meter, reading, done.images + 1))
            except (EngineError, ValueError) as error:
                energies.append(str(error))
            advance(1)
    return tuple(energies)


def _energy(meter: Meter, reading: Reading, inferences: int) -> Energy:
    return Energy(
        source=meter.source,
        scope=meter.scope,
        seconds=reading.seconds,
        inferences=inferences,
        joules=reading.joules,
        mean_w=reading.joules / reading.seconds,
        mj_per_inference=1000 * reading.joules / inferences,
    )


def _counter(zone: Path) -> float:
    """A package's counter, microjoules; a ValueError where it cannot be read any more."""
    (value,) = read_numbers([zone / "energy_uj"])
    return value
