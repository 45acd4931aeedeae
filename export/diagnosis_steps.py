"""How each stage between a reference and a candidate is run, or why it cannot be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from edgecls.export.diagnosis import Cause
from edgecls.export.emulation import Emulation
from edgecls.export.passes.clip_activations import clamp_ends_seen, clip_activations, grid_ends, quantized_tensors
from edgecls.models.normalize import normalized
from edgecls.runtime.bundle import Bundle
from edgecls.runtime.preprocess import Preprocess
from edgecls.runtime.session import Session

Crops: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""One picture as the reference's and as the candidate's preprocessing gives it, `uint8 [crop, crop, 3]` each."""

Answer: TypeAlias = Callable[[Crops], NDArray[np.float32]]
"""Logits of one picture, `float32 [classes]`."""


@dataclass(frozen=True)
class Step:
    """How a stage is run."""

    name: Cause
    note: str
    """What is different from the stage before, or why it is not run."""
    answer: Answer | None = None
    unchanged: bool = False
    """Without `answer`: whether its answers are known to be those of the stage before."""
    proto: bytes | None = None
    """An ONNX graph of the stage, where layers can be looked at."""


@dataclass(frozen=True)
class Pair:
    """The two bundles of a diagnosis."""

    bundle: Bundle
    """The candidate."""
    reference: Session
    candidate: Session | None
    """None where its engine is not here."""
    absent: str
    """Why it is not."""
    threads: int | None

    @property
    def changed(self) -> tuple[str, ...]:
        """The fields in which the two records of preprocessing differ."""
        one, other = self.bundle.manifest.preprocess, self.reference.preprocess
        return tuple(name for name in Preprocess.__struct_fields__ if getattr(one, name) != getattr(other, name))

    @property
    def comparable_crops(self) -> bool:
        """Whether one can take the other's crops."""
        return "crop_px" not in self.changed

    def as_candidate_sees(self, crops: Crops) -> NDArray[np.uint8]:
        """Bytes that the reference's graph takes for what the candidate's sees of a picture."""
        return renormalized(crops[1], self.bundle.manifest.preprocess, self.reference.preprocess)

    def as_reference_sees(self, crops: Crops) -> NDArray[np.uint8]:
        """Bytes that the candidate's graph takes for what the reference's sees of a picture."""
        return renormalized(crops[0], self.reference.preprocess, self.bundle.manifest.preprocess)


class Range(msgspec.Struct):
    """What calibration saw of a tensor, as `plan.json` says."""

    minimum: float
    maximum: float


class PlanExcerpt(msgspec.Struct):
    """What is needed of `plan.json`."""

    tensors: dict[str, Range] = {}
    channel_scales: dict[str, tuple[float, ...]] = {}
    """Tensors whose channels are divided before anything is quantized, so that the reference has other values."""


def read_plan(bundle: Bundle) -> PlanExcerpt:
    """The plan of a bundle; an empty one where it has none."""
    if "plan.json" not in bundle.manifest.members:
        return PlanExcerpt()
    return msgspec.json.decode(bundle.read("plan.json"), type=PlanExcerpt)


def read_graph(bundle: Bundle) -> bytes | None:
    """The ONNX graph that a bundle's engine loads, or None where it loads files of its own."""
    return bundle.read("model.onnx") if bundle.manifest.artifact == ("model.onnx",) else None


def ir_of(proto: bytes) -> ir.Model:
    """A graph that may be changed."""
    return ir.from_proto(onnx.load_model_from_string(proto))


def make_steps(pair: Pair) -> list[Step]:
    """The stages in the order of the way."""
    steps = [_preprocessing(pair), _export(pair)]
    if pair.bundle.manifest.precision == "int8":
        steps += _quantization(pair)
    return [*steps, _engine(pair)]


def renormalized(pixels: NDArray[np.uint8], seen_by: Preprocess, shown_to: Preprocess) -> NDArray[np.uint8]:
    """Bytes that one normalisation takes for what another makes of given bytes, to half a code.

    Args:
        pixels: `uint8 [height, width, 3]`, RGB.
        seen_by: Its mean, std and order of colours apply to `pixels`.
        shown_to: Those of the result's reader.

    Returns:
        `uint8 [height, width, 3]`; what is out of range of a byte becomes its end.
    """
    floats = normalized(pixels[None], seen_by)[0].astype(np.float64)
    mean, std = (np.reshape(values, (3, 1, 1)) for values in (shown_to.mean, shown_to.std))
    planes = 255 * (floats * std + mean)
    planes = planes[::-1] if shown_to.colour == "bgr" else planes
    return np.ascontiguousarray(np.clip(np.rint(planes), 0, 255).astype(np.uint8).transpose(1, 2, 0))


def _preprocessing(pair: Pair) -> Step:
    if not pair.changed:
        return Step("preprocessing", "the same record", unchanged=True)
    note = f"another {', '.join(name.removesuffix('_px') for name in pair.changed)}"
    if not pair.comparable_crops:
        return Step("preprocessing", f"{note}; not run: the reference cannot take crops of another size")
    return Step("preprocessing", note, lambda crops: pair.reference.logits(pair.as_candidate_sees(crops))[0])


def _export(pair: Pair) -> Step:
    ours, theirs = pair.bundle.manifest, pair.reference.bundle.manifest
    if ours.provenance.graph_sha256 == theirs.provenance.graph_sha256:
        proto = read_graph(pair.reference.bundle) if theirs.precision == "fp32" else None
        return Step("export", "the same float graph", unchanged=True, proto=proto)
    same_file = ours.provenance.checkpoint_sha256 == theirs.provenance.checkpoint_sha256
    note = f"another float graph{'' if same_file else ', of another checkpoint'}"
    proto = read_graph(pair.bundle)
    if ours.precision == "int8":
        return Step("export", f"{note}; not run: an INT8 bundle does not hold it")
    if proto is None:
        return Step("export", f"{note}; not run: only {ours.target} computes its files")
    return Step("export", note, _emulated(pair, proto))


def _quantization(pair: Pair) -> list[Step]:
    """What the Q/DQ graph is without the rounding of its activations, and without their ranges."""
    proto, ranges = read_graph(pair.bundle), read_plan(pair.bundle).tensors
    if proto is None:
        return [Step("quantization", f"not run: only {pair.bundle.manifest.target} computes its files")]
    pairs = quantized_tensors(ir_of(proto), ranges)
    if not pairs:
        return [Step("quantization", "not run: the bundle has no plan that names its tensors")]
    seen = {name: clamp_ends_seen(ranges[name].minimum, ranges[name].maximum) for name in pairs}
    kept = {name: grid_ends(node) for name, node in pairs.items()}
    graphs: tuple[tuple[Cause, str, bytes], ...] = (
        ("weights", "integer weights, float activations", _clipped(proto, seen)),
        ("ranges", "and activations cut off at the ends of their ranges", _clipped(proto, kept)),
        ("rounding", "and rounded: the whole Q/DQ graph, without the engine's optimisations", proto),
    )
    return [Step(name, note, _emulated(pair, graph), proto=graph) for name, note, graph in graphs]


def _engine(pair: Pair) -> Step:
    candidate = pair.candidate
    if candidate is None:
        return Step("engine", f"not run: {pair.absent}")
    info = candidate.engine_info
    return Step("engine", f"{info.name} {info.version}", lambda crops: candidate.logits(crops[1])[0])


def _emulated(pair: Pair, proto: bytes) -> Answer:
    emulation = Emulation(proto, pair.bundle.manifest.padding, pair.threads)
    return lambda crops: emulation.logits(crops[1])


def _clipped(proto: bytes, ends: dict[str, tuple[float, float]]) -> bytes:
    model = ir_of(proto)
    clip_activations(model, ends)
    return bytes(ir.to_proto(model).SerializeToString())
