"""Artifact to bundle: the manifest, golden samples that an engine has just answered, and all members."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

import msgspec
import numpy as np
from PIL import Image

from edgecls.calibration.graph import Graph
from edgecls.calibration.plan import QuantPlan
from edgecls.export.targets import Artifact
from edgecls.export.trace import run_onnx
from edgecls.export.versions import loaded_versions
from edgecls.models.classifier import Classifier
from edgecls.runtime.bundle import CalibrationRecord, GoldenSample, Manifest, Precision, Provenance
from edgecls.runtime.bundle_writer import members_of
from edgecls.runtime.cpu import cpu_count
from edgecls.runtime.engines import Engine, engine_module
from edgecls.runtime.errors import EngineError
from edgecls.runtime.session import Session

_SMALLEST_LOGIT = 0.1
"""What the tolerance of golden samples is a part of where all their logits are smaller, and mostly rounding."""


@dataclass(frozen=True)
class Quantized:
    """An INT8 artifact and what it was made with."""

    artifact: Artifact
    plan: QuantPlan | None
    calibration: CalibrationRecord
    quantizer: str


def assemble(
    classifier: Classifier,
    graph: Graph,
    target: str,
    precision: Precision,
    artifact: Artifact,
    quantized: Quantized | None,
) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest with golden samples that the engine has just answered, and all members.

    Raises:
        EngineError: The engine's answers are not finite, or not those of the float graph.
    """
    plan = quantized.plan if quantized else None
    pictures = golden_pictures()
    files = {**artifact.files, **({"plan.json": plan.to_json()} if plan else {}), **pictures}
    manifest = Manifest(
        name=f"{classifier.name}-{target}-{precision}",
        target=target,
        precision=precision,
        preprocess=classifier.preprocess,
        labels=classifier.labels,
        padding=artifact.padding,
        artifact=tuple(artifact.files),
        passport=artifact.passport,
        provenance=Provenance(
            model=classifier.public_model,
            checkpoint_sha256=classifier.checkpoint_sha256,
            graph_sha256=graph.digest,
            plan_sha256=plan.digest if plan else None,
            quantizer=quantized.quantizer if quantized else None,
            calibration=quantized.calibration if quantized else None,
            preprocess_source=dict(classifier.preprocess_source),
            versions=loaded_versions(),
        ),
        golden=(),
        golden_tolerance=1.0,
        members=members_of(files),
    )
    return _with_golden(manifest, artifact, graph, pictures), files


def answering_engine(manifest: Manifest, artifact: Artifact) -> Engine:
    """The artifact on its own engine, or on ONNX Runtime where that need not be on this machine."""
    if artifact.stand_in is None:
        return engine_module(manifest.target).open_engine(list(artifact.files.values()), manifest, cpu_count())
    return engine_module("onnxruntime").open_engine([artifact.stand_in], manifest, cpu_count())


def _with_golden(manifest: Manifest, artifact: Artifact, graph: Graph, pictures: dict[str, bytes]) -> Manifest:
    engine = answering_engine(manifest, artifact)
    samples, largest = [], _SMALLEST_LOGIT
    try:
        for name, picture in pictures.items():
            pixels = manifest.preprocess.pixels(picture)
            logits = engine.infer(Session.pad(pixels[None], manifest.padding))[0]
            if logits.shape != (len(manifest.labels),) or not np.isfinite(logits).all():
                raise EngineError(
                    f"{manifest.name} answers a golden sample with logits of shape {logits.shape}, "
                    f"{np.count_nonzero(~np.isfinite(logits))} of them not finite; {len(manifest.labels)} finite ones "
                    "were expected. Nothing was written."
                )
            largest = max(largest, float(np.abs(logits).max()))
            if manifest.precision == "fp32":
                difference = float(np.abs(logits - run_onnx(graph.proto, pixels[None])[0]).max())
                if difference > 1e-3 * largest:
                    raise EngineError(
                        f"{manifest.name}: the engine's logits are up to {difference:.3g} off the float graph's where "
                        f"{1e-3 * largest:.3g} is allowed. Nothing was written. Choose another --target, and report it."
                    )
            samples.append(GoldenSample(name, hashlib.sha256(pixels.tobytes()).hexdigest(), tuple(map(float, logits))))
    finally:
        engine.close()
    # Float engines round differently on another CPU; through integers that may move a code here and there.
    part = artifact.golden_tolerance or (0.05 if manifest.precision == "int8" else 1e-3)
    tolerance = float(f"{largest * part:.2g}")
    return msgspec.structs.replace(manifest, golden=tuple(samples), golden_tolerance=tolerance)


def golden_pictures() -> dict[str, bytes]:
    """Two PNG pictures by member name, one lying and one standing, of sizes that every preprocessing must resize.

    They are drawn, not photographed, so that no bundle carries somebody's picture.
    """
    rng = np.random.default_rng(2026)
    pictures = {}
    for name, (width, height) in {"golden/lying.png": (331, 247), "golden/standing.png": (173, 301)}.items():
        field = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize((width, height), 3)
        detail = Image.fromarray(rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)).resize((width, height), 0)
        buffer = io.BytesIO()
        Image.blend(field, detail, 0.25).save(buffer, "PNG")
        pictures[name] = buffer.getvalue()
    return pictures
