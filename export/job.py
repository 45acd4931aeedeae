"""The whole export: a classifier goes in, a bundle that has replayed its golden samples comes out."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from edgecls import __version__
from edgecls.calibration.collect import calibration_set, collect_histograms, crops
from edgecls.calibration.graph import Graph
from edgecls.calibration.plan import QuantPlan, make_plan
from edgecls.export.pack import golden_pictures, members_of, write_bundle
from edgecls.export.targets import ANY_GPU, Artifact, Gpu, target_module
from edgecls.export.trace import trace
from edgecls.models.classifier import Classifier
from edgecls.runtime.atomic_file import atomic_file
from edgecls.runtime.bundle import (
    CalibrationRecord,
    GoldenSample,
    Manifest,
    Precision,
    Provenance,
)
from edgecls.runtime.cpu import Isa, cpu_count
from edgecls.runtime.engines import engine_module
from edgecls.runtime.errors import EngineError, InputError, UnsupportedError
from edgecls.runtime.imageset import ImageSet
from edgecls.runtime.progress import Progress, SilentProgress

_SILENT = SilentProgress()

_PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "openvino", "nncf", "numpy", "pillow")


@dataclass(frozen=True)
class ExportResult:
    """What an export made."""

    path: Path | None
    """The bundle; None after a mere check."""
    manifest: Manifest
    size_bytes: int
    parity_max_abs: float
    """Largest |difference| between the float graph's logits and the source network's."""
    notes: tuple[str, ...]
    """What the user should know: operations left in float and why, …"""


@dataclass(frozen=True)
class _Quantization:
    """What turned the float graph into integers."""

    artifact: Artifact
    plan: QuantPlan | None
    calibration: CalibrationRecord


def export_bundle(
    classifier: Classifier,
    *,
    target: str,
    precision: Precision,
    output: Path,
    calibration: ImageSet | None = None,
    calibration_size: int = 256,
    plan: Path | None = None,
    quantizer: Literal["edgecls", "nncf"] = "edgecls",
    isa: Isa = "x86-vnni",
    gpu: Gpu = ANY_GPU,
    seed: int = 0,
    threads: int | None = None,
    check: bool = False,
    progress: Progress = _SILENT,
) -> ExportResult:
    """Exports a classifier to one target and precision.

    Args:
        output: The bundle's path; an existing file is replaced when the new one is whole.
        calibration: Pictures to draw the calibration set from; for INT8, unless a plan is given, and for fp16 where the
            target computes in it, to see that nothing overflows.
        plan: A `plan.json` that an earlier export of the same graph made, edited perhaps.
        quantizer: `nncf` quantizes with NNCF instead of our plan (openvino only).
        isa: Instruction set that an INT8 graph is made for.
        gpu: What a target that runs on a GPU makes the graph for.
        threads: For calibration; by default the CPUs that this process may use.
        check: Do everything but write nothing.

    Raises:
        InputError: Calibration pictures are missing, too few, unreadable; the plan does not fit; the path cannot be
            written.
        UnsupportedError: The target cannot do the precision, or the network cannot be exported.
        MissingExtraError: A package is missing; the message names the extra.
        EngineError: The graph's answers are not the network's, or the bundle's are not reproducible.
    """
    module = target_module(target)
    _refuse_early(target, precision, calibration, plan, quantizer, gpu, output)
    drawn = None
    looks = precision == "int8" or (precision == "fp16" and getattr(module, "COMPUTES_IN_HALF", False))
    if calibration is not None and looks and plan is None:
        with progress.stage("Checking the calibration pictures"):
            drawn = calibration_set(calibration, calibration_size, seed)
    with progress.stage("Exporting the graph"):
        graph, parity = trace(classifier)
    quantization = None
    if precision == "int8":
        quantization = _quantize(
            classifier, graph, target, drawn, plan, quantizer, isa, gpu, seed, threads or cpu_count(), progress
        )
        artifact = quantization.artifact
    else:
        ranges = _calibrate(classifier, graph, drawn, seed, threads or cpu_count(), progress) if drawn else None
        with progress.stage(f"Compiling for {target}"):
            artifact = module.compile_artifact(graph, precision, ranges, isa, gpu)
    with progress.stage("Replaying golden samples"):
        manifest, files = _assemble(classifier, graph, target, precision, artifact, quantization, quantizer)
        if not check:
            write_bundle(output, manifest, files)
    for note in artifact.notes:
        progress.note(note)
    size = sum(len(data) for data in files.values())
    return ExportResult(
        None if check else output, manifest, size if check else output.stat().st_size, parity, artifact.notes
    )


def write_plan(path: Path, plan: QuantPlan) -> None:
    """Writes a plan as JSON, all of it or nothing."""
    with atomic_file(path) as file:
        file.write(plan.to_json())


def _refuse_early(
    target: str,
    precision: Precision,
    calibration: ImageSet | None,
    plan: Path | None,
    quantizer: str,
    gpu: Gpu,
    output: Path,
) -> None:
    """Everything that can be refused before the first minute is spent."""
    if reason := target_module(target).REFUSED.get(precision):
        raise UnsupportedError(f"{precision} on {target} is refused: {reason}.")
    if precision == "int8" and calibration is None and plan is None:
        raise InputError(
            "INT8 needs calibration pictures: pass --calibration DIR with real pictures of the kind that the device will "
            "see (256 are plenty), or --plan FILE of an earlier export."
        )
    if precision != "int8" and (plan is not None or quantizer != "edgecls"):
        raise InputError(f"--plan and --quantizer are for INT8; this export is {precision}. Add --int8 or drop them.")
    if quantizer == "nncf" and plan is not None:
        raise InputError("--quantizer nncf makes its own ranges and takes no --plan; drop one of the two.")
    if quantizer == "nncf" and not hasattr(target_module(target), "quantize_with_nncf"):
        raise UnsupportedError(
            f"--quantizer nncf is refused for {target}: NNCF's graphs are slow or illegal there. Use our plan (the default)."
        )
    if hasattr(target_module(target), "check_gpu"):
        target_module(target).check_gpu(gpu)  # type: ignore[attr-defined]
    elif gpu != ANY_GPU:
        raise InputError(
            f"{target} runs on CPUs: --tensorrt-version, --device and --compute-capabilities mean nothing to it."
        )
    if not output.parent.is_dir():
        raise InputError(f"the folder {output.parent} for the bundle does not exist; create it or choose another -o.")


def _quantize(
    classifier: Classifier,
    graph: Graph,
    target: str,
    drawn: ImageSet | None,
    plan_path: Path | None,
    quantizer: str,
    isa: Isa,
    gpu: Gpu,
    seed: int,
    threads: int,
    progress: Progress,
) -> _Quantization:
    module = target_module(target)
    if plan_path is not None:
        plan = QuantPlan.read(plan_path, graph)
        with progress.stage(f"Compiling for {target}"):
            return _Quantization(module.compile_artifact(graph, "int8", plan, isa, gpu), plan, plan.calibration)
    assert drawn is not None
    if quantizer == "nncf":
        with progress.stage("Quantizing with NNCF"):
            singles = list(crops(drawn, classifier.preprocess, batch=1))
            return _Quantization(module.quantize_with_nncf(graph, singles, isa), None, _record(drawn, seed))  # type: ignore[attr-defined]
    plan = _calibrate(classifier, graph, drawn, seed, threads, progress)
    with progress.stage(f"Compiling for {target}"):
        return _Quantization(module.compile_artifact(graph, "int8", plan, isa, gpu), plan, plan.calibration)


def _calibrate(
    classifier: Classifier, graph: Graph, drawn: ImageSet, seed: int, threads: int, progress: Progress
) -> QuantPlan:
    with progress.stage("Calibrating", len(drawn.images)) as advance:
        histograms = collect_histograms(graph, crops(drawn, classifier.preprocess), advance, threads)
    with progress.stage("Solving the ranges"):
        return make_plan(graph, histograms, _record(drawn, seed))


def _record(drawn: ImageSet, seed: int) -> CalibrationRecord:
    images = tuple(sorted(image.sha256 for image in drawn.images))
    return CalibrationRecord(sha256=drawn.digest, seed=seed, images=images)


def _assemble(
    classifier: Classifier,
    graph: Graph,
    target: str,
    precision: Precision,
    artifact: Artifact,
    quantization: _Quantization | None,
    quantizer: str,
) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest with golden samples that the engine has just answered, and all members."""
    plan = quantization.plan if quantization else None
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
            model=classifier.model,
            checkpoint_sha256=classifier.checkpoint_sha256,
            graph_sha256=graph.digest,
            plan_sha256=plan.digest if plan else None,
            quantizer=quantizer if quantization else None,
            calibration=quantization.calibration if quantization else None,
            preprocess_source=dict(classifier.preprocess_source),
            versions=_versions(),
        ),
        golden=(),
        golden_tolerance=1.0,
        members=members_of(files),
    )
    return _with_golden(manifest, artifact, pictures), files


def _with_golden(manifest: Manifest, artifact: Artifact, pictures: dict[str, bytes]) -> Manifest:
    from edgecls.runtime.session import Session

    if artifact.stand_in is None:
        engine = engine_module(manifest.target).open_engine(list(artifact.files.values()), manifest, cpu_count())
    else:
        engine = engine_module("onnxruntime").open_engine([artifact.stand_in], manifest, cpu_count())
    try:
        samples, largest = [], 1.0
        for name, picture in pictures.items():
            pixels = manifest.preprocess.pixels(picture)
            images = Session.pad(pixels[None], manifest.padding)
            logits = engine.infer(images)[0]
            if logits.shape != (len(manifest.labels),) or not np.isfinite(logits).all():
                raise EngineError(
                    f"{manifest.name} answers a golden sample with {logits.shape} logits, some not finite perhaps; "
                    f"{len(manifest.labels)} finite ones were expected. Nothing was written."
                )
            largest = max(largest, float(np.abs(logits).max()))
            digest = hashlib.sha256(pixels.tobytes()).hexdigest()
            samples.append(GoldenSample(name, digest, tuple(float(logit) for logit in logits)))
    finally:
        engine.close()
    # Float engines round differently on another CPU; through integers that may move a code here and there.
    tolerance = largest * (artifact.golden_tolerance or (0.05 if manifest.precision == "int8" else 1e-3))
    return msgspec.structs.replace(
        manifest, golden=tuple(samples), golden_tolerance=round(tolerance, 2 - math.floor(math.log10(tolerance)))
    )


def _versions() -> dict[str, str]:
    found = {"edgecls": __version__}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
