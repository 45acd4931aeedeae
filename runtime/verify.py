"""The bundle proves itself where it will run: its golden samples, replayed."""

from __future__ import annotations

import hashlib

import msgspec
import numpy as np

from edgecls.runtime.session import Session


class SampleResult(msgspec.Struct, frozen=True, kw_only=True):
    """One golden sample, replayed here."""

    name: str
    pixels_match: bool
    """Whether preprocessing gave the very bytes that it gave where the bundle was made."""
    max_abs_difference: float
    """Of the logits, from those that the engine gave where the bundle was made."""
    same_top1: bool


class VerifyResult(msgspec.Struct, frozen=True, kw_only=True):
    """All golden samples of a bundle."""

    samples: tuple[SampleResult, ...]
    tolerance: float
    """Largest difference of a logit that is accepted."""
    passed: bool


def verify_bundle(session: Session) -> VerifyResult:
    """Replays the golden samples: the pixels must be identical, the logits within the bundle's tolerance."""
    manifest = session.bundle.manifest
    results = []
    for sample in manifest.golden:
        pixels = session.preprocess.pixels(session.bundle.read(sample.image))
        logits = session.logits(pixels)[0]
        expected = np.asarray(sample.logits, np.float32)
        difference = float(np.abs(logits - expected).max()) if np.isfinite(logits).all() else float("inf")
        results.append(
            SampleResult(
                name=sample.image,
                pixels_match=hashlib.sha256(pixels.tobytes()).hexdigest() == sample.pixels_sha256,
                max_abs_difference=difference,
                same_top1=int(logits.argmax()) == int(expected.argmax()),
            )
        )
    passed = all(r.pixels_match and r.max_abs_difference <= manifest.golden_tolerance for r in results)
    return VerifyResult(samples=tuple(results), tolerance=manifest.golden_tolerance, passed=passed)
