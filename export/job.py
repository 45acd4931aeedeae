"""The whole export: a classifier goes in, a bundle that has replayed its golden samples comes out."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgecls.calibration.collect import calibration_set, collect_histograms, crops
from edgecls.calibration.graph import Graph
from edgecls.calibration.plan import QuantPlan, make_plan
from edgecls.calibration.quantization import Quantization
from edgecls.export.pack import Quantized, assemble
from edgecls.export.quantize import quantize
from edgecls.export.recover import Budget, Recovery, recover, refuse_shared
from edgecls.export.sensitivity import with_sensitivity
from edgecls.export.targets import ANY_GPU, Artifact, Gpu, is_narrow, target_module
from edgecls.export.trace import Trace, trace
from edgecls.export.trials import Trials
from edgecls.models.classifier import Classifier
from edgecls.runtime.atomic_file import atomic_file, refuse_unwritable
from edgecls.runtime.bundle import CalibrationRecord, Manifest, Precision
from edgecls.runtime.bundle_writer import write_bundle
from edgecls.runtime.cpu import Isa
from edgecls.runtime.errors import InputError, UnsupportedError
from edgecls.runtime.imageset import ImageSet
from edgecls.runtime.labels import Labels
from edgecls.runtime.progress import Progress, SilentProgress

_SILENT = SilentProgress()

_SHOWN = 32
"""Calibration pictures that a finished graph is tried on: enough to see a broken one, too few to judge a good one."""

_CHOOSING = 512
"""Pictures at most that choose what a budget keeps in float."""


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
    recovery: Recovery | None = None
    """Where the recovery ladder ended, where there was a budget."""


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
    budget: Budget | None = None,
    sensitivity: bool = False,
    isa: Isa = "x86-vnni",
    gpu: Gpu = ANY_GPU,
    seed: int = 0,
    threads: int | None = None,
    timed: bool = True,
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
        budget: How much accuracy INT8 may cost. Blocks are kept in float until that is shown. Where it cannot be, the
            best bundle is written under another name, `NAME.over-budget.edgecls`. Beside the bundle lies
            `NAME.recovery.json`, with the certificate and the plans that no other beats.
        sensitivity: Measure what each block loses by quantization, into the plan.
        isa: Instruction set that an INT8 graph is made for.
        gpu: What a target that runs on a GPU makes the graph for.
        threads: For calibration; by default the CPUs that this process may use.
        timed: Whether a finished INT8 graph is raced against the float one; not where other work runs beside it.
        check: Do everything but write nothing.
        traced: The classifier's graph, where several exports of it share one.

    Raises:
        InputError: Calibration pictures are missing, too few, unreadable; the plan does not fit; the path cannot be
            written.
        UnsupportedError: The target cannot do the precision, or the network cannot be exported.
        MissingExtraError: A package is missing; the message names the extra.
        EngineError: The graph's answers are not the network's, or the engine fails on a golden sample.
    """
    module, drawn, choosing = target_module(target), None, None
    memory = None if check else output.with_name(f".{output.name}.trials")
    narrow, tries = is_narrow(target, precision), budget is not None or sensitivity
    _refuse_target(module, classifier, target, precision, narrow, gpu)
    _refuse_options(module, target, precision, calibration, plan, quantization.quantizer, tries)
    _refuse_output(output, check)
    if narrow and calibration is not None:
        with progress.stage("Checking the calibration pictures"):
            drawn = calibration_set(calibration, calibration_size, seed)
        choosing = _choosing(calibration, drawn, classifier.labels)
        if budget is not None:
            refuse_shared(budget, drawn, choosing)
    if traced is None:
        with progress.stage("Exporting the graph"):
            traced = trace(classifier)
    if narrow:
        _refuse_graph(traced.graph, classifier.model, precision)
    export = _Export(classifier, traced.graph, target, precision, isa, gpu, drawn, seed, threads, timed, progress)
    if quantization.quantizer == "nncf" and drawn is not None:
        quantized = export.quantize_with_nncf(drawn)
        artifact = quantized.artifact
    else:
        ranges = export.plan(quantization) if plan is None else QuantPlan.read(plan, traced.graph)
        if ranges is not None and choosing is not None and tries:
            ranges = export.refine(ranges, choosing, budget, sensitivity, memory)
        with progress.stage(f"Compiling for {target}"):
            artifact = module.compile_artifact(traced.graph, precision, ranges, isa, gpu)
        quantized = None
        if precision == "int8" and ranges is not None:
            quantized = Quantized(artifact, ranges, ranges.calibration, "edgecls")
    with progress.stage("Answering golden samples"):
        manifest, files = assemble(classifier, traced.graph, target, precision, artifact, quantized)
    notes = (*classifier.notes, *artifact.notes, *export.notes)
    if quantized is not None:
        notes = (*notes, *export.compared(artifact, manifest))
    recovery = export.recovery
    if recovery is not None and recovery.certificate.verdict != "pass":
        output = output.with_name(f"{output.stem}.over-budget{output.suffix}")
    if not check:
        _write(output, manifest, files, recovery)
    if memory is not None and tries:
        memory.unlink(missing_ok=True)
    for note in notes:
        progress.note(note)
    size = sum(map(len, files.values())) if check else output.stat().st_size
    return ExportResult(None if check else output, manifest, size, traced.parity_max_abs, notes, recovery)


def _write(output: Path, manifest: Manifest, files: Mapping[str, bytes], recovery: Recovery | None) -> None:
    write_bundle(output, manifest, files)
    if recovery is not None:
        with atomic_file(output.with_suffix(".recovery.json")) as file:
            file.write(recovery.to_json())


@dataclass
class _Export:
    """What the stages of one export share."""

    classifier: Classifier
    graph: Graph
    target: str
    precision: Precision
    isa: Isa
    gpu: Gpu
    drawn: ImageSet | None
    """The calibration set."""
    seed: int
    threads: int | None
    timed: bool
    progress: Progress
    notes: tuple[str, ...] = ()
    recovery: Recovery | None = None

    def plan(self, how: Quantization) -> QuantPlan | None:
        """The plan that the calibration set makes."""
        if self.drawn is None:
            return None
        record, preprocess = _record(self.drawn, self.seed), self.classifier.preprocess
        if self.precision == "int8":
            rules = target_module(self.target).rules(self.isa, self.gpu)
            plan, self.notes = quantize(
                self.graph, rules, self.drawn, preprocess, record, how, self.threads, self.progress
            )
            return plan
        # fp16, which must see that nothing overflows
        with self.progress.stage("Looking at the activations", len(self.drawn.images)) as advance:
            histograms = collect_histograms(self.graph, crops(self.drawn, preprocess), advance, self.threads)
        return make_plan(self.graph, histograms, record)

    def refine(
        self, plan: QuantPlan, choosing: ImageSet, budget: Budget | None, sensitivity: bool, memory: Path | None
    ) -> QuantPlan:
        """The plan with blocks in float until the budget is met, and with the sensitivity of all blocks."""
        with closing(self.trials(choosing, memory)) as trials:
            if budget is not None:
                self.recovery = recover(self.graph, plan, trials, self.target, budget, self.progress)
                plan, self.notes = self.recovery.plan, (*self.notes, *self.recovery.notes)
            if sensitivity and plan.sensitivity is None:
                plan = with_sensitivity(self.graph, plan, trials, self.target, self.progress)
        return plan

    def compared(self, artifact: Artifact, manifest: Manifest) -> tuple[str, ...]:
        """How a finished INT8 graph stands beside the float one."""
        slow = () if artifact.passport.nodes_int8 else (f"nothing computes on integers on {self.target}: ship fp32",)
        if self.drawn is None:
            return ("not compared with the float graph: give --calibration DIR beside --plan, and it is", *slow)
        with (
            self.progress.stage("Comparing with the float graph"),
            closing(self.trials(self.drawn.take(_SHOWN))) as trials,
        ):
            return (*trials.look(artifact, manifest).notes(), *slow)

    def trials(self, pictures: ImageSet, memory: Path | None = None) -> Trials:
        """On this export's target."""
        return Trials(
            self.classifier,
            self.graph,
            target=self.target,
            isa=self.isa,
            gpu=self.gpu,
            pictures=pictures,
            memory=memory,
            timed=self.timed,
        )

    def quantize_with_nncf(self, drawn: ImageSet) -> Quantized:
        """NNCF's graph instead of our plan's."""
        with self.progress.stage("Quantizing with NNCF"):
            singles = list(crops(drawn, self.classifier.preprocess, batch=1))
            module: Any = target_module(self.target)
            artifact = module.quantize_with_nncf(self.graph, singles, self.isa)
        return Quantized(artifact, None, _record(drawn, self.seed), "nncf")


def _choosing(calibration: ImageSet, drawn: ImageSet, labels: Labels) -> ImageSet:
    """Pictures that choose what stays in float.

    They are of the calibration folder, others than those that calibrate where it has as many.
    """
    others = calibration.without(frozenset(image.sha256 for image in drawn.images))
    chosen = others.take(_CHOOSING) if len(others) >= len(drawn) else drawn
    with suppress(InputError):  # folders that are no classes: the float graph's answers count as the truth
        chosen = chosen.labelled(labels)
    return chosen


def _refuse_target(
    module: Any, classifier: Classifier, target: str, precision: Precision, narrow: bool, gpu: Gpu
) -> None:
    """What the target cannot do, before the first minute is spent."""
    if reason := module.REFUSED.get(precision):
        raise UnsupportedError(f"{precision} on {target} is refused: {reason}.")
    if classifier.float32_only and narrow:
        raise UnsupportedError(f"{precision} is refused for {classifier.model}: {classifier.float32_only}.")
    if hasattr(module, "check_gpu"):
        module.check_gpu(gpu)
    elif gpu != ANY_GPU:
        raise InputError(
            f"{target} runs on CPUs: --tensorrt-version, --device and --compute-capabilities mean nothing to it. "
            "Leave them out."
        )


def _refuse_graph(graph: Graph, model: str, precision: Precision) -> None:
    """What is in a graph that cannot be had in fewer bits."""
    for node in graph.ir_model().graph:
        if any(
            attribute.type in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}
            for attribute in node.attributes.values()
        ):
            raise UnsupportedError(
                f"{node.op_type} {node.name} of {model} branches while it runs, which no {precision} graph can follow: "
                "export the network without it (onnxslim may remove it), or use fp32."
            )
        if any(value.dtype in {ir.DataType.FLOAT16, ir.DataType.BFLOAT16} for value in node.outputs):
            raise UnsupportedError(
                f"{node.op_type} {node.name} of {model} computes in half precision already: {precision} is made from a "
                "float32 network. Convert the file to float32."
            )


def _refuse_options(
    module: Any,
    target: str,
    precision: Precision,
    calibration: ImageSet | None,
    plan: Path | None,
    quantizer: str,
    tries: bool,
) -> None:
    """Options of INT8 that are missing or do not go together."""
    if precision == "int8" and calibration is None and plan is None:
        raise InputError(
            "INT8 needs calibration pictures: pass --calibration DIR with real pictures of the kind that the device "
            "will see (256 are plenty), or --plan FILE of an earlier export."
        )
    if precision != "int8" and (plan is not None or quantizer != "edgecls"):
        raise InputError(f"--plan and --quantizer are for INT8; this export is {precision}. Add --int8 or drop them.")
    if tries and (precision != "int8" or calibration is None or plan is not None or quantizer == "nncf"):
        raise InputError(
            "--max-drop and --sensitivity try INT8 by our own plan, on pictures of the calibration folder: give --int8 "
            "and --calibration DIR, and neither --plan nor --quantizer nncf."
        )
    if quantizer == "nncf" and plan is not None:
        raise InputError("--quantizer nncf makes its own ranges and takes no --plan; drop one of the two.")
    if quantizer == "nncf" and not hasattr(module, "quantize_with_nncf"):
        raise UnsupportedError(
            f"--quantizer nncf is refused for {target}: NNCF's graphs are slow or illegal there. "
            "Use our plan, the default."
        )


def _refuse_output(output: Path, check: bool) -> None:
    if not output.parent.is_dir():
        raise InputError(f"the folder {output.parent} for the bundle does not exist; create it or choose another -o.")
    if not check:
        refuse_unwritable(output)


def _record(drawn: ImageSet, seed: int) -> CalibrationRecord:
    hashes = tuple(sorted(image.sha256 for image in drawn.images))
    return CalibrationRecord(sha256=drawn.digest, seed=seed, images=hashes)
