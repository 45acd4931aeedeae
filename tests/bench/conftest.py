from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fake_bundles import FakeBundle, FakeSession
from PIL import Image

from edgecls.bench import measure as measure_module
from edgecls.bench import subject as subject_module
from edgecls.bench.conditions import Conditions, Snapshot
from edgecls.bench.device import Device
from edgecls.bench.report import (
    Accuracy,
    ArtifactRecord,
    Dataset,
    Latency,
    LaunchLatency,
    PreprocessRecord,
    Reference,
    Report,
    Run,
    Tool,
)
from edgecls.runtime.engines import EngineInfo
from edgecls.runtime.preprocess import Preprocess

PREPROCESS = Preprocess(resize_px=16, crop_px=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def _run(name: str, *, b: int | None, c: int | None, n: int, ratios: tuple[float, ...], role: str) -> Run:
    launches = tuple(LaunchLatency(n=10, p50_ms=1.0, warm_up_s=1.0, settled=True, ratio=ratio) for ratio in ratios)
    return Run(
        name=name,
        role=role,  # type: ignore[arg-type]
        valid=True,
        reasons=(),
        artifact=ArtifactRecord(
            sha256=name,
            size_bytes=1,
            name=name,
            model="m",
            target="onnxruntime",
            precision="int8",
            isa=None,
            quantizer=None,
            checkpoint_sha256=None,
            graph_sha256="g",
            plan_sha256=None,
            int8_share=None,
        ),
        engine=EngineInfo(name="e", version="1", provider_requested="CPU", provider_used="CPU", threads=1),
        calibration=None,
        preprocess=PreprocessRecord("p", PREPROCESS),
        accuracy=Accuracy(n=n, predictions="report.predictions.npz", b=b, c=c),
        latency=Latency(
            batch=1,
            threads=1,
            cpus=(0,),
            n=10,
            p50_ms=1.0,
            p50_ci95_ms=None,
            p90_ms=None,
            p95_ms=None,
            p99_ms=None,
            p999_ms=None,
            mean_ms=1.0,
            variation=0.0,
            ratio=float(np.exp(np.mean(np.log(ratios)))),
            ratio_ci95=None,
            launches=launches,
            stages=None,
            warnings=(),
            samples="report.samples.npz",
        )
        if ratios
        else None,
        coldstart=None,
        memory=None,
    )


@pytest.fixture
def make_report() -> Callable[..., Report]:
    """Builds a report of one reference and one run for each `(name, b, c)`."""

    def make(
        *runs: tuple[str, int | None, int | None],
        n: int = 1000,
        ratios: tuple[float, ...] = (0.5, 0.51, 0.49),
        **changes: Any,
    ) -> Report:
        empty = Snapshot(
            load_average=None, governors=None, frequency_mhz=None, temperature_c=None, throttle_events=None
        )
        report = Report(
            tool=Tool(name="edgecls", version="0", packages={}, seed=0, threads=1, profile=None),
            valid=True,
            reasons=(),
            device=Device(
                kind="pc",
                model=None,
                soc=None,
                cpu=None,
                architecture="x86_64",
                isa="x86",
                cores=2,
                cores_usable=2,
                ram_bytes=None,
                os="o",
                kernel="k",
            ),
            conditions=Conditions(before=empty, after=empty, warnings=()),
            dataset=Dataset(sha256="d", n=n, n_unreadable=0, n_folders=3, labelled=True, limit=None, overlap=0),
            reference=Reference("ref", 0),
            runs=(
                _run("ref", b=0, c=0, n=n, ratios=(1.0, 1.0, 1.0), role="reference"),
                *(_run(name, b=b, c=c, n=n, ratios=ratios, role="candidate") for name, b, c in runs),
            ),
        )
        return msgspec.structs.replace(report, **changes)

    return make


@pytest.fixture
def picture_folder(tmp_path: Path) -> Path:
    """30 pictures in the class folders ant, bee and cat; the class is the brightest channel."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("ant", "bee", "cat")):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for number in range(10):
            pixels = rng.integers(0, 100, (20, 24, 3), dtype=np.uint8)
            pixels[..., label] += 100
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "data"


@pytest.fixture
def bundles(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeBundle]:
    """Bundles by path; tests put theirs in."""
    known: dict[str, FakeBundle] = {}
    monkeypatch.setattr(subject_module, "Bundle", lambda path: known[str(path)])
    monkeypatch.setattr(measure_module, "load", lambda bundle, threads: FakeSession(bundle, threads))

    return known
