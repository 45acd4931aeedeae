"""Calibration pictures to a quantization plan, with every correction that is seen to help."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np
import onnx_ir as ir

from edgecls.bench.softmax import divergence
from edgecls.calibration.bias_correction import bias_shifts
from edgecls.calibration.collect import collect_histograms, crops
from edgecls.calibration.equalization import equalizing_scales
from edgecls.calibration.graph import Graph
from edgecls.calibration.plan import QuantPlan, make_plan
from edgecls.calibration.quantization import Correction, Quantization
from edgecls.calibration.rescale_channels import rescaled
from edgecls.calibration.smoothing import smoothing_scales
from edgecls.calibration.stem import depthwise_stem
from edgecls.calibration.walk import batches_of
from edgecls.export.placement import Rules, place
from edgecls.export.trace import run_onnx
from edgecls.runtime.bundle import CalibrationRecord, Padding
from edgecls.runtime.imageset import ImageSet
from edgecls.runtime.preprocess import Preprocess
from edgecls.runtime.progress import Progress
from edgecls.runtime.session import Session

_LOOK = 16
"""Pictures that choose among ranges and strengths: every one of them shows a tensor thousands of values."""

_LEARN, _JUDGE = 32, 224
"""Pictures at most that teach biases, and others that judge what a correction gained."""

_CLEARLY = 0.9
"""What a correction must make of the divergence to stay: on so few pictures, smaller gains were losses on others."""

_EARLY = "so early, integers cost much accuracy and win hardly any time"

_BATCH = 8


@dataclass
class _Maker:
    """One plan in the making; what it keeps is what several steps need."""

    graph: Graph
    rules: Rules
    drawn: ImageSet
    preprocess: Preprocess
    record: CalibrationRecord
    how: Quantization
    threads: int | None
    progress: Progress
    notes: list[str] = field(default_factory=list)
    divergences: dict[str, float] = field(default_factory=dict)
    """By digest of a plan: what one correction leaves is what the next begins with."""

    def __post_init__(self) -> None:
        whole = np.concatenate(list(crops(self.drawn.take(_LEARN + _JUDGE), self.preprocess)))
        # They come class after class, and every part shall see all classes.
        whole = whole[np.random.default_rng(0).permutation(len(whole))]
        learned = min(_LEARN, len(whole) // 2)
        self.look = batches_of([whole[: min(_LOOK, learned)]], _BATCH)
        self.learn, self.judge = batches_of([whole[:learned]], _BATCH), batches_of([whole[learned:]], _BATCH)
        self.expected = np.concatenate([run_onnx(self.graph.proto, batch) for batch in self.judge])

    def plan(self, scales: dict[str, tuple[float, ...]]) -> QuantPlan:
        """The plan of the graph whose channels are rescaled."""
        graph = rescaled(self.graph, scales)
        with self.progress.stage("Calibrating", len(self.drawn.images)) as advance:
            histograms = collect_histograms(graph, crops(self.drawn, self.preprocess), advance, self.threads)
        tried = len(histograms) if self.how.ranges == "auto" else None
        with self.progress.stage("Solving the ranges", tried) as advance:
            plan = make_plan(
                graph,
                histograms,
                self.record,
                ranges=self.how.ranges,
                weights=self.how.weights,
                crops=self.look,
                advance=advance,
            )
        return msgspec.structs.replace(plan, graph_sha256=self.graph.digest, channel_scales=scales)

    def shifted(self, plan: QuantPlan) -> QuantPlan:
        """The plan with the biases that the rules want."""
        model, padding = self.placed(plan)
        padded = [Session.pad(batch, padding) for batch in self.learn]
        with self.progress.stage("Correcting the biases", len(plan.weights)) as advance:
            shifts = bias_shifts(rescaled(self.graph, plan.channel_scales), model, self.learn, padded, advance)
        return msgspec.structs.replace(plan, bias_shifts={**plan.bias_shifts, self.rules.name: shifts})

    def divergence(self, plan: QuantPlan) -> float:
        """Mean KL divergence of the quantized answers from the float ones, over the pictures that judge."""
        known = self.divergences.get(plan.digest)
        if known is None:
            model, padding = self.placed(plan)
            proto = ir.to_proto(model).SerializeToString()
            got = np.concatenate([run_onnx(proto, Session.pad(batch, padding)) for batch in self.judge])
            known = self.divergences[plan.digest] = float(divergence(self.expected, got).mean())
        return known

    def placed(self, plan: QuantPlan) -> tuple[ir.Model, Padding | None]:
        """The Q/DQ graph of a plan, and the border that its pictures need."""
        model = self.graph.ir_model()
        return model, place(model, plan, self.rules).padding

    def better(self, correction: Correction, plan: QuantPlan, corrected: QuantPlan) -> QuantPlan:
        """The better of two plans; says what the correction gained."""
        before, after = self.divergence(plan), self.divergence(corrected)
        gained = after < _CLEARLY * before
        self.notes.append(
            f"{correction}: KL divergence from float {before:.4f} → {after:.4f} on {sum(map(len, self.judge))} "
            f"calibration pictures{'' if gained else '; left out'}"
        )
        return corrected if gained else plan


def quantize(
    graph: Graph,
    rules: Rules,
    drawn: ImageSet,
    preprocess: Preprocess,
    record: CalibrationRecord,
    how: Quantization,
    threads: int | None,
    progress: Progress,
) -> tuple[QuantPlan, tuple[str, ...]]:
    """Solves a plan and corrects it for one target.

    A correction stays only if it clearly brings the quantized graph, run by ONNX Runtime, nearer to the float one on
    calibration pictures that it has not learned from.

    Args:
        rules: Of the target.
        drawn: Calibration pictures, all readable.
        record: What the plan says about them.

    Returns:
        The plan, and what each correction gained.
    """
    maker = _Maker(graph, rules, drawn, preprocess, record, how, threads, progress)
    plan = maker.plan({})
    if how.weights == "per-tensor" and "equalization" not in how.without:
        with progress.stage("Equalising the layers"):
            scales = equalizing_scales(graph)
        if scales:
            plan = maker.better("equalization", plan, maker.plan(scales))
    norms = sum(node.op_type == "LayerNormalization" for node in graph.ir_model().graph)
    if norms and "smoothquant" not in how.without:
        with progress.stage("Smoothing layer norms", norms) as advance:
            scales = smoothing_scales(rescaled(graph, plan.channel_scales), maker.look, advance)
        if scales:
            plan = maker.better("smoothquant", plan, maker.plan({**plan.channel_scales, **scales}))
    stem = depthwise_stem(graph)
    if stem and "float-stem" not in how.without:
        # Where integer convolutions may give floats, none is rounded between the two.
        floats = dict.fromkeys(stem if "Conv" in rules.closed else stem[1:], _EARLY)
        with progress.stage("Trying the stem in float"):
            plan = maker.better("float-stem", plan, msgspec.structs.replace(plan, float_nodes=floats))
    if "bias-correction" not in how.without:
        plan = maker.better("bias-correction", plan, maker.shifted(plan))
    return plan, tuple(maker.notes)
