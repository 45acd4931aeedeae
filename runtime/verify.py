"""The bundle proves itself where it will run: its golden samples, replayed."""

from __future__ import annotations

import hashlib

import msgspec
import numpy as np

from edgecls.runtime.errors import BundleError, InputError
from edgecls.runtime.picture_limits import PictureLimits
from edgecls.runtime.session import Session

_LIMITS = PictureLimits(max_bytes=1 << 20, max_px=1 << 20, formats=("png",))
"""Of golden samples, which a stranger may have made; an export draws them ten times smaller."""


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
    """Replays the golden samples: the pixels must be identical, the logits within the bundle's tolerance.

    Raises:
        BundleError: A golden sample is no PNG picture, or a large one.
    """
    manifest = session.bundle.manifest
    results = []
    for sample in manifest.golden:
        try:
            pixels = session.preprocess.pixels(session.bundle.read(sample.image), limits=_LIMITS)
        except InputError as error:
            raise BundleError(
                f"the golden sample {sample.image!r} of {session.bundle.path} cannot be read: {error}. Get the bundle "
                "again from where it was made, or export it anew."
            ) from error
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
