"""Which stage of the way from the network to the device changed the answers, and what helps.

From the reference to the candidate one thing is changed at a time, and after each the answers are compared with the
reference's: its preprocessing, its float graph, its integer weights, the ends of its activations' ranges, their
rounding, its engine. The first of these after which half of the whole divergence is there is the cause.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgecls.bench.accuracy import decode_ahead, pixels_key
from edgecls.bench.softmax import divergence
from edgecls.bench.statistics import confidence_interval, lower_bound
from edgecls.bench.subject import common_labels, open_subjects
from edgecls.export.diagnosis import Cause, Diagnosis, Stage
from edgecls.export.diagnosis_steps import Crops, Pair, Step, ir_of, make_steps, read_plan
from edgecls.export.diagnosis_text import verdict_text
from edgecls.export.emulation import Emulation
from edgecls.export.layer_noise import LayerNoise, noise_to_signal, quantized_inputs, rank_layers
from edgecls.export.passes.clip_activations import grid_ends, gridded, quantized_tensors
from edgecls.runtime.errors import EngineError, InputError, MissingExtraError, UnsupportedError
from edgecls.runtime.imageset import ImageSet
from edgecls.runtime.progress import Progress, SilentProgress
from edgecls.runtime.session import load
from edgecls.runtime.verify import VerifyResult, verify_bundle

NEGLIGIBLE_KL = 0.02
"""Mean divergence, nats, that good INT8 graphs have: below it there is nothing to explain, unless top-1 has fallen."""

LAYER_PICTURES = 16
"""Pictures on which layers are compared: every quantized tensor is kept of each."""

_LISTED = 10
_SILENT = SilentProgress()

Logits: TypeAlias = NDArray[np.float32]


@dataclass
class _Seen:
    """All answers, a list of one array `float32 [classes]` a picture for each."""

    steps: list[list[Logits]]
    labels: list[int | None] = field(default_factory=list)
    reference: list[Logits] = field(default_factory=list)
    repaired: list[Logits] = field(default_factory=list)
    crops: list[Crops] = field(default_factory=list)

    @property
    def truth(self) -> NDArray[np.int64] | None:
        """The labels, where all are known."""
        return None if None in self.labels else np.asarray(self.labels, np.int64)


def diagnose(
    bundle: str | os.PathLike[str],
    reference: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    limit: int | None = 256,
    threads: int | None = None,
    progress: Progress = _SILENT,
) -> Diagnosis:
    """Attributes what a bundle has lost against another one to preprocessing, export, quantization or engine.

    Args:
        bundle: The candidate.
        reference: The bundle that is right: fp32 of the same network (for ONNX Runtime, if layers shall be told whose
            weights are at fault).
        data: Pictures, in a sub-folder a class or flat.
        limit: At most so many of them, spread over the classes.
        threads: Of one inference; by default the CPUs that this process may use.
        progress: Told about the stages.

    Raises:
        InputError: The bundles are one, or do not have the same classes; a picture cannot be read.
        BundleError: A bundle is damaged.
        MissingExtraError: The reference's engine is not installed (the candidate's may be missing).
    """
    subjects, _ = open_subjects([bundle], reference, progress)
    if len(subjects) == 1:
        raise InputError(f"{bundle} and {reference} are the same bundle: give the one that is right as --reference")
    images = ImageSet.from_folder(data, common_labels(subjects))
    images = images if limit is None else images.take(limit)
    with ExitStack() as stack:
        right = stack.enter_context(load(subjects[1].bundle, threads=threads, build=False))
        candidate, absent = None, ""
        try:
            candidate = stack.enter_context(load(subjects[0].bundle, threads=threads, build=False))
        except (MissingExtraError, UnsupportedError, EngineError) as error:
            absent = str(error)
        pair = Pair(subjects[0].bundle, right, candidate, absent, threads)
        golden = verify_bundle(candidate) if candidate is not None else None
        with progress.stage("Making the graphs"):
            steps = make_steps(pair)
        seen = _run(pair, steps, images, progress)
        stages = _stages(steps, seen)
        drop = _drop(seen, _latest(steps, seen)[-1])
        repaired = _divergence(seen.reference, seen.repaired) if seen.repaired else None
        cause = _cause(stages, golden, repaired, fallen=drop is not None and drop[2] > 0)
        layers: tuple[LayerNoise, ...] = ()
        if cause is not None:
            with progress.stage("Comparing layers"):
                layers = _layers(pair, steps, cause, seen.crops)[:_LISTED]
    causes = _causes(stages, cause)
    return Diagnosis(
        bundle=subjects[0].name,
        reference=subjects[1].name,
        n=len(seen.labels),
        reference_top1=_top1(seen.reference, seen.truth),
        drop_pp=None if drop is None else drop[0],
        drop_ci95_pp=None if drop is None else drop[1],
        stages=stages,
        repaired_kl=repaired,
        golden=golden,
        causes=causes,
        layers=layers,
        verdict=verdict_text(pair, stages, causes, golden, repaired, layers),
    )


def _run(pair: Pair, steps: Sequence[Step], images: ImageSet, progress: Progress) -> _Seen:
    seen = _Seen(steps=[[] for _ in steps])
    preprocesses = [pair.reference.preprocess, pair.bundle.manifest.preprocess]
    first, second = map(pixels_key, preprocesses)
    repair = pair.candidate if pair.changed and pair.comparable_crops else None
    with progress.stage("Running the stages", len(images)) as advance:
        for image, pixels in decode_ahead(images, preprocesses):
            if isinstance(pixels, str):
                raise InputError(f"cannot read {images.root / image.path}: {pixels}. Remove or replace it.")
            crops = pixels[first], pixels[second]
            seen.labels.append(image.label)
            seen.reference.append(pair.reference.logits(crops[0])[0])
            for step, answers in zip(steps, seen.steps, strict=True):
                if step.answer is not None:
                    answers.append(step.answer(crops))
            if repair is not None:
                seen.repaired.append(repair.logits(pair.as_reference_sees(crops))[0])
            if len(seen.crops) < LAYER_PICTURES:
                seen.crops.append(crops)
            advance(1)
    return seen


def _latest(steps: Sequence[Step], seen: _Seen) -> list[list[Logits]]:
    """The answers after each stage; where it was not run, those of the stage before."""
    latest, found = seen.reference, []
    for step, answers in zip(steps, seen.steps, strict=True):
        latest = latest if step.answer is None else answers
        found.append(latest)
    return found


def _stages(steps: Sequence[Step], seen: _Seen) -> tuple[Stage, ...]:
    stages = []
    for step, answers in zip(steps, _latest(steps, seen), strict=True):
        ran = step.answer is not None or step.unchanged
        stages.append(
            Stage(
                name=step.name,
                ran=ran,
                kl_mean=_divergence(seen.reference, answers) if ran else None,
                disagreement=float(np.mean(_best(answers) != _best(seen.reference))) if ran else None,
                top1=_top1(answers, seen.truth) if ran else None,
                note=step.note,
            )
        )
    return tuple(stages)


def _cause(stages: Sequence[Stage], golden: VerifyResult | None, repaired: float | None, *, fallen: bool) -> int | None:
    """Index of the first stage after which half of the divergence is there; None where there is none to speak of.

    Args:
        golden: Pixels that are not those of the golden samples are a cause whatever they change.
        repaired: Divergence without the difference of the preprocessing: where half is gone, that is the cause, though
            the reference could not be shown all that the candidate sees (bytes have ends).
        fallen: Whether top-1 has fallen beyond doubt.
    """
    if golden is not None and not all(sample.pixels_match for sample in golden.samples):
        return 0
    ran = [index for index, stage in enumerate(stages) if stage.ran]
    sizes = {index: _size(stages[index]) for index in ran}
    if not ran or (sizes[ran[-1]] < NEGLIGIBLE_KL and not fallen):
        return None
    if repaired is not None and repaired < sizes[ran[-1]] / 2:
        return 0
    return next(index for index in ran if sizes[index] >= sizes[ran[-1]] / 2)


def _size(stage: Stage) -> float:
    return float("inf") if stage.kl_mean is None else stage.kl_mean


def _causes(stages: Sequence[Stage], cause: int | None) -> tuple[Cause, ...]:
    """The cause, after the stages just before it that could not be run."""
    if cause is None:
        return ()
    first = cause
    while first > 0 and not stages[first - 1].ran:
        first -= 1
    return tuple(stage.name for stage in stages[first : cause + 1])


def _layers(pair: Pair, steps: Sequence[Step], cause: int, crops: Sequence[Crops]) -> tuple[LayerNoise, ...]:
    """The layers of a stage of the quantization, against the graph of the stage before."""
    step, before, whole = steps[cause], steps[cause - 1], steps[-2].proto
    if (
        step.name not in {"weights", "ranges", "rounding"}
        or before.proto is None
        or step.proto is None
        or whole is None
    ):
        return ()
    padding, plan = pair.bundle.manifest.padding, read_plan(pair.bundle)
    names = set(plan.tensors)
    if step.name == "weights":  # the reference's own graph has not the scales of a plan's channels
        names -= _rescaled(ir_of(before.proto), plan.channel_scales.keys())
    pairs = quantized_tensors(ir_of(whole), names)
    if step.name == "weights":  # after the reference's own graph, whose tensors have no grid
        signal = Emulation(before.proto, None, pair.threads, list(pairs))
        shown = [(pair.as_candidate_sees(both), both[1]) for both in crops]
    else:
        signal = Emulation(before.proto, padding, pair.threads, [gridded(name) for name in pairs])
        shown = [(both[1], both[1]) for both in crops]
    noisy = Emulation(step.proto, padding, pair.threads, [gridded(name) for name in pairs])
    return rank_layers(
        noise_to_signal(signal, noisy, pairs, shown),
        quantized_inputs(pairs),
        {name: grid_ends(node) for name, node in pairs.items()},
        {name: (plan.tensors[name].minimum, plan.tensors[name].maximum) for name in pairs},
    )


def _rescaled(model: ir.Model, scaled: Collection[str]) -> set[str]:
    """Names of tensors whose channels a plan has rescaled, up to the weights that undo it."""
    found = set(scaled)
    for node in model.graph:
        if node.op_type in {"Relu", "Transpose"} and node.inputs[0] is not None and node.inputs[0].name in found:
            found.add(str(node.outputs[0].name))
    return found


def _drop(seen: _Seen, answers: Sequence[Logits]) -> tuple[float, tuple[float, float], float] | None:
    """Drop of top-1 with its 95 % interval, points, and its one-sided 95 % lower bound; None without labels."""
    truth = seen.truth
    if truth is None:
        return None
    right, reference_right = _best(answers) == truth, _best(seen.reference) == truth
    b, c, n = int(np.sum(reference_right & ~right)), int(np.sum(right & ~reference_right)), len(truth)
    low, high = confidence_interval(b, c, n)
    return 100 * (b - c) / n, (100 * low, 100 * high), 100 * lower_bound(b, c, n, 0.05)


def _divergence(reference: Sequence[Logits], answers: Sequence[Logits]) -> float | None:
    """Mean KL(softmax(reference) || softmax(answer)), nats; None where it is not finite."""
    mean = float(divergence(np.stack(reference), np.stack(answers)).mean())
    return mean if np.isfinite(mean) else None


def _best(answers: Sequence[Logits]) -> NDArray[np.int64]:
    return np.asarray([logits.argmax() for logits in answers], np.int64)


def _top1(answers: Sequence[Logits], truth: NDArray[np.int64] | None) -> float | None:
    return None if truth is None else float(np.mean(_best(answers) == truth))
