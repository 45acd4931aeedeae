"""Bundles and sessions whose answers are functions of the crop: no engine, no file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecls.runtime.bundle import CalibrationRecord, Manifest, Member, Passport, Provenance
from edgecls.runtime.engines import EngineInfo
from edgecls.runtime.labels import Labels
from edgecls.runtime.preprocess import Preprocess

LABELS = Labels(("ant", "bee", "cat"))


def brightest(crop: NDArray[np.uint8]) -> NDArray[np.float32]:
    return crop.reshape(-1, 3).mean(axis=0).astype(np.float32) / 10


@dataclass
class FakeBundle:
    path: str
    sha256: str = ""
    size_bytes: int = 3
    logits: Callable[[NDArray[np.uint8]], NDArray[np.float32]] = brightest
    labels: Labels = LABELS
    calibrated_with: tuple[str, ...] | None = None
    provider_used: str = "CPU"
    crop_px: int = 16

    def __post_init__(self) -> None:
        self.sha256 = self.sha256 or f"digest of {self.path}"
        calibration = None
        if self.calibrated_with is not None:
            calibration = CalibrationRecord(sha256="c", seed=1, images=self.calibrated_with)
        self.manifest = Manifest(
            name=Path(self.path).stem,
            target="onnxruntime",
            precision="fp32",
            preprocess=Preprocess(
                resize_px=self.crop_px, crop_px=self.crop_px, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
            ),
            labels=self.labels,
            padding=None,
            artifact=("model.onnx",),
            passport=Passport(engine_version="1", isa=None, activations=None, nodes=4, nodes_int8=1),
            provenance=Provenance(
                model="m",
                checkpoint_sha256=None,
                graph_sha256="0" * 64,
                plan_sha256=None,
                quantizer=None,
                calibration=calibration,
                preprocess_source={},
                versions={},
            ),
            golden=(),
            golden_tolerance=0.0,
            members={"model.onnx": Member("0" * 64, 1)},
        )


@dataclass
class FakeSession:
    bundle: FakeBundle
    threads: int
    closed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.preprocess = self.bundle.manifest.preprocess
        self.engine_info = EngineInfo(
            name="fake",
            version="1",
            provider_requested="CPU",
            provider_used=self.bundle.provider_used,
            threads=self.threads,
        )

    def logits(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert crops.shape == (self.bundle.crop_px, self.bundle.crop_px, 3)
        return self.bundle.logits(crops)[None]

    def __enter__(self) -> FakeSession:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None: ...


def put(known: dict[str, FakeBundle], path: str, **options: Any) -> str:
    known[path] = FakeBundle(path, **options)
    return path
