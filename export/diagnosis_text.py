"""What a diagnosis says in words: the cause, and what is likely to help."""

from __future__ import annotations

from collections.abc import Sequence

from edgecls.export.diagnosis import Cause, Stage
from edgecls.export.diagnosis_steps import Pair
from edgecls.export.layer_noise import LayerNoise
from edgecls.runtime.preprocess import Preprocess
from edgecls.runtime.verify import VerifyResult

_OPTIONS = {
    "mode": "--resize-mode",
    "resize_px": "--resize",
    "crop_px": "--crop",
    "interpolation": "--interpolation",
    "mean": "--mean",
    "std": "--std",
    "colour": "--colour",
    "exif": "--exif",
    "scaled_decode": "--scaled-decode",
}
"""What sets each field of the preprocessing."""

_NAMED = 3


def verdict_text(
    pair: Pair,
    stages: Sequence[Stage],
    causes: Sequence[Cause],
    golden: VerifyResult | None,
    repaired_kl: float | None,
    layers: Sequence[LayerNoise],
) -> str:
    """One or two sentences: what explains most of the drop, and the likely remedy."""
    if golden is not None and not all(sample.pixels_match for sample in golden.samples):
        return (
            "The bundle's preprocessing does not give the pixels here that it gave where the bundle was made: its "
            "record was changed, or Pillow or edgecls-fast computes otherwise here. Get or export the bundle again; "
            "if `edgecls verify` still fails, run it with EDGECLS_FAST=0 and install the Pillow that it was made with."
        )
    ran = [stage for stage in stages if stage.ran]
    if not causes:
        return _nothing(stages)
    size = next(stage for stage in stages if stage.name == causes[-1]).kl_mean
    whole = ran[-1].kl_mean
    amount = (
        "the answers are not finite after it" if size is None else f"KL {size:.3g} after it, {_number(whole)} in all"
    )
    if len(causes) > 1:
        among = f"{', '.join(causes[:-1])} or {causes[-1]}"
        begun = f"Most of the difference comes from {among} ({amount}), which could not be run apart here."
    else:
        begun = f"Most of the difference comes from the {causes[-1]} ({amount})."
    return f"{begun} {_remedy(pair, causes[0], repaired_kl, layers)}"


def _nothing(stages: Sequence[Stage]) -> str:
    last = next(stage for stage in reversed(stages) if stage.ran or stage is stages[0])
    said = (
        f"No drop to explain: KL {_number(last.kl_mean)}, {100 * (last.disagreement or 0):.1f} % other best classes, "
        "no more than a good export has."
    )
    return said if stages[-1].ran else f"{said} But its engine was {stages[-1].note}."


def _remedy(pair: Pair, cause: Cause, repaired_kl: float | None, layers: Sequence[LayerNoise]) -> str:
    ours, theirs = pair.bundle.manifest, pair.reference.bundle.manifest
    if cause == "preprocessing":
        repaired = "" if repaired_kl is None else f" (shown such pictures, the candidate has KL {repaired_kl:.3g})"
        options = " ".join(_option(pair.reference.preprocess, name) for name in pair.changed)
        return f"If the reference is right, export again with {options}{repaired}."
    if cause == "export":
        if ours.provenance.checkpoint_sha256 != theirs.provenance.checkpoint_sha256:
            return "The bundles are of two checkpoints: export both of one."
        return (
            "The float graphs differ though the checkpoint is one: export both with one version of edgecls and torch "
            f"({_versions(ours.provenance.versions)} against {_versions(theirs.provenance.versions)}), fp32 first."
        )
    named = ", ".join(_named(layer) for layer in layers[:_NAMED] if layer.lost_db > 0)
    if cause == "ranges":
        return (
            f"Values are cut off, most in {named or 'layers that could not be told'}: calibrate again with pictures "
            "like those of the device, or widen these tensors' ranges in plan.json and export with --plan."
        )
    if cause in {"weights", "rounding"}:
        seven = ours.passport.isa == "x86" and cause == "weights"
        coarse = " Its weights have 7 bits: --isa x86-vnni gives 8 where the device has VNNI." if seven else ""
        place = f", most of it in {named}" if named else ""
        return (
            f"The grid is too coarse{place}: name the nodes that make these tensors under float_nodes in plan.json and "
            f"export with --plan.{coarse}"
        )
    if cause == "quantization":
        plan = " with --plan (this bundle's plan.json)" if "plan.json" in ours.members else ""
        return (
            f"To see which layers, export for onnxruntime{plan} and diagnose that: its graph can be computed stage by "
            "stage. If that one is right, the engine is at fault."
        )
    return (
        f"The engine computes something else than the graph says: made with {ours.target} "
        f"{ours.passport.engine_version}, for {ours.passport.isa or 'any CPU'}. Run `edgecls verify`, compare "
        "versions, and export for this CPU (--isa)."
    )


def _named(layer: LayerNoise) -> str:
    (low, high), (minimum, maximum) = layer.kept, layer.seen
    return f"{layer.name} (kept {low:.3g} to {high:.3g}, seen {minimum:.3g} to {maximum:.3g})"


def _option(preprocess: Preprocess, name: str) -> str:
    option, value = _OPTIONS[name], getattr(preprocess, name)
    if isinstance(value, bool):
        return option if value else option.replace("--", "--no-")
    return f"{option} {','.join(f'{part:g}' for part in value) if isinstance(value, tuple) else value}"


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {versions[name]}" for name in ("edgecls", "torch", "onnxscript") if name in versions)


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"
