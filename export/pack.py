"""Artifact to bundle: golden samples, and the writer of bundles, which devices have too."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from edgecls.runtime.bundle_writer import members_of, write_bundle

__all__ = ["golden_pictures", "members_of", "write_bundle"]


def golden_pictures() -> dict[str, bytes]:
    """Two PNG pictures by member name, one lying and one standing, of sizes that every preprocessing must resize.

    They are drawn, not photographed, so that no bundle carries somebody's picture.
    """
    rng = np.random.default_rng(2026)
    pictures = {}
    for name, (width, height) in {"golden/lying.png": (331, 247), "golden/standing.png": (173, 301)}.items():
        field = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize((width, height), 3)
        detail = Image.fromarray(rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)).resize((width, height), 0)
        buffer = io.BytesIO()
        Image.blend(field, detail, 0.25).save(buffer, "PNG")
        pictures[name] = buffer.getvalue()
    return pictures
