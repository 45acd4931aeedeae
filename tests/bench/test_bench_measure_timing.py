"""Latency, throughput and energy of a measurement, with variants that only pretend."""

from __future__ import annotations

import functools
import hashlib
import io
from pathlib import Path
from typing import Any

import boards
import msgspec
import numpy as np
import pytest
from fake_bundles import FakeBundle, put
from fake_variants import FAKE_WORKER

from edgecls.bench import measure as measure_module
from edgecls.bench.conditions import Watcher
from edgecls.bench.energy import find_meter, measure_energy
from edgecls.bench.gate import judge
from edgecls.bench.gate_result import Limits, Margin
from edgecls.bench.latency import time_variants
from edgecls.bench.measure import measure
from edgecls.bench.report import Profile, read_report
from edgecls.bench.throughput import measure_throughput
from edgecls.report_table import report_table


def timed_by_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No real engine, and no meter that this machine may have."""
    for function in (time_variants, measure_throughput, measure_energy):
        monkeypatch.setattr(measure_module, function.__name__, functools.partial(function, command=FAKE_WORKER))
    monkeypatch.setattr(measure_module, "find_meter", lambda: "no meter here")


def put_file(known: dict[str, FakeBundle], folder: Path, name: str, *words: str) -> str:
    path = folder / f"{name}.edgecls"
    path.write_text(" ".join([name, *words]))
    return put(known, str(path), sha256=name)


SHORT = Profile(name="smoke", launches=2, timed_s=0.1, slice_s=0.05, warm_up_s=0.01, settle_s=0.1, stages_s=0.01)


def test_latency_is_reported_with_its_samples(
    bundles: dict[str, FakeBundle], picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed_by_fakes(monkeypatch)
    names = [put_file(bundles, tmp_path, name) for name in ("fp32", "int8")]
    output = tmp_path / "r.json"
    report = measure(names, picture_folder, reference=names[0], profile=SHORT, accuracy=False, threads=1, output=output)
    assert read_report(output) == report
    assert report.valid
    assert (report.tool.profile, report.tool.threads) == (SHORT, 1)
    reference, candidate = report.runs
    assert reference.accuracy is None
    assert reference.latency is not None
    assert reference.latency.ratio == 1.0
    assert candidate.latency is not None
    assert candidate.latency.ratio is not None
    assert candidate.latency.batch == candidate.latency.threads == 1
    assert candidate.latency.cpus is None or len(candidate.latency.cpus) == 1
    assert candidate.coldstart is not None
    assert candidate.coldstart.load_ms > 0
    assert judge(report, Limits(max_latency_ratio=1000)).verdict in {"pass", "inconclusive"}
    samples = (tmp_path / candidate.latency.samples).read_bytes()
    assert report.samples_sha256 == hashlib.sha256(samples).hexdigest()
    assert report.predictions_sha256 is None
    with np.load(io.BytesIO(samples), allow_pickle=False) as saved:
        assert len(saved["run1_launch0_ns"]) == candidate.latency.launches[0].n


def test_throughput_and_energy_are_measured_apart(
    bundles: dict[str, FakeBundle], picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed_by_fakes(monkeypatch)
    root = boards.lay_out("jetson-orin-nano-super", tmp_path / "board")
    monkeypatch.setattr(measure_module, "find_meter", lambda: find_meter(root))
    quick = msgspec.structs.replace(SHORT, apart_s=0.05)
    name, output = put_file(bundles, tmp_path, "net"), tmp_path / "r.json"
    report = measure([name], picture_folder, profile=quick, accuracy=False, throughput=True, cores=[0], output=output)
    assert read_report(output) == report
    assert report.tool.threads == 1
    run = report.runs[0]
    assert run.latency is not None
    assert run.latency.cpus == (0,)
    assert run.energy is not None
    assert run.energy.scope == "VDD_IN, the whole module"
    assert run.throughput is not None
    assert [(cell.threads, cell.batch) for cell in run.throughput.cells] == [(1, 1), (1, 8), (1, 32)]
    table = report_table(report)
    assert "mJ/inference" in table
    assert "batch 32, 1 thr." in table


def test_a_board_that_was_throttled_meanwhile_makes_the_report_invalid(
    bundles: dict[str, FakeBundle], picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed_by_fakes(monkeypatch)
    root = boards.lay_out("raspberry-pi-5", tmp_path / "board")
    monkeypatch.setattr(measure_module, "Watcher", lambda period_s: Watcher(root, 0.0))

    def time_while_it_gets_hot(*arguments: Any, **options: Any) -> Any:
        boards.set_tool(root, "vcgencmd get_throttled", "throttled=0x80008")
        return time_variants(*arguments, **options, command=FAKE_WORKER)

    monkeypatch.setattr(measure_module, "time_variants", time_while_it_gets_hot)
    names = [put_file(bundles, tmp_path, "net")]
    report = measure(names, picture_folder, profile=SHORT, accuracy=False, threads=1, output=tmp_path / "r.json")
    assert not report.valid
    assert "soft temperature limit" in report.reasons[0]
    assert report.runs[0].energy_unavailable == "no meter here"
    assert len(report.conditions.trace) >= 4
    assert {moment.temperature_c for moment in report.conditions.trace} == {76.8}


def test_no_reason_tells_in_which_folders_pictures_lie(
    bundles: dict[str, FakeBundle], picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed_by_fakes(monkeypatch)
    for path in sorted(picture_folder.rglob("*.png"))[1:]:
        path.write_bytes(path.name.encode())
    names, output = [put_file(bundles, tmp_path, "net")], tmp_path / "r.json"
    report = measure(names, picture_folder, profile=SHORT, accuracy=False, threads=1, output=output)
    assert len(report.reasons) == 29
    assert str(tmp_path) not in output.read_text()


def test_a_process_that_dies_makes_its_run_invalid(
    bundles: dict[str, FakeBundle], picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed_by_fakes(monkeypatch)
    names = [put_file(bundles, tmp_path, "good"), put_file(bundles, tmp_path, "bad", "dies")]
    report = measure(names, picture_folder, profile=SHORT, limit=4, output=tmp_path / "r.json", threads=1)
    good, bad = report.runs
    assert (good.valid, bad.valid, report.valid) == (True, False, False)
    assert "out of cheese" in bad.reasons[0]
    assert bad.accuracy is not None
    assert (bad.latency, bad.coldstart, bad.memory) == (None, None, None)
    assert good.latency is not None
    assert judge(report, Limits(max_drop=Margin(1.0))).exit_code == 4
