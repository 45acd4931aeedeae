"""The whole export: a classifier goes in, a bundle that has replayed its golden samples comes out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgecls.calibration.collect import calibration_set, collect_histograms, crops
from edgecls.calibration.graph import Graph
from edgecls.calibration.plan import QuantPlan, make_plan
from edgecls.calibration.quantization import Quantization
from edgecls.export.agreement import PICTURES, compare_with_float
from edgecls.export.pack import Quantized, assemble
from edgecls.export.quantize import quantize
from edgecls.export.targets import ANY_GPU, Gpu, target_module
from edgecls.export.trace import Trace, trace
from edgecls.models.classifier import Classifier
from edgecls.runtime.atomic_file import refuse_unwritable
from edgecls.runtime.bundle import CalibrationRecord, Manifest, Precision
from edgecls.runtime.bundle_writer import write_bundle
from edgecls.runtime.cpu import Isa
from edgecls.runtime.errors import InputError, UnsupportedError
from edgecls.runtime.imageset import ImageSet
from edgecls.runtime.progress import Progress, SilentProgress

_SILENT = SilentProgress()


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
    """What the user should know: what was assumed about the checkpoint, what stayed in float and why."""


def export_bundle(
    classifier: Classifier,
    *,
    target: str,
    precision: Precision,
    output: Path,
    calibration: ImageSet | None = None,
    calibration_size: int = 256,
    plan: Path | None = None,
    quantization: Quantization = Quantization(),  # noqa: B008 (frozen)
    isa: Isa = "x86-vnni",
    gpu: Gpu = ANY_GPU,
    seed: int = 0,
    threads: int | None = None,
    check: bool = False,
    traced: Trace | None = None,
    progress: Progress = _SILENT,
) -> ExportResult:
    """Exports a classifier to one target and precision.

    Args:
        output: The bundle's path; an existing file is replaced when the new one is whole.
        calibration: Pictures to draw the calibration set from; for INT8, unless a plan is given, and for fp16 where the
            target computes in it, to see that nothing overflows.
        plan: A `plan.json` that an earlier export of the same graph made, edited perhaps.
        quantization: How the plan is made; NNCF is for openvino only.
        isa: Instruction set that an INT8 graph is made for.
        gpu: What a target that runs on a GPU makes the graph for.
        threads: For calibration; by default the CPUs that this process may use.
        check: Do everything but write nothing.
        traced: The classifier's graph, where several exports of it share one.

    Raises:
        InputError: Calibration pictures are missing, too few, unreadable; the plan does not fit; the path cannot be
            written.
        UnsupportedError: The target cannot do the precision, or the network cannot be exported.
        MissingExtraError: A package is missing; the message names the extra.
        EngineError: The graph's answers are not the network's, or the engine fails on a golden sample.
    """
    _refuse_early(classifier, target, precision, calibration, plan, quantization.quantizer, gpu, output)
    if not check:
        refuse_unwritable(output)
    module, drawn = target_module(target), None
    looks = precision == "int8" or (precision == "fp16" and getattr(module, "COMPUTES_IN_HALF", False))
    if looks and plan is None and calibration is not None:
        with progress.stage("Checking the calibration pictures"):
            drawn = calibration_set(calibration, calibration_size, seed)
    if traced is None:
        with progress.stage("Exporting the graph"):
            traced = trace(classifier)
    graph, quantized = traced.graph, None
    corrections: tuple[str, ...] = ()
    if quantization.quantizer == "nncf" and drawn is not None:
        with progress.stage("Quantizing with NNCF"):
            quantized = _quantize_with_nncf(classifier, graph, target, drawn, seed, isa)
        artifact = quantized.artifact
    else:
        ranges = None
        if drawn is not None and precision == "int8":
            record = _record(drawn, seed)
            ranges, corrections = quantize(
                graph, module.rules(isa, gpu), drawn, classifier.preprocess, record, quantization, threads, progress
            )
        elif drawn is not None:  # fp16, which must see that nothing overflows
            with progress.stage("Looking at the activations", len(drawn.images)) as advance:
                histograms = collect_histograms(graph, crops(drawn, classifier.preprocess), advance, threads)
            ranges = make_plan(graph, histograms, _record(drawn, seed))
        elif plan is not None:
            ranges = QuantPlan.read(plan, graph)
        with progress.stage(f"Compiling for {target}"):
            artifact = module.compile_artifact(graph, precision, ranges, isa, gpu)
        if precision == "int8" and ranges is not None:
            quantized = Quantized(artifact, ranges, ranges.calibration, "edgecls")
    with progress.stage("Answering golden samples"):
        manifest, files = assemble(classifier, graph, target, precision, artifact, quantized)
    notes = (*classifier.notes, *artifact.notes, *corrections)
    if quantized is not None and drawn is not None:
        with progress.stage("Comparing with the float graph"):
            seen = crops(drawn.take(PICTURES), classifier.preprocess)
            notes = (*notes, compare_with_float(graph, manifest, artifact, seen).note)
    if not check:
        write_bundle(output, manifest, files)
    for note in notes:
        progress.note(note)
    size = sum(map(len, files.values())) if check else output.stat().st_size
    return ExportResult(None if check else output, manifest, size, traced.parity_max_abs, notes)


def _refuse_early(
    classifier: Classifier,
    target: str,
    precision: Precision,
    calibration: ImageSet | None,
    plan: Path | None,
    quantizer: str,
    gpu: Gpu,
    output: Path,
) -> None:
    """Everything that can be refused before the first minute is spent."""
    module = target_module(target)
    if reason := module.REFUSED.get(precision):
        raise UnsupportedError(f"{precision} on {target} is refused: {reason}.")
    halves = precision == "fp16" and getattr(module, "COMPUTES_IN_HALF", False)
    if classifier.float32_only and (precision == "int8" or halves):
        raise UnsupportedError(f"{precision} is refused for {classifier.model}: {classifier.float32_only}.")
    if precision == "int8" and calibration is None and plan is None:
        raise InputError(
            "INT8 needs calibration pictures: pass --calibration DIR with real pictures of the kind that the device "
            "will see (256 are plenty), or --plan FILE of an earlier export."
        )
    if precision != "int8" and (plan is not None or quantizer != "edgecls"):
        raise InputError(f"--plan and --quantizer are for INT8; this export is {precision}. Add --int8 or drop them.")
    if quantizer == "nncf" and plan is not None:
        raise InputError("--quantizer nncf makes its own ranges and takes no --plan; drop one of the two.")
    if quantizer == "nncf" and not hasattr(module, "quantize_with_nncf"):
        raise UnsupportedError(
            f"--quantizer nncf is refused for {target}: NNCF's graphs are slow or illegal there. "
            "Use our plan, the default."
        )
    if hasattr(module, "check_gpu"):
        module.check_gpu(gpu)
    elif gpu != ANY_GPU:
        raise InputError(
            f"{target} runs on CPUs: --tensorrt-version, --device and --compute-capabilities mean nothing to it. "
            "Leave them out."
        )
    if not output.parent.is_dir():
        raise InputError(f"the folder {output.parent} for the bundle does not exist; create it or choose another -o.")


def _quantize_with_nncf(
    classifier: Classifier, graph: Graph, target: str, drawn: ImageSet, seed: int, isa: Isa
) -> Quantized:
    singles = list(crops(drawn, classifier.preprocess, batch=1))
    artifact = target_module(target).quantize_with_nncf(graph, singles, isa)  # type: ignore[attr-defined]
    return Quantized(artifact, None, _record(drawn, seed), "nncf")


def _record(drawn: ImageSet, seed: int) -> CalibrationRecord:
    hashes = tuple(sorted(image.sha256 for image in drawn.images))
    return CalibrationRecord(sha256=drawn.digest, seed=seed, images=hashes)
