"""Reports that nobody measured, with every figure that a report can hold."""

from pathlib import Path

import msgspec
import numpy as np

from edgecls.bench.conditions import Conditions, Moment, Snapshot
from edgecls.bench.device import Device
from edgecls.bench.report import (
    Accuracy,
    ArtifactRecord,
    ClassAccuracy,
    ColdStart,
    Dataset,
    Latency,
    LaunchLatency,
    Memory,
    PreprocessRecord,
    Profile,
    Reference,
    Report,
    Run,
    Stages,
    Tool,
    predictions_path,
    samples_path,
    write_report,
)
from edgecls.runtime.engines import EngineInfo
from edgecls.runtime.preprocess import Preprocess

LABELS = ("ant", "bee", "cat")
TRUTH = np.repeat(np.arange(3, dtype=np.int32), 100)
SAMPLES = 40
TRACE = tuple(
    Moment(
        seconds=0.5 * look,
        frequency_mhz=(2400 - 300 * (look % 2), 2400),
        gpu_frequency_mhz=None,
        temperature_c=61.5 - 13.5 * 0.97**look,
    )
    for look in range(100)
)


def answers(wrong: int) -> np.ndarray:
    """The classes that a run gives: the first `wrong` pictures of each class get the next class."""
    given = TRUTH.copy()
    given[np.arange(300) % 100 < wrong] += 1
    return given % 3


def accuracy(wrong: int, labels: tuple[str, ...] = LABELS) -> Accuracy:
    given = answers(wrong)
    drop = wrong - 5
    return Accuracy(
        n=300,
        predictions="report.predictions.npz",
        top1=float(np.mean(given == TRUTH)),
        per_class=tuple(
            ClassAccuracy(index=index, label=label, n=100, correct=100 - wrong, predicted=100)
            for index, label in enumerate(labels)
        ),
        confusion=tuple(
            tuple(int(np.sum((label == TRUTH) & (given == answer))) for answer in range(3)) for label in range(3)
        ),
        b=3 * max(drop, 0),
        c=3 * max(-drop, 0),
        drop_pp=float(drop),
        ci95_pp=(drop - 1.5, drop + 1.5) if drop else (0.0, 0.0),
    )


def latency(p50_ms: float, ratio: float) -> Latency:
    return Latency(
        batch=1,
        threads=2,
        cpus=(0, 1),
        n=3 * SAMPLES,
        p50_ms=p50_ms,
        p50_ci95_ms=(0.9 * p50_ms, 1.1 * p50_ms),
        p90_ms=1.2 * p50_ms,
        p95_ms=None,
        p99_ms=None,
        p999_ms=None,
        mean_ms=p50_ms,
        variation=0.1,
        ratio=ratio,
        ratio_ci95=(0.9 * ratio, 1.1 * ratio),
        launches=tuple(
            LaunchLatency(n=SAMPLES, p50_ms=p50_ms * factor, warm_up_s=1.0, settled=True, ratio=ratio)
            for factor in (0.98, 1.0, 1.02)
        ),
        stages=Stages(n=9, decode_ms=2.0, preprocess_ms=1.0, model_ms=p50_ms, top_k_ms=0.1, total_ms=p50_ms + 3),
        warnings=("samples vary by 40%",),
        samples="report.samples.npz",
    )


def run(name: str, *, wrong: int = 5, p50_ms: float = 10.0, role: str = "candidate") -> Run:
    return Run(
        name=name,
        role=role,
        valid=True,
        reasons=(),
        artifact=ArtifactRecord(
            sha256=f"sha256 of {name}",
            size_bytes=2_000_000,
            name=name,
            model="net",
            target="onnxruntime",
            precision="int8",
            isa="arm64",
            quantizer="edgecls",
            checkpoint_sha256=None,
            graph_sha256="g",
            plan_sha256=None,
            int8_share=0.9,
        ),
        engine=EngineInfo(name="onnxruntime", version="1.22", provider_requested="CPU", provider_used="CPU", threads=2),
        calibration=None,
        preprocess=PreprocessRecord(
            "p", Preprocess(resize_px=16, crop_px=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        ),
        accuracy=accuracy(wrong),
        latency=latency(p50_ms, p50_ms / 10),
        coldstart=ColdStart(process_ms=30, import_ms=100, load_ms=200, first_inference_ms=20),
        memory=Memory(inference_peak_rss_bytes=50_000_000, peak_rss_bytes=60_000_000),
    )


def report(speed: float = 1.0, *, model: str = "Raspberry Pi 5", labels: tuple[str, ...] = LABELS) -> Report:
    """A reference of 10 ms and 5 wrong answers a class, and an INT8 variant of 4 ms and 7, `speed` times as long."""
    state = Snapshot(
        load_average=0.1,
        governors=("performance",),
        frequency_mhz=(2400, 2400),
        temperature_c=48.0,
        throttle_events=None,
    )
    runs = (run("fp32", p50_ms=10 * speed, role="reference"), run("int8", wrong=7, p50_ms=4 * speed))
    made = Report(
        tool=Tool(
            name="edgecls",
            version="0",
            packages={"python": "3.11"},
            seed=0,
            threads=2,
            profile=Profile(name="quick", launches=3, timed_s=5, slice_s=0.25, warm_up_s=1, settle_s=3, stages_s=0.5),
        ),
        valid=True,
        reasons=(),
        device=Device(
            kind="raspberry-pi",
            model=model,
            soc="brcm,bcm2712",
            cpu="Cortex-A76",
            architecture="aarch64",
            isa="arm64",
            cores=4,
            cores_usable=4,
            ram_bytes=8_000_000_000,
            os="Debian",
            kernel="6.6",
        ),
        conditions=Conditions(
            before=state, after=msgspec.structs.replace(state, temperature_c=61.5), warnings=(), trace=TRACE
        ),
        dataset=Dataset(sha256="d", n=300, n_unreadable=0, n_folders=3, labelled=True, limit=None, overlap=0),
        reference=Reference("sha256 of fp32", 0),
        runs=runs,
    )
    if labels == LABELS:
        return made
    relabelled = (
        msgspec.structs.replace(item, accuracy=accuracy(5 + 2 * index, labels)) for index, item in enumerate(runs)
    )
    return msgspec.structs.replace(made, runs=tuple(relabelled))


def write_beside(path: Path, made: Report) -> None:
    """Writes a report, its samples and its predictions."""
    write_report(made, path)
    noise = np.linspace(0.8, 1.2, SAMPLES)
    np.savez(
        samples_path(path),
        **{
            f"run{index}_launch{number}_ns": (launch.p50_ms * 1e6 * noise).astype(np.int64)
            for index, item in enumerate(made.runs)
            for number, launch in enumerate(item.latency.launches)
        },
    )
    np.savez(
        predictions_path(path),
        path=np.array([f"{number}.png" for number in range(300)]),
        sha256=np.array([f"{number:064x}" for number in range(300)]),
        label=TRUTH,
        run0_top=answers(5)[:, None],
        run1_top=answers(7)[:, None],
    )
