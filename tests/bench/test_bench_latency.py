from __future__ import annotations

import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
from fake_variants import FAKE_WORKER, variant

from edgecls.bench.latency import (
    PROFILES,
    LaunchTrace,
    Trace,
    cold_start,
    peak_memory,
    summarise_latency,
    time_variants,
    write_samples,
)
from edgecls.bench.latency_process import Loaded, Slice, Variant, WarmUp, WorkerProcess
from edgecls.bench.report import Latency, Profile
from edgecls.runtime.errors import EngineError

READY = """print('{"ready": true}', flush=True); """
SHORT = Profile(name="smoke", launches=2, timed_s=0.2, slice_s=0.05, warm_up_s=0.01, settle_s=0.3, stages_s=0.02)


def script(body: str) -> tuple[str, str, str]:
    return sys.executable, "-c", f"import os, sys, time; {body}"


def timed(variants: list[Variant], pictures: list[Path]) -> tuple[Trace, ...]:
    return time_variants(variants, pictures, profile=SHORT, threads=1, cpus=None, seed=0, command=FAKE_WORKER)


def summary(trace: Trace, reference: Trace | None) -> Latency | None:
    return summarise_latency(trace, reference, profile=SHORT, threads=1, cpus=None, samples="s.npz")


def drifting_trace(factor: float, launches: int = 3, rounds: int = 8) -> Trace:
    """A machine that gets slower with every round, by tens of percent."""
    loaded = Loaded("s", 1.0, 2.0, 3.0, "CPU", "CPU")
    return Trace(
        [
            LaunchTrace(
                process_ms=5.0 + launch,
                loaded=loaded,
                warm_up=WarmUp(1.0, True),
                slices=[
                    np.full(10, int(1e6 * factor * (1 + launch) * (1 + 0.3 * turn)), dtype=np.int64)
                    for turn in range(rounds)
                ],
            )
            for launch in range(launches)
        ]
    )


def test_variants_are_timed_in_turns_and_stages_on_real_files(tmp_path: Path, picture_folder: Path) -> None:
    pictures = sorted(picture_folder.rglob("*.png"))[:2]
    traces = timed([variant(tmp_path, "a"), variant(tmp_path, "b")], pictures)
    assert [trace.error for trace in traces] == [None, None]
    for trace in traces:
        assert len(trace.launches) == SHORT.launches
        for launch in trace.launches:
            assert len(launch.slices) == 4
            assert all(len(samples) >= 1 and samples.min() > 0 for samples in launch.slices)
            assert launch.stages is not None
            assert launch.stages.shape[1] == 4
            assert len(launch.stages) % 2 == 0
        start, memory = cold_start(trace), peak_memory(trace)
        assert start is not None
        assert min(start.process_ms, start.import_ms, start.load_ms, start.first_inference_ms) > 0
        assert memory is None or memory.peak_rss_bytes >= memory.inference_peak_rss_bytes > 1_000_000
    first, second = summary(traces[0], traces[0]), summary(traces[1], traces[0])
    assert first is not None
    assert (first.ratio, first.ratio_ci95) == (1.0, (1.0, 1.0))
    assert second is not None
    assert second.ratio is not None
    assert second.ratio_ci95 is not None
    assert second.ratio_ci95[0] <= second.ratio <= second.ratio_ci95[1]
    assert second.stages is not None
    assert second.stages.decode_ms > 0
    assert second.n == sum(launch.n for launch in second.launches)
    assert any("smoke" in warning for warning in second.warnings)

    write_samples(traces, tmp_path / "s.npz")
    with zipfile.ZipFile(tmp_path / "s.npz") as archive:
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_DEFLATED}
    with np.load(tmp_path / "s.npz", allow_pickle=False) as saved:
        assert len(saved["run1_launch1_ns"]) == second.launches[1].n == len(saved["run1_launch1_round"])
        assert set(saved["run1_launch1_round"]) == {0, 1, 2, 3}
        assert saved["run0_launch0_stages_ns"].shape[1] == 4


def test_fresh_processes_on_their_cores_take_turns(
    tmp_path: Path, picture_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, str, str, set[int]]] = []
    core, original = min(os.sched_getaffinity(0)), WorkerProcess.ask

    def spied(self, answer, do, *arguments, **options):
        got = original(self, answer, do, *arguments, **options)
        asked.append((self._process.pid, self._name, do, os.sched_getaffinity(self._process.pid)))
        return got

    monkeypatch.setattr(WorkerProcess, "ask", spied)
    variants = [variant(tmp_path, "a"), variant(tmp_path, "b")]
    pictures = [picture_folder / "ant/0.png"]
    time_variants(variants, pictures, profile=SHORT, threads=1, cpus=[core], seed=0, command=FAKE_WORKER)
    turns = [name for _, name, do, _ in asked if do == "time_slice"]
    rounds = [turns[start : start + 2] for start in range(0, len(turns), 2)]
    assert len(rounds) == 8
    assert all(len(set(names)) == 2 for names in rounds)
    assert len({names[0] for names in rounds}) == 2  # neither is always the first
    assert len({process for process, *_ in asked}) == 2 * SHORT.launches
    assert {frozenset(cores) for _, _, do, cores in asked if do == "time_slice"} == {frozenset({core})}


def test_variants_that_fail_say_why_and_the_others_go_on(tmp_path: Path, picture_folder: Path) -> None:
    words = ("fine", "dies", "refused", "fallback")
    good, *bad = timed([variant(tmp_path, word, word) for word in words], [picture_folder / "ant/0.png"])
    assert good.error is None
    assert len(good.launches) == SHORT.launches
    died, refused, fell_back = (trace.error or "" for trace in bad)
    assert "times dies died at " in died
    assert "(exit code 9); its last words: " in died
    assert died.endswith("out of cheese")
    assert "the engine refuses this bundle" in refused
    assert "fell back from CPU to GPU" in fell_back
    for trace in bad:
        assert (summary(trace, good), cold_start(trace), peak_memory(trace)) == (None, None, None)
        alone = summary(good, trace)
        assert alone is not None
        assert alone.ratio is None
    write_samples((good, *bad), tmp_path / "s.npz")


def test_a_bundle_that_was_replaced_is_noticed(tmp_path: Path, picture_folder: Path) -> None:
    subject = variant(tmp_path, "a")
    subject.bundle.write_text("another")
    (trace,) = timed([subject], [picture_folder / "ant/0.png"])
    assert trace.error is not None
    assert "replaced while the measurement ran" in trace.error


def test_a_process_that_never_comes_up_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"x died at 'start' \(exit code 4\); its last words: no python here"):
        WorkerProcess("x", tmp_path, script("sys.stderr.write('no python here'); sys.exit(4)"))


def test_last_words_say_what_happened_and_not_where_somebody_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    said = f"no model in {tmp_path}/home/nets, nor homeless, nor in /mnt/acme/secret/x.edgecls: mean/std"
    with pytest.raises(EngineError) as caught:
        WorkerProcess("x", tmp_path, script(f"raise RuntimeError({said!r})"))
    assert str(caught.value).endswith("RuntimeError: no model in ~/nets, nor homeless, nor in x.edgecls: mean/std")
    body = READY + f"sys.stdin.readline(); print('not {tmp_path}/home', flush=True); time.sleep(600)"
    with (
        WorkerProcess("x", tmp_path, script(body)) as worker,
        pytest.raises(EngineError, match="it answered 'not ~'"),
    ):
        worker.ask(Slice, "load")


def test_the_lines_before_the_last_words_are_left_out(tmp_path: Path) -> None:
    said = r"warning 1\nwarning 2\nterminate called after throwing\n  what():  std::bad_alloc\n\ncore dumped"
    with pytest.raises(EngineError) as caught:
        WorkerProcess("x", tmp_path, script(f"sys.stderr.write('{said}'); sys.exit(4)"))
    assert str(caught.value).endswith("last words: terminate called after throwing what():  std::bad_alloc core dumped")


def test_a_process_that_hangs_is_ended(tmp_path: Path) -> None:
    with WorkerProcess("x", tmp_path, script(READY + "time.sleep(600)"), answer_s=30) as worker:
        worker._answer_s = 0.1
        with pytest.raises(EngineError, match="did not answer 'load' within"):
            worker.ask(Slice, "load")
        assert worker._process.poll() is not None


def test_an_answer_of_another_kind_is_an_error(tmp_path: Path) -> None:
    body = READY + "sys.stdin.readline(); print('surprise', flush=True); time.sleep(600)"
    with (
        WorkerProcess("x", tmp_path, script(body)) as worker,
        pytest.raises(EngineError, match="failed at 'load': it answered 'surprise'"),
    ):
        worker.ask(Slice, "load")


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_no_process_outlives_its_block(tmp_path: Path, failure: type[BaseException]) -> None:
    before = threading.active_count()
    worker = WorkerProcess("x", tmp_path, script(READY + "time.sleep(600)"))
    with pytest.raises(failure), worker:
        raise failure
    assert worker._process.poll() is not None
    assert threading.active_count() == before


def test_an_interrupt_between_launches_ends_all_processes(tmp_path: Path, picture_folder: Path) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        time_variants(
            [variant(tmp_path, "a")],
            [picture_folder / "ant/0.png"],
            profile=SHORT,
            threads=1,
            cpus=None,
            seed=0,
            command=FAKE_WORKER,
            advance=interrupt,
        )


def test_ratios_do_not_drift_with_the_machine() -> None:
    latency = summary(drifting_trace(0.5), drifting_trace(1.0))
    assert latency is not None
    assert latency.ratio == pytest.approx(0.5, rel=1e-4)
    assert latency.ratio_ci95 == pytest.approx((0.5, 0.5), rel=1e-4)
    assert latency.variation > 0.25
    assert any("samples vary" in warning for warning in latency.warnings)
    assert any("between launches" in warning for warning in latency.warnings)
    assert cold_start(drifting_trace(1.0)) is not None
    assert cold_start(drifting_trace(1.0)).process_ms == 6.0  # type: ignore[union-attr]


def test_a_single_launch_has_no_interval() -> None:
    latency = summary(drifting_trace(0.5, launches=1), drifting_trace(1.0, launches=1))
    assert latency is not None
    assert (latency.ratio_ci95, latency.p50_ci95_ms) == (None, None)
    assert latency.ratio == pytest.approx(0.5)


def test_a_launch_that_gets_slower_is_told_where_it_is_long() -> None:
    long = msgspec.structs.replace(SHORT, name="sustained", timed_s=600)
    tiring, steady = drifting_trace(1.0, rounds=20), drifting_trace(1.0, rounds=20)
    for launch in steady.launches:
        launch.slices = [launch.slices[0]] * 20
    for trace, profile, expected in ((tiring, long, 1), (tiring, SHORT, 0), (steady, long, 0)):
        latency = summarise_latency(trace, None, profile=profile, threads=1, cpus=None, samples="s.npz")
        assert latency is not None
        told = [text for text in latency.warnings if "from the first to the last tenth" in text]
        assert len(told) == expected


def test_the_profiles_are_what_they_promise() -> None:
    quick, standard, sustained = (PROFILES[name] for name in ("quick", "standard", "sustained"))
    assert (quick.launches, quick.timed_s) == (3, 5)
    assert (standard.launches, standard.timed_s, standard.warm_up_s) == (5, 20, 2)
    assert (sustained.launches, sustained.timed_s, sustained.warm_up_s) == (1, 600, 2)


def test_the_worker_starts_with_the_standard_library_alone_and_never_imports_torch(tmp_path: Path) -> None:
    code = (
        "import sys, edgecls.bench.latency_worker; early = set(sys.modules); "
        "import edgecls.bench.measure, edgecls.bench.gate; late = set(sys.modules); "
        "assert not early & {'numpy', 'PIL', 'msgspec', 'edgecls.runtime'}, early; "
        "assert not late & {'torch', 'onnx', 'scipy', 'onnxruntime', 'openvino'}, late"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_real_worker_tells_an_expected_error_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.edgecls").write_bytes(b"no bundle")
    np.save(tmp_path / "crops.npy", np.zeros((1, 16, 16, 3), np.uint8))
    with WorkerProcess("x", tmp_path) as worker, pytest.raises(EngineError, match="failed at 'load'") as caught:
        worker.ask(
            Loaded,
            "load",
            bundle=str(tmp_path / "x.edgecls"),
            threads=1,
            cpus=None,
            crops=str(tmp_path / "crops.npy"),
        )
    assert "Traceback" not in str(caught.value)
    assert worker.process_ms > 0
