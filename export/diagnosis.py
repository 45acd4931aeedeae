"""What a diagnosis says."""

from __future__ import annotations

from typing import Literal

import msgspec

from edgecls.export.layer_noise import LayerNoise
from edgecls.runtime.verify import VerifyResult

SCHEMA = "edgecls.diagnosis/1"

Cause = Literal["preprocessing", "export", "weights", "ranges", "rounding", "quantization", "engine"]
"""What differs between a reference and a candidate, in the order of the way; `quantization` where its three parts
cannot be told apart."""


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """The answers after one more thing is as in the candidate."""

    name: Cause
    ran: bool
    """Whether it could be run, or is known to change nothing."""
    kl_mean: float | None
    """Mean divergence of the softmax from the reference's, nats; null where it was not run or is not finite."""
    disagreement: float | None
    """Part of the pictures with another best class than the reference's; null where it was not run."""
    top1: float | None
    """Null where it was not run, and for pictures without labels."""
    note: str


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag=SCHEMA):
    """What `edgecls diagnose --json` prints."""

    bundle: str
    reference: str
    n: int
    """Pictures that were looked at."""
    reference_top1: float | None
    """Null for pictures without labels, as are the next two."""
    drop_pp: float | None
    """Top-1 that the last stage that ran has lost."""
    drop_ci95_pp: tuple[float, float] | None
    stages: tuple[Stage, ...]
    repaired_kl: float | None
    """Mean divergence of the candidate when it is shown what the reference's preprocessing makes; null where both are
    the same, or do not fit."""
    golden: VerifyResult | None
    """The candidate's golden samples, replayed here; null where its engine is not here."""
    causes: tuple[Cause, ...]
    """Empty where there is no drop to explain; several where they could not be run apart, the last one is what ran."""
    layers: tuple[LayerNoise, ...]
    """The layers that lose most in the stage that is the cause."""
    verdict: str
